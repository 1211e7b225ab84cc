"""metrics.jsonl: the log of a run, one JSON object a line, on the disk as soon as it is written."""

import json
import math
import os
from pathlib import Path


class MetricsFile:
    """Written by rank 0 alone."""

    def __init__(self, path: Path, resumed_at: int = 0):
        """Lines past step `resumed_at` belong to steps that will be done again, and go; so do unreadable ones."""
        if path.exists():
            kept = [entry for entry in read_metrics(path) if entry["step"] <= resumed_at]
            temporary = path.with_name(f".{path.name}.tmp")
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, entry: dict) -> None:
        """Numbers that JSON does not have (nan, inf) become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_metrics(path: Path) -> list[dict]:
    """The entries of metrics.jsonl that have a step; lines cut short or damaged by a power failure are left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [entry for entry in map(_entry, lines) if entry is not None]


def _entry(line: str) -> dict | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        return None
    return entry if isinstance(entry.get("val_loss"), int | float | None) else None


def points_of(log: list[dict], key: str) -> list[tuple[int, float]]:
    """(step, value) of the entries that have a finite number under `key`."""
    found = ((entry["step"], entry.get(key)) for entry in log)
    return [(s, v) for s, v in found if type(v) in (int, float) and math.isfinite(v)]


def minutes_of(log: list[dict]) -> dict[int, float]:
    """Minutes of training until each entry; {} for a log without seconds, as earlier versions wrote it.

    What a session that was stopped computed after its last entry is not in it.
    """
    seconds, minutes = dict(points_of(log, "seconds")), {}
    if len(seconds) == len(log):
        for step, lap in seconds.items():
            minutes[step] = max(minutes.values(), default=0.0) + lap / 60
    return minutes
