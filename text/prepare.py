"""From raw catalogues to `train.jsonl`, `val.jsonl` and `test.jsonl`, with an account of every record.

One pass. Blocks of raw records go to worker processes, which parse, clean and judge each record by itself; what needs
the records before it (duplicates, the order of the outputs) is done here, in the order of the inputs. So the outputs
are the same bytes for any number of workers. Memory is a few blocks plus, for each record kept, about 92 bytes to
find exact duplicates and 250 more to find near ones.
"""

import heapq
import json
import math
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from text.catalogue import write_catalogue
from text.clean import clean
from text.duplicates import THRESHOLD, KeyTable, digest, digest_of, near_keys, similarity
from text.errors import DataError
from text.fields import Fields, choose_fields, describe
from text.outputs import together
from text.records import Layout, Raw, TooLong, read_layout
from text.sources import Source, find_sources, open_source
from text.workers import ordered

SPLITS = ("train", "val", "test")
OUTPUTS = (
    *(f"{split}.jsonl" for split in SPLITS),
    "rejects.jsonl",
    "report.json",
    "catalogue.sqlite",
    "report.md",
    "report.html",
)

# Why a record was left out, in the order in which the questions are asked.
BLANK = "blank line"
TOO_LONG = "longer than 4 MB"
NOT_UTF8 = "not UTF-8"
BROKEN = "broken line"
NOT_AN_OBJECT = "not an object"
NO_TITLE = "missing title"
MARKUP_TITLE = "markup fragment as title"
NO_CONTENT = "empty content"
SAME_AS_TITLE = "content equal to title"
TOO_SHORT = "content too short"
DUPLICATE = "exact duplicate"
NEAR_DUPLICATE = "near duplicate"
UNREADABLE = (TOO_LONG, NOT_UTF8, BROKEN, NOT_AN_OBJECT)  # listed in rejects.jsonl
REASONS = (
    BLANK,
    *UNREADABLE,
    NO_TITLE,
    MARKUP_TITLE,
    NO_CONTENT,
    SAME_AS_TITLE,
    TOO_SHORT,
    DUPLICATE,
    NEAR_DUPLICATE,
)

START_BYTES = 200  # of a record that cannot be read, for rejects.jsonl
BLOCK_BYTES, BLOCK_RECORDS = 1 << 18, 2_000  # a block, what a worker gets at a time, is full at either
FIELDS_SAMPLE = 200  # records that are looked at to choose the fields
EXAMPLES = 10  # before and after cleaning, for the report
EXAMPLE_CHARS = 600

_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would build the encoder anew for each line


@dataclass(frozen=True)
class Options:
    """What is made of the inputs; the same options and inputs give the same bytes."""

    val_share: float = 0.04  # of the titles
    test_share: float = 0.07  # of the titles
    min_content_chars: int = 20  # after cleaning
    drop_near_duplicates: bool = True  # of those near to one another the first is kept
    fields: Fields = Fields()  # those that the user named
    encoding: str | None = None  # of the inputs; None: UTF-8, or UTF-16 where a byte-order mark says so
    catalogue: bool = True  # make catalogue.sqlite
    report: bool = False  # make report.md and report.html (loads matplotlib)
    tokenizer: str | None = None  # folder or hub id, counts tokens for the report; None: they are estimated


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


class Block(NamedTuple):
    """Consecutive raw records of one source."""

    source: Source
    layout: Layout
    fields: Fields
    number: int  # of the first record in its source
    before: int  # records of all inputs before the first
    records: list[Raw]


class Candidate(NamedTuple):
    """A record that is good by itself; whether it is a duplicate remains to be seen."""

    line: bytes  # as it will stand in its split
    split: str
    digest: bytes
    example: tuple[bytes, str, str] | None  # digest, title and content before cleaning, when cleaning changed them


class Judged(NamedTuple):
    """What became of a block: for each record a candidate or the reason why it is none."""

    outcomes: list[Candidate | str]
    keys: object  # (candidates, BANDS + 1) uint64 as NumPy array, or None when near duplicates stay


def prepare(
    inputs: list[Path],
    output_dir: Path,
    options: Options = Options(),
    *,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Counts:
    """Write OUTPUTS to `output_dir` from `inputs`: files, folders, archives, or `-` for standard input.

    `progress` is called with the number of stored bytes of the inputs read since its last call, `say` with what was
    chosen. The outputs appear together at the end or not at all (`text.outputs`).

    Raises DataError for what a user can put right in the data or the arguments, OSError for what the disk does.
    """
    _check(options, workers)
    sources = find_sources(inputs)
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
            from text.report import write_report

            say("writing the report ...")
            write_report(paths, report, examples, options.tokenizer)
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
                        rejects.write(_json_line(_reject(block.source, number, outcome, raw)))
    counts = Counts(lines, kept, reasons, latin1)
    assert counts.lines == counts.records + sum(counts.reasons.values()), counts
    return counts, [_example(line, *before) for _, before, line in sorted(examples, reverse=True)]


# ---- blocks of raw records, and what a worker does with one


def _blocks(sources: list[Source], options: Options, progress, say) -> Iterator[Block]:
    """The raw records of all sources, in order."""
    before = 0
    for source in sources:
        with open_source(source, options.encoding, progress) as stream:
            layout, records = read_layout(stream, source.name, options.fields)
            number, fields = layout.first, None
            while block := _next_block(records):
                if fields is None:
                    names = layout.header or _names(block)
                    fields = choose_fields(names, options.fields)
                    say(f"{source}: {describe(fields, names)}")
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
    """The keys of the first objects among raw JSON records."""
    parsed = (_parse(raw) for raw in records[:FIELDS_SAMPLE])
    return [key for record in parsed if isinstance(record, dict) for key in record]


def judge_block(block: Block, options: Options) -> Judged:
    """What becomes of each record of a block, as far as it can be told without the other blocks."""
    outcomes, contents, examples = [], [], []
    for number, raw in enumerate(block.records, block.before + 1):
        source = _parse(raw) if isinstance(raw, bytes) else _from_row(raw, block.layout.header)
        record = source if isinstance(source, str) else read_record(source, block.fields, options.min_content_chars)
        if isinstance(record, str):
            outcomes.append(record)
            continue
        record["uid"] = record["uid"] or str(number)
        before = tuple(_as_text(source.get(name)) for name in (block.fields.title, block.fields.content))
        own_digest = digest_of(record)
        if sum(map(len, before)) <= EXAMPLE_CHARS and _changed(before, record):
            examples.append((own_digest, len(outcomes), before))
        split = split_of(record["title"], options.val_share, options.test_share)
        outcomes.append(Candidate(_json_line(record), split, own_digest, None))
        contents.append(record["content"])
    for _, i, before in heapq.nsmallest(EXAMPLES, examples):
        outcomes[i] = outcomes[i]._replace(example=before)
    keys = near_keys(contents) if contents and options.drop_near_duplicates else None
    return Judged(outcomes, keys)


def _parse(raw: bytes) -> dict | str:
    """The object of a raw JSON record, or the reason why there is none."""
    if isinstance(raw, TooLong):
        return TOO_LONG
    if not raw.strip():
        return BLANK
    try:
        source = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError):  # not JSON, a number of 4,300 digits; brackets nested too deep
        return BROKEN
    return source if isinstance(source, dict) else NOT_AN_OBJECT


def _from_row(row: list[str], header: tuple[str, ...]) -> dict | str:
    """The cells of a row by the names of their columns, or the reason why there are none."""
    if not any(map(str.strip, row)):
        return BLANK
    try:
        "".join(row).encode("utf-8")
    except UnicodeEncodeError:
        return NOT_UTF8
    if len(row) > len(header):  # a delimiter inside a cell that was not quoted: which one, nobody can tell
        return BROKEN
    return dict(zip(header, row, strict=False))


def read_record(source: dict, fields: Fields, min_content_chars: int) -> dict[str, str] | str:
    """The cleaned record of a parsed one, {"uid", "title", "content"}, or the reason (one of REASONS) why it has none.

    Needs no other record, so records can be read in any order and in any process. The uid is "" where there is none.
    """
    raw_title = _as_text(source.get(fields.title))
    title = clean(raw_title)
    if not title:
        return MARKUP_TITLE if "<" in raw_title else NO_TITLE
    content = clean(_as_text(source.get(fields.content)))
    if not content:
        return NO_CONTENT
    if content.casefold() == title.casefold():
        return SAME_AS_TITLE
    if len(content) < min_content_chars:
        return TOO_SHORT
    return {"uid": clean(_as_text(source.get(fields.uid))), "title": title, "content": content}


def _as_text(value: object) -> str:
    """The text of a field: a string, a number (a book called 1984), or a list of those; anything else has none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(_as_text(item) for item in value if not isinstance(item, list))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if is_number else ""  # pandas writes NaN where a field is missing


def split_of(title: str, val_share: float, test_share: float) -> str:
    """The split of a title: from a hash, so it depends on no other record, and not on capitals or punctuation."""
    letters = re.sub(r"\W+", " ", title.casefold()).strip()
    position = int.from_bytes(digest(letters or title), "big") / 2**64  # uniform in [0, 1)
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


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


def _changed(before: tuple[str, str], record: dict[str, str]) -> bool:
    """Whether cleaning did more than to move white space."""
    return "".join(" ".join(before).split()) != "".join(f"{record['title']}{record['content']}".split())


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


def _json_line(record: dict) -> bytes:
    return _encode(record).encode("utf-8") + b"\n"


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
