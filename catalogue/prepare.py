"""From raw catalogues to `train.jsonl`, `val.jsonl` and `test.jsonl`, with an account of every record.

One pass. Blocks of raw records go to worker processes, which parse, clean and judge each record by itself; what needs
the records before it (duplicates, the order of the outputs) is done here, in the order of the inputs. So the outputs
are the same bytes for any number of workers. Memory is a few blocks plus, for each record kept, about 92 bytes to
find exact duplicates and 250 more to find near ones.
"""

import heapq
import json
import os
from array import array
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from catalogue.corrections import Corrections, take_out
from catalogue.duplicates import THRESHOLD, KeyTable, similarity
from catalogue.index import check_fts5, write_catalogue
from catalogue.inputs import Input, blocks_of
from catalogue.judge import (
    DEFAULTS,
    EXAMPLES,
    Block,
    Candidate,
    Options,
    Reason,
    json_line,
    judge_block,
)
from catalogue.outputs import JOURNAL, OUTPUTS, SPLITS, together
from catalogue.records import START_BYTES, Raw
from catalogue.sources import Source, find_sources
from catalogue.workers import ordered
from text.errors import DataError

MOST_REJECTS_BYTES = 1 << 24  # of rejects.jsonl: a file of noise, unpacked, would fill the disk; all are counted


@dataclass(frozen=True)
class Counts:
    """Where every record of the inputs went: `lines == sum(kept) + sum(reasons)`.

    A line is a line of a JSONL file, blank ones too, an element of a JSON array, a row of a table below its header, a
    product of a feed.
    """

    lines: int
    kept: dict[str, int]  # by split
    reasons: dict[Reason, int]  # all of them
    as_cp1252: int = 0  # of the lines: they are not UTF-8, and were read as cp1252
    corrections: int = 0  # of those kept, all in train

    @property
    def records(self) -> int:
        return sum(self.kept.values())

    def rows(self) -> list[tuple[str, int, float]]:
        """Each kind of line as a table shows it: name, indented where it is part of another; count; share of all."""
        rows = [("lines read", self.lines), *[("  as cp1252, not UTF-8", self.as_cp1252)] * (self.as_cp1252 > 0)]
        rows += [("kept", self.records)]
        for split, count in self.kept.items():
            rows += [(f"  {split}", count)]
            rows += [("    of them corrections", self.corrections)] * (split == "train" and self.corrections > 0)
        rows += [("left out", self.lines - self.records)]
        rows += [(f"  {reason}", count) for reason, count in self.reasons.items() if count]
        return [(name, count, count / self.lines) for name, count in rows]


def prepare(
    inputs: list[Path],
    output_dir: Path,
    options: Options = DEFAULTS,
    *,
    workers: int = 1,
    progress: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Counts:
    """Write OUTPUTS to `output_dir` from `inputs`: files, folders, archives, or `-` for standard input.

    `progress` is called with the number of stored bytes of the inputs read since its last call, `say` with what was
    chosen. The outputs appear together at the end or not at all (`catalogue.outputs`).

    Raises DataError for what a user can put right in the data or the arguments, OSError for what the disk does.
    """
    _check(options, workers)
    if options.catalogue:
        check_fts5()
    if options.report:
        from catalogue.report import token_counter, write_report  # loads matplotlib

        counter = token_counter(options.tokenizer)  # now: a name that is wrong is said before the work
    sources = find_sources(inputs, outputs_in(output_dir), say)
    output_dir.mkdir(parents=True, exist_ok=True)
    with together(output_dir) as paths:
        files: list[Input] = []
        blocks = blocks_of(sources, options, files, progress, say)
        counts, examples = _write_splits(ordered(partial(judge_block, options=options), blocks, workers), paths)
        _check_usable(counts, files)
        report = {
            "inputs": [file.place.name for file in files],
            "settings": {name: getattr(options, name) for name in ("val_share", "test_share", "min_content_chars")}
            | {"near_duplicate_threshold": THRESHOLD if options.drop_near_duplicates else None},
            **asdict(counts),
            "bytes": {split: paths[f"{split}.jsonl"].stat().st_size for split in SPLITS},
        }
        text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
        paths["report.json"].write_text(text, encoding="utf-8", newline="\n")
        if options.catalogue:
            say("building the catalogue index ...")
            write_catalogue(paths["catalogue.sqlite"], paths["train.jsonl"])
        if options.report:
            say("writing the report ...")
            write_report(paths, report["inputs"], counts, examples, counter)
    return counts


def outputs_in(folder: Path) -> list[Path]:
    """What is written into a data folder, which is no catalogue."""
    return [folder / name for name in (*OUTPUTS, JOURNAL)]


def _write_splits(
    judged: Iterable[tuple[Block, tuple[list[Candidate | Reason], int]]], paths: dict[str, Path]
) -> tuple[Counts, list[tuple]]:
    """The pass itself: writes the splits and rejects.jsonl, returns the account and the examples for the report."""
    lines, kept, reasons, as_cp1252 = 0, dict.fromkeys(SPLITS, 0), dict.fromkeys(Reason, 0), 0
    examples: list[Candidate] = []  # those with the smallest digests, so a sample of the whole catalogue
    corrections = Corrections()
    with ExitStack() as stack:
        splits = _Splits([stack.enter_context(paths[f"{split}.jsonl"].open("w+b")) for split in SPLITS])
        rejects = stack.enter_context(paths["rejects.jsonl"].open("wb"))
        for block, (outcomes, in_block) in judged:
            lines += len(block.records)
            as_cp1252 += in_block
            for number, (raw, outcome) in enumerate(zip(block.records, outcomes, strict=True), block.number):
                if isinstance(outcome, Candidate) and outcome.corrected:
                    reasons[Reason.CORRECTED] += corrections.add(outcome.corrected)
                    continue
                reason = splits.add(outcome) if isinstance(outcome, Candidate) else outcome
                if reason is None and isinstance(outcome, Candidate):
                    kept[outcome.split] += 1
                    if outcome.example:
                        examples = heapq.nsmallest(EXAMPLES, [*examples, outcome], key=attrgetter("digest"))
                    continue
                reasons[reason] += 1
                if reason.is_listed and rejects.tell() < MOST_REJECTS_BYTES:
                    rejects.write(json_line(_reject(block.source, number, reason, raw)))
    corrected = corrections.records()
    if corrected:  # only then is what was written read again
        for split in SPLITS:
            replaced = take_out(paths[f"{split}.jsonl"], partial(corrections.replace, split=split))
            kept[split] -= replaced
            reasons[Reason.CORRECTED] += replaced
        with paths["train.jsonl"].open("ab") as file:
            file.writelines(map(json_line, corrected))
        kept["train"] += len(corrected)
    counts = Counts(lines, kept, reasons, as_cp1252, len(corrected))
    if counts.lines != counts.records + sum(counts.reasons.values()):
        raise AssertionError(f"lines are unaccounted for: {counts}")
    return counts, [candidate.example for candidate in examples]


class _Splits:
    """The files of the splits, and of each record in them what it takes to know a duplicate of it."""

    def __init__(self, files: list[BinaryIO]):
        """`files`: of SPLITS, to be written and read."""
        self._files = files
        self._split, self._offset = array("B"), array("Q")  # of each record: 9 bytes
        self._digests: set[bytes] = set()
        self._table = KeyTable()

    def add(self, candidate: Candidate) -> Reason | None:
        """Write `candidate`, or say what kind of duplicate it is."""
        if candidate.digest in self._digests:
            return Reason.DUPLICATE
        self._digests.add(candidate.digest)
        if candidate.keys is not None:
            found = self._table.find(candidate.keys)
            content = json.loads(candidate.line)["content"] if found else ""
            if any(similarity(content, self._content(record)) >= THRESHOLD for record in found):
                return Reason.NEAR_DUPLICATE
            self._table.add(candidate.keys, record=len(self._split))
        split = SPLITS.index(candidate.split)
        self._split.append(split)
        self._offset.append(self._files[split].tell())
        self._files[split].write(candidate.line)
        return None

    def _content(self, record: int) -> str:
        """The content of the record that was written as number `record`, from 0."""
        file = self._files[self._split[record]]
        file.seek(self._offset[record])
        line = file.readline()
        file.seek(0, os.SEEK_END)
        return json.loads(line)["content"]


def _reject(source: Source, number: int, reason: str, raw: Raw) -> dict[str, str | int]:
    start = raw if isinstance(raw, bytes) else ",".join(raw)[:START_BYTES].encode("utf-8", "surrogateescape")
    start = start[:START_BYTES].rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    return {"input": source.name, "line": number, "reason": reason, "start": start}


def _check(options: Options, workers: int) -> None:
    val, test = options.val_share, options.test_share
    if not (val >= 0 and test >= 0 and val + test < 1):  # written so that NaN fails too
        raise DataError(
            f"val_share {val} and test_share {test} must not be negative and together stay below 1, "
            "so that something is left to train on. Try 0.04 and 0.07."
        )
    if options.min_content_chars < 1:
        raise DataError(f"min_content_chars is {options.min_content_chars}; it must be at least 1. Try 20.")
    if workers < 1:
        raise DataError(f"workers is {workers}; it must be at least 1.")


def _check_usable(counts: Counts, files: list[Input]) -> None:
    if counts.records == 0:
        raise DataError(f"Not one usable record. {_cause(counts, files)}")
    if counts.kept["train"] == 0:
        raise DataError(
            f"None of the {counts.records:,} usable records is left to train on: their titles all fell into validation "
            "and test. Give more records, or lower --val_share and --test_share."
        )


def _cause(counts: Counts, files: list[Input]) -> str:
    """Why no record was usable, and what to try."""
    if not counts.lines:
        return "There is nothing in it: give a file with products."
    most = max(counts.reasons, key=counts.reasons.get)
    unknown = next((file for file in files if file.fields.found < 2), files[0])
    if most in (Reason.NO_TITLE, Reason.NO_CONTENT) and unknown.fields.found < 2:
        return f"{unknown}."
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.reasons.items() if count)
    what_to_try = {
        Reason.BROKEN: f"It was taken for {files[0].layout.what}: if it is none, export it anew, as CSV.",
        Reason.NOT_AN_OBJECT: 'A product is an object with fields: {"title": "Steel mug", "content": "A mug of ..."}.',
        Reason.NOT_UTF8: "Name the encoding with --encoding.",
        Reason.TOO_SHORT: "Name another field with --content_field, or lower --min_content_chars.",
    }.get(most, "Name other fields with --title_field and --content_field.")
    return f"Lines read: {counts.lines:,} ({reasons}). {what_to_try}"
