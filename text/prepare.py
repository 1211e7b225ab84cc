"""From a raw catalogue to `train.jsonl`, `val.jsonl` and `test.jsonl`, with an account of every line.

One pass, one line at a time: memory is one line plus about 85 bytes for each record kept (the digests that find
duplicates). The order of the records is that of the inputs.
"""

import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from text.clean import clean
from text.errors import DataError

SPLITS = ("train", "val", "test")
OUTPUTS = (*(f"{split}.jsonl" for split in SPLITS), "rejects.jsonl", "report.json")

# Why a line was left out, in the order in which the questions are asked.
BLANK = "blank line"
BROKEN = "broken line"
NOT_AN_OBJECT = "not an object"
NO_TITLE = "missing title"
MARKUP_TITLE = "markup fragment as title"
NO_CONTENT = "empty content"
SAME_AS_TITLE = "content equal to title"
TOO_SHORT = "content too short"
DUPLICATE = "exact duplicate"
REASONS = (BLANK, BROKEN, NOT_AN_OBJECT, NO_TITLE, MARKUP_TITLE, NO_CONTENT, SAME_AS_TITLE, TOO_SHORT, DUPLICATE)

START_BYTES = 200  # of a rejected line, for rejects.jsonl
LINES_PER_PROGRESS = 256

_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would build the encoder anew for each line

WHERE_TO_GET_IT = (
    "LF-Amazon comes from the Extreme Classification Repository "
    "(http://manikvarma.org/downloads/XC/XMLRepository.html): LF-Amazon-1.3M, raw text; its trn.json.gz is the file to "
    "give here."
)


@dataclass(frozen=True)
class Counts:
    """Where every input line went: `lines == sum(kept) + sum(reasons)`."""

    lines: int
    kept: dict[str, int]  # by split
    reasons: dict[str, int]  # by reason, all of REASONS

    @property
    def records(self) -> int:
        return sum(self.kept.values())


def prepare(
    inputs: list[Path],
    output_dir: Path,
    *,
    val_share: float = 0.04,
    test_share: float = 0.07,
    min_content_chars: int = 20,
    progress: Callable[[int], None] | None = None,
) -> Counts:
    """Write OUTPUTS to `output_dir` from `inputs`: one JSON object a line with "title" and "content", plain or gzipped.

    `val_share` and `test_share` are shares of the titles, `min_content_chars` counts characters after cleaning,
    `progress` is called with the number of input bytes (compressed ones of a .gz) read since its last call.
    Same inputs, same bytes out, on any machine. The outputs appear together at the end or not at all.

    Raises DataError for what a user can put right in the data or the arguments, OSError for what the disk does.
    """
    _check(inputs, val_share, test_share, min_content_chars)
    lines, kept, reasons = 0, dict.fromkeys(SPLITS, 0), dict.fromkeys(REASONS, 0)
    seen: set[bytes] = set()
    output_dir.mkdir(parents=True, exist_ok=True)
    with _together(output_dir, OUTPUTS) as files:
        for path in inputs:
            for number, line in enumerate(_lines(path, progress), start=1):
                lines += 1
                record = read_record(line, min_content_chars)
                if isinstance(record, dict) and _repeats(record, seen):
                    record = DUPLICATE
                if isinstance(record, str):
                    reasons[record] += 1
                    if record in (BROKEN, NOT_AN_OBJECT):
                        files["rejects.jsonl"].write(_json_line(_reject(path, number, record, line)))
                else:
                    record["uid"] = record["uid"] or str(lines)
                    split = split_of(record["title"], val_share, test_share)
                    kept[split] += 1
                    files[f"{split}.jsonl"].write(_json_line(record))
        counts = Counts(lines, kept, reasons)
        assert counts.lines == counts.records + sum(counts.reasons.values()), counts
        _check_usable(counts)
        report = {
            "inputs": [path.name for path in inputs],
            "settings": {"val_share": val_share, "test_share": test_share, "min_content_chars": min_content_chars},
            **asdict(counts),
            "bytes": {split: files[f"{split}.jsonl"].tell() for split in SPLITS},
        }
        files["report.json"].write(json.dumps(report, ensure_ascii=False, indent=2).encode("utf-8") + b"\n")
    return counts


def read_record(line: bytes, min_content_chars: int) -> dict[str, str] | str:
    """The cleaned record of a raw line, {"uid", "title", "content"}, or the reason (one of REASONS) why it has none.

    Needs no other line, so lines can be read in any order and in any process. The uid is "" where the line has none.
    """
    if not line.strip():
        return BLANK
    try:
        source = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of 4,300 digits; brackets nested too deep
        return BROKEN
    if not isinstance(source, dict):
        return NOT_AN_OBJECT

    raw_title = _as_text(source.get("title"))
    title = clean(raw_title)
    if not title:
        return MARKUP_TITLE if "<" in raw_title else NO_TITLE
    content = clean(_as_text(source.get("content")))
    if not content:
        return NO_CONTENT
    if content.casefold() == title.casefold():
        return SAME_AS_TITLE
    if len(content) < min_content_chars:
        return TOO_SHORT
    return {"uid": clean(_as_text(source.get("uid"))), "title": title, "content": content}


def _as_text(value: object) -> str:
    """The text of a field: a string, a number (a book called 1984), or a list of those; anything else has none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(_as_text(item) for item in value if not isinstance(item, list))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if is_number else ""  # pandas writes NaN where a field is missing


def digest_of(record: dict[str, str]) -> bytes:
    """8 bytes, equal for records whose title and content differ in capitals at most.

    Two different records out of 2.25 million share one with a probability of 1.4e-7.
    """
    return _digest(f"{record['title']}\n{record['content']}".casefold())  # cleaned text holds no line break


def _repeats(record: dict[str, str], seen: set[bytes]) -> bool:
    """Whether an equal record is in `seen`, to which this one is added."""
    digest = digest_of(record)
    if digest in seen:
        return True
    seen.add(digest)
    return False


def split_of(title: str, val_share: float, test_share: float) -> str:
    """The split of a title: from a hash, so it depends on no other record, and not on capitals or punctuation."""
    letters = re.sub(r"\W+", " ", title.casefold()).strip()
    position = int.from_bytes(_digest(letters or title), "big") / 2**64  # uniform in [0, 1)
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8"), digest_size=8).digest()


def _check(inputs: list[Path], val_share: float, test_share: float, min_content_chars: int) -> None:
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):  # written so that NaN fails too
        raise DataError(
            f"val_share {val_share} and test_share {test_share} must not be negative and together stay below 1, "
            "so that something is left to train on. Try 0.04 and 0.07."
        )
    if min_content_chars < 1:
        raise DataError(f"min_content_chars is {min_content_chars}; it must be at least 1. Try 20.")
    for path in inputs:
        if path.is_dir():
            raise DataError(f"{path} is a folder. Name the file in it, such as {path / 'trn.json.gz'}.")
        if not path.exists():
            raise DataError(f"There is no file {path}. {WHERE_TO_GET_IT}")


def _check_usable(counts: Counts) -> None:
    if counts.records == 0:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.reasons.items() if count)
        raise DataError(
            f"Not one usable record; lines read: {counts.lines:,}{f' ({reasons})' if reasons else ''}. Expected is one "
            'JSON object a line, such as {"uid": "1", "title": "Steel mug", "content": "A mug of stainless steel."}'
        )
    if counts.kept["train"] == 0:
        raise DataError(
            f"None of the {counts.records:,} usable records is left to train on: their titles all fell into validation "
            "and test. Give more records, or lower --val_share and --test_share."
        )


def _lines(path: Path, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    """The lines of a file as bytes, without a byte-order mark; gzip is known by its first two bytes."""
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        # GzipFile reads a line in Python code; the buffer around it reads lines in C.
        lines = io.BufferedReader(gzip.GzipFile(fileobj=raw, mode="rb"), 1 << 18) if packed else raw
        told = 0
        try:
            for number, line in enumerate(lines):
                if progress is not None and number % LINES_PER_PROGRESS == 0:
                    here = raw.tell()
                    progress(here - told)
                    told = here
                yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is damaged or was cut off ({error}). Download or copy it once more.") from error
        if progress is not None:
            progress(raw.tell() - told)


@contextmanager
def _together(folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, BinaryIO]]:
    """Files to write that take their names only when all of them are whole and on the disk.

    On any exception, Ctrl-C included, they are removed and older files of those names stay as they were.
    """
    temporary = {name: folder / f"{name}.tmp" for name in names}
    files: dict[str, BinaryIO] = {}
    try:
        for name, path in temporary.items():
            files[name] = path.open("wb")
        yield files
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        _rename(temporary, folder)
    except BaseException:
        for file in files.values():
            with suppress(OSError):  # a full disk fails once more when the last buffer is flushed
                file.close()
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise


def _rename(temporary: dict[str, Path], folder: Path) -> None:
    """Give the finished files their names; a Ctrl-C in between comes after the last of them."""
    interrupted = None
    for name, path in temporary.items():
        try:
            path.replace(folder / name)
        except KeyboardInterrupt as error:
            interrupted = error
            if path.exists():
                path.replace(folder / name)
    if os.name == "posix":  # elsewhere a folder cannot be opened, and its names are written through
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if interrupted is not None:
        raise interrupted


def _reject(path: Path, number: int, reason: str, line: bytes) -> dict[str, str | int]:
    start = line[:START_BYTES].rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    return {"input": path.name, "line": number, "reason": reason, "start": start}


def _json_line(record: dict) -> bytes:
    return _encode(record).encode("utf-8") + b"\n"
