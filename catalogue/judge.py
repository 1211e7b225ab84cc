"""One raw record judged by itself: parsed, cleaned, a candidate or the reason why it is none.

What a worker process of `catalogue.prepare` does. Nothing here looks at another record.
"""

import heapq
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from catalogue.clean import clean
from catalogue.corrections import letters_of, verdict_of
from catalogue.duplicates import digest, near_keys
from catalogue.encoding import cells_in_cp1252, looks_like_cp1252
from catalogue.fields import MOST_ATTRIBUTE_CHARS, Fields, attribute_name
from catalogue.records import Broken, Raw, TooLong
from catalogue.sources import Source
from text.stream import Record


class Reason(StrEnum):
    """Why a record was left out, in the order in which the questions are asked."""

    BLANK = "blank line"
    TOO_LONG = "longer than 4 MB"
    NOT_UTF8 = "not UTF-8"
    BROKEN = "broken line"
    NOT_AN_OBJECT = "not an object"
    REJECTED = "rejected by its reader"
    NO_TITLE = "missing title"
    MARKUP_TITLE = "markup fragment as title"
    NO_CONTENT = "empty content"
    SAME_AS_TITLE = "content equal to title"
    TOO_SHORT = "content too short"
    DUPLICATE = "exact duplicate"
    NEAR_DUPLICATE = "near duplicate"
    CORRECTED = "replaced by a correction"

    @property
    def is_listed(self) -> bool:
        """Whether such a record is listed in rejects.jsonl: nobody could read it."""
        return self in (Reason.TOO_LONG, Reason.NOT_UTF8, Reason.BROKEN, Reason.NOT_AN_OBJECT)


CORRECTION_FIELDS = Fields("title", "content", "uid")
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
    encoding: str | None = None  # of the inputs; None: by evidence
    sheet: str | None = None  # of spreadsheets; None: the first
    catalogue: bool = True  # make catalogue.sqlite
    report: bool = False  # make report.html (loads matplotlib)
    tokenizer: str | None = None  # folder or hub id, counts tokens for the report; None: they are estimated


DEFAULTS = Options()


class Block(NamedTuple):
    """Consecutive raw records of one source."""

    source: Source
    header: tuple[str, ...] | None  # of a table
    fields: Fields
    number: int  # of the first record in its source
    before: int  # records of all inputs before the first
    records: list[Raw]


@dataclass(slots=True)
class Candidate:
    """A record that is good by itself; whether it is a duplicate remains to be seen."""

    line: bytes  # as it will stand in its split
    split: str
    digest: bytes  # equal for records whose title and content differ in capitals at most
    keys: np.ndarray | None = None  # (BANDS + 1,) uint64; None when near duplicates stay
    example: tuple | None = None  # (title, content) before and after cleaning, of a few that it changed
    corrected: Record | None = None  # the record, where it is a correction: no split, no duplicate concerns it


def judge_block(block: Block, options: Options) -> tuple[list[Candidate | Reason], int]:
    """What becomes of each record of a block, as far as it can be told without the other blocks; and how many of them
    were no UTF-8 and were read as cp1252."""
    outcomes: list[Candidate | Reason] = []
    candidates, contents, changed, as_cp1252 = [], [], [], 0
    for number, raw in enumerate(block.records, block.before + 1):
        source, repaired = fields_of(raw, block.header)
        as_cp1252 += repaired
        verdict = None if isinstance(source, Reason) else verdict_of(source)
        if isinstance(source, Reason):
            record = source
        elif verdict:  # a person wrote it or read it: no length is too short
            record = Reason.REJECTED if verdict == "reject" else read_record(source, CORRECTION_FIELDS, 1)
        else:
            record = read_record(source, block.fields, options.min_content_chars)
        if isinstance(record, Reason):
            outcomes.append(record)
            continue
        record["uid"] = record["uid"] or str(number)
        if verdict:
            outcomes.append(Candidate(json_line(record), "train", b"", corrected=record))
            continue
        split = split_of(record["title"], options.val_share, options.test_share)
        text = f"{record['title']}\n{record['content']}"  # cleaned text holds no line break
        candidate = Candidate(json_line(record), split, digest(text.casefold()))
        outcomes.append(candidate)
        candidates.append(candidate)
        contents.append(record["content"])
        title, content = block.fields.title, block.fields.content
        before = (as_text(source.get(title)), as_text(source.get(content)))  # type: ignore[union-attr]  # no Reason here
        is_short = sum(map(len, before)) <= EXAMPLE_CHARS
        if is_short and "".join("".join(before).split()) != "".join(text.split()):  # more than white space has moved
            changed.append((candidate, (before, (record["title"], record["content"]))))
    for candidate, example in heapq.nsmallest(EXAMPLES, changed, key=lambda pair: pair[0].digest):
        candidate.example = example
    if candidates and options.drop_near_duplicates:
        for candidate, keys in zip(candidates, near_keys(contents), strict=True):
            candidate.keys = keys
    return outcomes, as_cp1252


def fields_of(raw: Raw, header: tuple[str, ...] | None) -> tuple[dict | Reason, bool]:
    """The fields of a raw record by their names, or the reason why there are none; and whether it was no UTF-8 and was
    read as cp1252. `header` is that of a table."""
    source = _parsed(raw, header)
    if source is not Reason.NOT_UTF8:
        return source, False
    if isinstance(raw, bytes):
        text = raw.decode("cp1252").encode("utf-8") if looks_like_cp1252(raw) else None
    else:
        text = cells_in_cp1252(raw)  # type: ignore[arg-type]  # of the others only a row can be no UTF-8
    return (source, False) if text is None else (_parsed(text, header), True)


def _parsed(raw: Raw, header: tuple[str, ...] | None) -> dict | Reason:
    if isinstance(raw, dict):
        return raw
    if isinstance(raw, list):
        return _from_row(raw, header)
    if isinstance(raw, TooLong):
        return Reason.TOO_LONG
    if isinstance(raw, Broken):
        return Reason.BROKEN
    if not raw.strip():
        return Reason.BLANK
    try:
        source = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    except (ValueError, RecursionError):  # not JSON, a number of 4,300 digits; brackets nested too deep
        return Reason.BROKEN
    return source if isinstance(source, dict) else Reason.NOT_AN_OBJECT


def _from_row(row: list[str], header: tuple[str, ...]) -> dict | Reason:
    """The cells of a row by the names of their columns, or the reason why there are none."""
    if not any(map(str.strip, row)):
        return Reason.BLANK
    try:
        "".join(row).encode("utf-8")
    except UnicodeEncodeError:
        return Reason.NOT_UTF8
    if len(row) > len(header):  # a delimiter inside a cell that was not quoted: which one, nobody can tell
        return Reason.BROKEN
    return dict(zip(header, row, strict=False))


def read_record(source: dict, fields: Fields, min_content_chars: int) -> Record | Reason:
    """The cleaned record of a parsed one, or the reason why it has none.

    Needs no other record, so records can be read in any order and in any process. The uid is "" where there is none.
    """
    raw_title = as_text(source.get(fields.title))
    title = clean(raw_title)
    if not title:
        return Reason.MARKUP_TITLE if "<" in raw_title else Reason.NO_TITLE
    content = clean(as_text(source.get(fields.content)))
    if not content:
        return Reason.NO_CONTENT
    if content.casefold() == title.casefold():
        return Reason.SAME_AS_TITLE
    if len(content) < min_content_chars:
        return Reason.TOO_SHORT
    record = {"uid": clean(as_text(source.get(fields.uid))), "title": title, "content": content}
    attributes = attributes_of(source, fields.attributes)
    return record | ({"attributes": attributes} if attributes else {})


def attributes_of(source: dict, names: Iterable[str]) -> dict[str, str]:
    """Those in the fields `names` of a parsed record, and those that it had when it was prepared before."""
    own = source.get("attributes")
    pairs = [(name, source.get(name)) for name in names] + list(own.items() if isinstance(own, dict) else ())
    known: dict[str, str] = {}
    for field, value in pairs:
        name, text = attribute_name(field), clean(as_text(value))
        if name and 0 < len(text) <= MOST_ATTRIBUTE_CHARS:
            known.setdefault(name, text)  # of two fields that look alike the first that has one
    return known


def as_text(value: object) -> str:
    """The text of a field: a string, a number (a book called 1984), or a list of those; anything else has none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(as_text(item) for item in value if not isinstance(item, list))
    if isinstance(value, float):
        return str(value) if math.isfinite(value) else ""  # pandas writes NaN where a field is missing
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def split_of(title: str, val_share: float, test_share: float) -> str:
    """The split of a title: from a hash, so it depends on no other record, and not on capitals or punctuation."""
    position = int.from_bytes(digest(letters_of(title)), "big") / 2**64  # uniform in [0, 1)
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


def json_line(record: dict) -> bytes:
    """A record as it stands in a JSONL file."""
    return _encode(record).encode("utf-8") + b"\n"
