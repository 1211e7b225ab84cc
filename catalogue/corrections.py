"""What was accepted or edited on the page of generate.py --serve: always trained on, in the place of what it corrects.

A line of corrections.jsonl is a record with two keys more: `correction`, what was decided, and `proposed`, the answer
that it was decided about.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from text.stream import Record

VERDICTS = ("accept", "edit", "reject")
KEYS = {"title", "content", "correction", "proposed"}


def verdict_of(source: dict) -> str | None:
    """One of VERDICTS; None when it is the record of a catalogue."""
    return source["correction"] if source.keys() >= KEYS and source["correction"] in VERDICTS else None


def letters_of(title: str) -> str:
    """What titles are compared by: neither capitals nor punctuation count."""
    return re.sub(r"\W+", " ", title.casefold()).strip() or title


class Corrections:
    """The records that were accepted or edited: of one product the last of them."""

    def __init__(self):
        self._of_title: dict[str, list[Record]] = {}

    def add(self, record: Record) -> int:
        """Returns how many of those before it replaces."""
        same_title = self._of_title.setdefault(letters_of(record["title"]), [])
        others = [other for other in same_title if not is_same_product(other, record)]
        replaced = len(same_title) - len(others)
        same_title[:] = [*others, record]
        return replaced

    def replace(self, record: Record, split: str) -> bool:
        """Whether they stand in the place of `record`, of a catalogue. One of a title that is trained on is never held
        out, whatever its attributes."""
        same_title = self._of_title.get(letters_of(record["title"]), [])
        return any(split != "train" or is_same_product(record, correction) for correction in same_title)

    def records(self) -> list[Record]:
        return [record for same_title in self._of_title.values() for record in same_title]


def is_same_product(one: Record, other: Record) -> bool:
    """Of two records of one title: no attribute that both have differs."""
    ones, others = one.get("attributes", {}), other.get("attributes", {})
    return all(ones[name].casefold() == others[name].casefold() for name in ones.keys() & others.keys())


def take_out(path: Path, is_replaced: Callable[[Record], bool]) -> int:
    """Take records out of a JSONL file, in its place; returns how many."""
    count = 0
    with path.open("rb") as lines, path.open("r+b") as file:  # what is written never passes what was read
        for line in lines:
            if is_replaced(json.loads(line)):
                count += 1
            else:
                file.write(line)
        file.truncate()
    return count
