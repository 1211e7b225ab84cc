"""The training split as a searchable catalogue, `catalogue.sqlite`: what an answer can be checked against.

SQLite's FTS5 ranks by BM25; a word in the title or an attribute counts TITLE_WEIGHT times one in the content. Accents
and capitals do not count: "ceramica" finds "Cerâmica".
"""

import errno
import json
import math
import re
import sqlite3
import unicodedata
from collections.abc import Iterable
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from catalogue.fields import unaccented
from catalogue.outputs import settle
from text.errors import DataError

FILE_NAME = "catalogue.sqlite"
TITLE_WEIGHT = 4.0
# Share of what a question tells that a product must have to be a source, and how rare a word counts at most that no
# product has: as one that stands in a hundredth of them. Measured on held-out titles and strangers in docs/LOG.md.
LIKENESS, NOWHERE = 0.25, math.log(101)
LOOKED_AT = 20  # more than are wanted: BM25 and likeness do not order alike
MAX_WORDS = 32  # of a question; a text pasted as one would match everything and cost a second
# Products that are ranked, or a few more: where the rare words of a question have as many, the common ones find none
# that is nearer. Ranking what "blue" finds among two million takes a second.
RANKED = 20_000

# Words that say what is asked, not what about; a catalogue in English or Portuguese has them everywhere.
_EMPTY = """
    a an and are as at be by can do does for from has have how i in is it its me my of on or tell that the this to
    was what where which who why with you your about
    ao aos as com como da das de do dos e em eu for me meu minha na nas no nos o os ou para pela pelo por qual quais
    que se sem seu sua tem um uma
"""
EMPTY_WORDS = frozenset(_EMPTY.split())
_WORD = re.compile(r"[^\W_]+")


class Product(NamedTuple):
    """A product that was found."""

    uid: str
    title: str
    content: str
    matched: tuple[str, ...]  # words of the question that stand in it, as they were asked


def write_catalogue(path: Path, train: Path) -> None:
    """Index the records of the JSONL file `train` in the new file `path`.

    Needs FTS5 (`check_fts5`). Raises OSError for what the disk does.
    """
    with closing(sqlite3.connect(path)) as base, train.open("rb") as lines:
        try:
            # The file is new, and thrown away unless it becomes whole: no journal, no waiting for the disk.
            base.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
            columns = "uid UNINDEXED, title, content, attributes, tokenize = 'unicode61 remove_diacritics 2'"
            base.execute(f"CREATE VIRTUAL TABLE product USING fts5({columns})")
            base.execute("CREATE TABLE attribute (name TEXT PRIMARY KEY)")
            names: set[str] = set()
            with base:
                base.executemany("INSERT INTO product VALUES (?, ?, ?, ?)", (_row(line, names) for line in lines))
                base.executemany("INSERT INTO attribute VALUES (?)", ((name,) for name in names))
        except sqlite3.OperationalError as error:
            full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error


def _row(line: bytes, names: set[str]) -> tuple[str, str, str, str]:
    """What is indexed of a record; the names of its attributes are added to `names`."""
    record = json.loads(line)
    attributes = record.get("attributes", {})
    names.update(attributes)
    return record["uid"], record["title"], record["content"], " ".join(attributes.values())


class Catalogue:
    """A catalogue that can be asked. Raises DataError when it is missing or cannot be read."""

    def __init__(self, folder: Path):
        """`folder`: where data_prep.py wrote."""
        settle(folder)
        self.path = folder / FILE_NAME
        if not self.path.is_file():
            raise DataError(f"{self.path} does not exist. Make it: python data_prep.py INPUT --output_dir {folder}")
        check_fts5()
        # The page of run/serve.py asks from other threads than this, one after the other.
        self._base = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        columns = {name for (name,) in self._ask("SELECT name FROM pragma_table_info('product')")}
        has_attributes = "attributes" in columns  # a catalogue of an earlier version has not
        self._given = "title attributes" if has_attributes else "title"  # columns of what a model is given
        self._attributes = "attributes" if has_attributes else "''"
        self._size = self._ask("SELECT max(rowid) FROM product")[0][0] or 0  # count(*) would read all of them
        self._counts: dict[str, int] = {}
        self.attributes = {name for (name,) in self._ask("SELECT name FROM attribute")} if has_attributes else set()

    @cached_property
    def has_capitals(self) -> bool:
        """Whether some of its titles, one in fifty of the first thousand, are WRITTEN IN CAPITALS."""
        titles = self._ask("SELECT title FROM product LIMIT 1000")
        return 50 * sum(title.isupper() for (title,) in titles) >= max(1, len(titles))

    def _ask(self, question: str, values: tuple = ()) -> list[tuple]:
        try:
            return self._base.execute(question, values).fetchall()
        except sqlite3.DatabaseError as error:
            advice = "Prepare the data again: python data_prep.py INPUT"
            raise DataError(f"{self.path} cannot be searched ({error}). {advice}") from None

    def nearest(self, question: str, count: int) -> list[Product]:
        """The `count` products that match a title or a free question best; fewer, or none, where nothing resembles it:
        what shares with it a number alone, or little of what it tells, is no source."""
        words = words_of(question)
        if not words:
            return []
        found, searched = 0, []
        for word in sorted(words, key=self._count):
            if found < RANKED:
                found += self._count(word)
                searched.append(word)
        query = " OR ".join(f'"{word}"' for word in searched)  # quoted, a word is never an operator of FTS5
        rows = self._ask(
            f"SELECT uid, title, content, {self._attributes} FROM product WHERE product MATCH ? "
            "ORDER BY bm25(product, 0, ?, 1, ?), rowid LIMIT ?",
            (query, TITLE_WEIGHT, TITLE_WEIGHT, count + LOOKED_AT),
        )
        alike = [row[:3] for row in rows if self._is_alike(words, f"{row[1]} {row[3]}", row[2])]
        found = alike[:count]
        return [Product(uid, title, text, _matched(words, f"{title} {text}")) for uid, title, text in found]

    def _is_alike(self, words: list[str], title: str, content: str) -> bool:
        """Whether a product resembles a question of `words`: each tells as much as it is rare, in the content a
        TITLE_WEIGHT-th of that. "iPhone 15" is no rucksack of 15 litres: numbers count only where a question has
        nothing else."""
        telling = [word for word in words if not only_numbers([word])] or words
        rarity = {word: self._rarity(word) for word in telling}
        in_title = sum(rarity[word] for word in _matched(telling, title))
        anywhere = sum(rarity[word] for word in _matched(telling, f"{title} {content}"))
        return in_title + (anywhere - in_title) / TITLE_WEIGHT >= LIKENESS * sum(rarity.values())

    def _rarity(self, word: str) -> float:
        """Its inverse document frequency."""
        rarity = math.log(1 + self._size / (0.5 + self._count(word)))
        return rarity if self._count(word) else min(rarity, NOWHERE)

    def _count(self, word: str) -> int:
        """Products that have it."""
        if word not in self._counts:
            ((self._counts[word],),) = self._ask("SELECT count(*) FROM product WHERE product MATCH ?", (f'"{word}"',))
        return self._counts[word]

    def contents_and_titles(self, said: list[str], forms: list[str], at_most: int) -> tuple[int, int]:
        """How many contents hold one of `said`, and how many of these stand under a title, or beside attributes, that
        hold one of `forms`.

        Of the first `at_most` such contents.
        """
        content, title = f"content : ({_any_of(said)})", f"{{{self._given}}} : ({_any_of(forms)})"
        first = "SELECT count(*), max(rowid) FROM (SELECT rowid FROM product WHERE product MATCH ? LIMIT ?)"
        ((count, last),) = self._ask(first, (content, at_most))
        if not count:
            return 0, 0
        both = "SELECT count(*) FROM product WHERE product MATCH ? AND rowid <= ?"
        return count, self._ask(both, (f"({content}) AND {title}", last))[0][0]


def _any_of(phrases: list[str]) -> str:
    """Quoted, what stands in a phrase is never an operator of FTS5; 1.5 is a phrase of the words that it made of it."""
    return " OR ".join('"{}"'.format(phrase.replace('"', " ")) for phrase in phrases)


def words_of(question: str) -> list[str]:
    """The words of a question to look for, each once; those that every text has only if there are no others."""
    words = list(dict.fromkeys(_WORD.findall(unicodedata.normalize("NFC", question))))
    telling = [word for word in words if word.casefold() not in EMPTY_WORDS]
    return (telling or words)[:MAX_WORDS]


def only_numbers(words: Iterable[str]) -> bool:
    return all(any(character.isdigit() for character in word) for word in words)


def _matched(words: list[str], text: str) -> tuple[str, ...]:
    """Those of `words` that stand in `text`, as the tokenizer of the index sees a word: no capitals, no accents."""
    there = {unaccented(word.lower()) for word in _WORD.findall(text)}
    return tuple(word for word in words if unaccented(word.lower()) in there)


def check_fts5() -> None:
    """Raises DataError where Python's SQLite has no full-text search."""
    if not has_fts5():
        raise DataError(
            "This Python's SQLite was built without full-text search (FTS5), which the catalogue needs. Python from "
            "python.org has it; data_prep.py --no_catalogue goes without."
        )


def has_fts5() -> bool:
    """Whether the SQLite of this Python has full-text search."""
    with closing(sqlite3.connect(":memory:")) as base:
        try:
            base.execute("CREATE VIRTUAL TABLE fts5_is_here USING fts5(x)")
        except sqlite3.OperationalError:
            return False
    return True
