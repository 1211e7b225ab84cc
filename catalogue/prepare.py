"""From raw catalogues to `train.jsonl`, `val.jsonl` and `test.jsonl`, with an account of every record.

One pass. Blocks of raw records go to worker processes, which parse, clean and judge each record by itself; what needs
the records before it (duplicates, the order of the outputs) is done here, in the order of the inputs. So the outputs
are the same bytes for any number of workers. Memory is a few blocks plus, for each record kept, about 92 bytes to
find exact duplicates and 250 more to find near ones.
"""

import heapq
import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from catalogue.duplicates import THRESHOLD, KeyTable, similarity
from catalogue.fields import choose_fields, describe
from catalogue.index import check_fts5, write_catalogue
from catalogue.judge import DEFAULTS, EXAMPLES, Block, Candidate, Options, Reason, json_line, judge_block, parse
from catalogue.outputs import JOURNAL, OUTPUTS, SPLITS, together
from catalogue.records import START_BYTES, Raw, read_layout
from catalogue.sources import Source, find_sources, open_source
from catalogue.workers import ordered
from text.errors import DataError

BLOCK_BYTES, BLOCK_RECORDS = 1 << 18, 2_000  # a block, what a worker gets at a time, is full at either
FIELDS_SAMPLE = 200  # records of a block that are looked at to choose the fields; all of it when they are not there
MOST_NAMES = 1_000


@dataclass(frozen=True)
class Counts:
    """Where every record of the inputs went: `lines == sum(kept) + sum(reasons)`.

    A line is a line of a JSONL file, blank ones too, an element of a JSON array, or a row of a table below its header.
    """

    lines: int
    kept: dict[str, int]  # by split
    reasons: dict[str, int]  # by reason, all of them
    looks_like_latin1: int = 0  # of those that are not UTF-8

    @property
    def records(self) -> int:
        return sum(self.kept.values())

    def rows(self) -> list[tuple[str, int, float]]:
        """Each kind of line as a table shows it: name, indented where it is part of another; count; share of all."""
        rows = [("lines read", self.lines), ("kept", self.records)]
        rows += [(f"  {split}", count) for split, count in self.kept.items()]
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
        blocks = _blocks(sources, options, progress, say)
        counts, examples = _write_splits(ordered(partial(judge_block, options=options), blocks, workers), paths)
        _check_usable(counts)
        report = {
            "inputs": [source.name for source in sources],
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


def _blocks(sources: list[Source], options: Options, progress, say) -> Iterator[Block]:
    """The raw records of all sources, in order."""
    before = 0
    for source in sources:
        with open_source(source, options.encoding, progress) as stream:
            header, records = read_layout(stream, source.name, options.fields)
            number = 1 if header is None else 2  # a table's first row is its header
            fields, names = None, list(header or ())
            while block := _next_block(records):
                if fields is None or (fields.found < 2 and header is None):  # look on until both are found
                    chosen = choose_fields(names, options.fields)
                    for sample in (block[:FIELDS_SAMPLE], block) if header is None else ():
                        if chosen.found < 2:
                            keys = [key for record in map(parse, sample) if isinstance(record, dict) for key in record]
                            names = list(dict.fromkeys([*names, *keys]))[:MOST_NAMES]
                            chosen = choose_fields(names, options.fields)
                    if fields is None or chosen.found > fields.found:
                        say(f"{source}: {describe(chosen, names)}")
                    fields = chosen
                yield Block(source, header, fields, number, before, block)
                number, before = number + len(block), before + len(block)


def _next_block(records: Iterator[Raw]) -> list[Raw]:
    block, size = [], 0
    for raw in islice(records, BLOCK_RECORDS):
        block.append(raw)
        size += len(raw) if isinstance(raw, bytes) else sum(map(len, raw))
        if size >= BLOCK_BYTES:
            break
    return block


def outputs_in(folder: Path) -> list[Path]:
    """What is written into a data folder, which is no catalogue."""
    return [folder / name for name in (*OUTPUTS, JOURNAL)]


def _write_splits(
    judged: Iterable[tuple[Block, list[Candidate | Reason]]], paths: dict[str, Path]
) -> tuple[Counts, list[tuple]]:
    """The pass itself: writes the splits and rejects.jsonl, returns the account and the examples for the report."""
    lines, kept, reasons, latin1 = 0, dict.fromkeys(SPLITS, 0), dict.fromkeys(Reason, 0), 0
    examples: list[Candidate] = []  # those with the smallest digests, so a sample of the whole catalogue
    with ExitStack() as stack:
        splits = _Splits([stack.enter_context(paths[f"{split}.jsonl"].open("w+b")) for split in SPLITS])
        rejects = stack.enter_context(paths["rejects.jsonl"].open("wb"))
        for block, outcomes in judged:
            lines += len(block.records)
            for number, (raw, outcome) in enumerate(zip(block.records, outcomes, strict=True), block.number):
                reason = splits.add(outcome) if isinstance(outcome, Candidate) else outcome
                if reason is None:
                    kept[outcome.split] += 1
                    if outcome.example:
                        examples = heapq.nsmallest(EXAMPLES, [*examples, outcome], key=attrgetter("digest"))
                    continue
                reasons[reason] += 1
                latin1 += reason == Reason.NOT_UTF8 and looks_like_latin1(raw)
                if reason.is_listed:
                    rejects.write(json_line(_reject(block.source, number, reason, raw)))
    counts = Counts(lines, kept, reasons, latin1)
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


def looks_like_latin1(raw: Raw) -> bool:
    """Whether bytes that are not UTF-8 are those of Western European letters in cp1252 or latin-1."""
    raw = raw if isinstance(raw, bytes) else "".join(raw).encode("utf-8", "surrogateescape")
    high = re.findall(rb"[\x80-\xff]+", raw)
    letters = re.findall(rb"(?<=[A-Za-z ])[\xc0-\xff]{1,2}(?=[A-Za-z ,.;])", raw)
    return len(letters) * 2 >= len(high) > 0


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


def _check_usable(counts: Counts) -> None:
    if counts.records == 0:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.reasons.items() if count)
        raise DataError(
            f"Not one usable record; lines read: {counts.lines:,}{f' ({reasons})' if reasons else ''}. "
            f"{latin1_hint(counts)}Expected is one "
            'JSON object a line, such as {"uid": "1", "title": "Steel mug", "content": "A mug of stainless steel."}, '
            "a JSON array of them, or a table with such columns; other names are given with --title_field and "
            "--content_field."
        )
    if counts.kept["train"] == 0:
        raise DataError(
            f"None of the {counts.records:,} usable records is left to train on: their titles all fell into validation "
            "and test. Give more records, or lower --val_share and --test_share."
        )


def latin1_hint(counts: Counts) -> str:
    """What to try when lines look like another encoding; "" when none does. Ends in a space."""
    if not counts.looks_like_latin1:
        return ""
    return (
        f"{counts.looks_like_latin1:,} lines that are not UTF-8 look like cp1252 (the encoding of Windows, alike "
        "latin-1): try --encoding cp1252. "
    )
