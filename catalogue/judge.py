"""One raw record judged by itself: parsed, cleaned, a candidate or the reason why it is none.

What a worker process of `catalogue.prepare` does. Nothing here looks at another record.
"""

import heapq
import json
import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from catalogue.clean import clean
from catalogue.duplicates import digest, digest_of, near_keys
from catalogue.fields import Fields
from catalogue.records import Layout, Raw, TooLong, Unclosed
from catalogue.sources import Source

SPLITS = ("train", "val", "test")

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


DEFAULTS = Options()


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
    example: tuple[str, str] | None  # title and content before cleaning, of a few that it changed


class Judged(NamedTuple):
    """What became of a block: for each record a candidate or the reason why it is none."""

    outcomes: list[Candidate | str]
    keys: np.ndarray | None  # (candidates, BANDS + 1) uint64; None when near duplicates stay, or without candidates


def judge_block(block: Block, options: Options) -> Judged:
    """What becomes of each record of a block, as far as it can be told without the other blocks."""
    outcomes, contents, examples = [], [], []
    for number, raw in enumerate(block.records, block.before + 1):
        source = parse(raw) if isinstance(raw, bytes) else _from_row(raw, block.layout.header)
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
        outcomes.append(Candidate(json_line(record), split, own_digest, None))
        contents.append(record["content"])
    for _, i, before in heapq.nsmallest(EXAMPLES, examples):
        outcomes[i] = outcomes[i]._replace(example=before)
    keys = near_keys(contents) if contents and options.drop_near_duplicates else None
    return Judged(outcomes, keys)


def parse(raw: bytes) -> dict | str:
    """The object of a raw JSON record, or the reason why there is none."""
    if isinstance(raw, TooLong):
        return TOO_LONG
    if isinstance(raw, Unclosed):
        return BROKEN
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


def _changed(before: tuple[str, str], record: dict[str, str]) -> bool:
    """Whether cleaning did more than to move white space."""
    return "".join(" ".join(before).split()) != "".join(f"{record['title']}{record['content']}".split())


def json_line(record: dict) -> bytes:
    """A record as it stands in a JSONL file."""
    return _encode(record).encode("utf-8") + b"\n"
