"""From raw catalogues to `train.jsonl`, `val.jsonl` and `test.jsonl`, with an account of every record.

One pass. Blocks of raw records go to worker processes, which parse, clean and judge each record by itself; what needs
the records before it (duplicates, the order of the outputs) is done here, in the order of the inputs. So the outputs
are the same bytes for any number of workers. Memory is a few blocks plus, for each record kept, about 92 bytes to
find exact duplicates and 250 more to find near ones.
"""

import heapq
import json
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from catalogue.duplicates import THRESHOLD, KeyTable, similarity
from catalogue.fields import choose_fields, describe
from catalogue.index import check_fts5, write_catalogue
from catalogue.judge import (
    DEFAULTS,
    DUPLICATE,
    EXAMPLES,
    NEAR_DUPLICATE,
    NOT_UTF8,
    REASONS,
    SPLITS,
    UNREADABLE,
    Block,
    Candidate,
    Options,
    json_line,
    judge_block,
    parse,
)
from catalogue.outputs import together
from catalogue.records import Raw, read_layout
from catalogue.sources import Source, find_sources, open_source
from catalogue.workers import ordered
from text.errors import DataError

OUTPUTS = (
    *(f"{split}.jsonl" for split in SPLITS),
    "rejects.jsonl",
    "report.json",
    "catalogue.sqlite",
    "report.md",
    "report.html",
)

START_BYTES = 200  # of a record that cannot be read, for rejects.jsonl
BLOCK_BYTES, BLOCK_RECORDS = 1 << 18, 2_000  # a block, what a worker gets at a time, is full at either
FIELDS_SAMPLE = 200  # records of a block that are looked at to choose the fields; all of it when they are not there
MOST_NAMES = 1_000


@dataclass(frozen=True)
class Counts:
    """Where every record of the inputs went: `lines == sum(kept) + sum(reasons)`.

    A line is a line of a JSONL file, blank ones too, an element of a JSON array, or a row of a table without its
    header.
    """

    lines: int
    kept: dict[str, int]  # by split
    reasons: dict[str, int]  # by reason, all of REASONS
    looks_like_latin1: int = 0  # of those that are not UTF-8

    @property
    def records(self) -> int:
        return sum(self.kept.values())


def prepare(
    inputs: list[Path],
    output_dir: Path,
    options: Options = DEFAULTS,
    *,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
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
    sources = find_sources(inputs, [output_dir / name for name in OUTPUTS])
    output_dir.mkdir(parents=True, exist_ok=True)
    with together(output_dir, OUTPUTS) as paths:
        counts, examples = _write_splits(sources, paths, options, workers, progress, say)
        _check_usable(counts)
        report = {
            "inputs": [source.name for source in sources],
            "settings": {
                "val_share": options.val_share,
                "test_share": options.test_share,
                "min_content_chars": options.min_content_chars,
                "near_duplicate_threshold": THRESHOLD if options.drop_near_duplicates else None,
            },
            **asdict(counts),
            "bytes": {split: paths[f"{split}.jsonl"].stat().st_size for split in SPLITS},
        }
        paths["report.json"].write_text(
            json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n"
        )
        if options.catalogue:
            say("building the catalogue index ...")
            write_catalogue(paths["catalogue.sqlite"], paths["train.jsonl"])
        if options.report:
            say("writing the report ...")
            write_report(paths, report, examples, counter)
    return counts


def _write_splits(
    sources: list[Source],
    paths: dict[str, Path],
    options: Options,
    workers: int,
    progress: Callable[[int], None] | None,
    say: Callable[[str], None],
) -> tuple[Counts, list[dict]]:
    """The pass itself: writes the splits and rejects.jsonl, returns the account and the examples for the report."""
    lines, kept, reasons, latin1 = 0, dict.fromkeys(SPLITS, 0), dict.fromkeys(REASONS, 0), 0
    seen: set[bytes] = set()
    examples: list[tuple] = []  # a heap of the EXAMPLES smallest digests, so a sample of the whole catalogue
    with _SplitFiles(paths) as splits, paths["rejects.jsonl"].open("wb") as rejects:
        near = _NearDuplicates(splits) if options.drop_near_duplicates else None
        blocks = _blocks(sources, options, progress, say)
        for block, judged in ordered(partial(judge_block, options=options), blocks, workers):
            lines += len(block.records)
            keys = iter(judged.keys if judged.keys is not None else ())
            for number, (raw, outcome) in enumerate(zip(block.records, judged.outcomes, strict=True), block.number):
                if isinstance(outcome, Candidate):
                    own_keys = next(keys, None)
                    if outcome.digest in seen:
                        outcome = DUPLICATE
                    else:
                        seen.add(outcome.digest)
                        if near and near.holds(outcome, own_keys):
                            outcome = NEAR_DUPLICATE
                if isinstance(outcome, Candidate):
                    kept[outcome.split] += 1
                    splits.write(outcome)
                    _keep_example(examples, outcome)
                else:
                    reasons[outcome] += 1
                    latin1 += outcome == NOT_UTF8 and looks_like_latin1(raw)
                    if outcome in UNREADABLE:
                        rejects.write(json_line(_reject(block.source, number, outcome, raw)))
    counts = Counts(lines, kept, reasons, latin1)
    if counts.lines != counts.records + sum(counts.reasons.values()):
        raise AssertionError(f"lines are unaccounted for: {counts}")
    return counts, [_example(line, *before) for _, before, line in sorted(examples, reverse=True)]


# ---- blocks of raw records, and what a worker does with one


def _blocks(sources: list[Source], options: Options, progress, say) -> Iterator[Block]:
    """The raw records of all sources, in order."""
    before = 0
    for source in sources:
        with open_source(source, options.encoding, progress) as stream:
            layout, records = read_layout(stream, source.name, options.fields)
            number, fields, names = layout.first, None, list(layout.header)
            while block := _next_block(records):
                if fields is None or (fields.found < 2 and layout.kind != "table"):  # look on until both are found
                    chosen = choose_fields(names, options.fields)
                    for sample in (block[:FIELDS_SAMPLE], block):
                        if layout.kind != "table" and chosen.found < 2:
                            names = list(dict.fromkeys([*names, *_names(sample)]))[:MOST_NAMES]
                            chosen = choose_fields(names, options.fields)
                    if fields is None or chosen.found > fields.found:
                        say(f"{source}: {describe(chosen, names)}")
                    fields = chosen
                yield Block(source, layout, fields, number, before, block)
                number, before = number + len(block), before + len(block)


def _next_block(records: Iterator[Raw]) -> list[Raw]:
    block, size = [], 0
    for raw in islice(records, BLOCK_RECORDS):
        block.append(raw)
        size += len(raw) if isinstance(raw, bytes) else sum(map(len, raw))
        if size >= BLOCK_BYTES:
            break
    return block


def _names(records: list[Raw]) -> list[str]:
    """The keys of the objects among raw JSON records."""
    parsed = map(parse, records)
    return [key for record in parsed if isinstance(record, dict) for key in record]


# ---- what needs the records before


class _SplitFiles:
    """The files of the splits while they are written, and where in them each record lies."""

    def __init__(self, paths: dict[str, Path]):
        self._paths = [paths[f"{split}.jsonl"] for split in SPLITS]
        self._split, self._offset = array("B"), array("Q")  # of each record: 9 bytes

    def __enter__(self) -> "_SplitFiles":
        with ExitStack() as stack:
            self._writers = [stack.enter_context(path.open("wb")) for path in self._paths]
            self._readers = [stack.enter_context(path.open("rb")) for path in self._paths]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def __len__(self) -> int:
        return len(self._split)

    def write(self, candidate: Candidate) -> None:
        split = SPLITS.index(candidate.split)
        self._split.append(split)
        self._offset.append(self._writers[split].tell())
        self._writers[split].write(candidate.line)

    def content(self, record: int) -> str:
        """The content of the record that was written as number `record`, from 0."""
        split = self._split[record]
        self._writers[split].flush()
        self._readers[split].seek(self._offset[record])
        return json.loads(self._readers[split].readline())["content"]


class _NearDuplicates:
    """The contents of the records that were written, as far as it takes to know a near one."""

    def __init__(self, splits: _SplitFiles):
        self._splits, self._table = splits, KeyTable()

    def holds(self, candidate: Candidate, keys) -> bool:
        """Whether `candidate` is near to a record that was written. If it is not, it is about to be written."""
        found = self._table.find(keys)
        if found:
            content = json.loads(candidate.line)["content"]
            if any(similarity(content, self._splits.content(record)) >= THRESHOLD for record in found):
                return True
        self._table.add(keys, record=len(self._splits))
        return False


# ---- what is said of it


def looks_like_latin1(raw: Raw) -> bool:
    """Whether bytes that are not UTF-8 are those of Western European letters in cp1252 or latin-1."""
    raw = raw if isinstance(raw, bytes) else "".join(raw).encode("utf-8", "surrogateescape")
    high = re.findall(rb"[\x80-\xff]+", raw)
    letters = re.findall(rb"(?<=[A-Za-z ])[\xc0-\xff]{1,2}(?=[A-Za-z ,.;])", raw)
    return len(letters) * 2 >= len(high) > 0


def _keep_example(examples: list[tuple], candidate: Candidate) -> None:
    if candidate.example is None:
        return
    order = tuple(255 - byte for byte in candidate.digest)  # heapq keeps the largest: of these, the smallest digest
    heapq.heappush(examples, (order, candidate.example, candidate.line))
    if len(examples) > EXAMPLES:
        heapq.heappop(examples)


def _example(line: bytes, title: str, content: str) -> dict:
    return {"before": {"title": title, "content": content}, "after": json.loads(line)}


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
