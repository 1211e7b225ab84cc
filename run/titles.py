"""What generate.py is asked: titles from a table, from a file of lines or from a pipe; and where the answers go."""

import csv
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tqdm import tqdm

from catalogue.clean import clean
from catalogue.encoding import evident_encoding, looks_like_cp1252
from catalogue.fields import Fields, attribute_name, printable, quoted
from catalogue.inputs import open_inputs
from catalogue.judge import Options, as_text, fields_of
from catalogue.sources import PACKED, SUFFIXES, find_sources
from run.cli import UsageError
from text.stream import Record

ADDED = ("unsupported", "note")  # columns


class Asked(NamedTuple):
    """A title, and the whole row of its table: {} of a line."""

    title: str
    row: dict[str, str] = {}

    def record(self, names: set[str], more: dict[str, str]) -> Record:
        """As a model is asked: the attributes are those columns that are called as one of `names`, and `more`."""
        columns = {attribute_name(name): clean(value) for name, value in self.row.items()}
        attributes = {name: value for name, value in columns.items() if name in names and value} | more
        return {"title": self.title} | ({"attributes": attributes} if attributes else {})


class Titles(NamedTuple):
    asked: list[Asked]
    columns: list[str]  # of the table
    content: str | None = None  # the column that is to be filled
    delimiter: str = ","


def read_titles(file: Path) -> Titles:
    """Of a table, or of whatever else data_prep.py reads, the titles and all of their columns; of any other file its
    lines. Raises `UsageError` when it cannot be read, `DataError` when it has no field for the title."""
    if not file.name.removesuffix(file.suffix if file.suffix in PACKED else "").lower().endswith(SUFFIXES):
        return Titles([Asked(line) for line in lines_of(text_of(file))], ["title"])
    if not file.is_file():
        raise UsageError(f"{file} cannot be read: it does not exist.")
    asked, columns, content, delimiter = [], {}, None, ","
    for source in open_inputs(find_sources([file]), Options(), lambda count: None, lambda sentence: None):
        records = list(source.layout.records)
        source.look_at(records)
        fields: Fields = source.fields
        if fields.title is None:
            columns = quoted(source.names[:12])
            raise UsageError(f"{file}: no column for the title among {columns}. Call it title, name, titulo or nome.")
        content, delimiter = content or fields.content, source.layout.delimiter
        for raw in records:
            row, _ = fields_of(raw, source.layout.header)
            texts = {name: as_text(value) for name, value in row.items()} if isinstance(row, dict) else {}
            columns |= dict.fromkeys(texts)
            asked.append(Asked(clean(texts.get(fields.title, "")), texts))
    return Titles(asked, list(columns), content, delimiter)


def text_of(file: Path) -> str:
    """UTF-8, UTF-16, or what looks like cp1252, which is said."""
    try:
        raw = file.read_bytes()
        return raw.decode(evident_encoding(raw))
    except UnicodeDecodeError as error:
        if not looks_like_cp1252(raw):
            raise UsageError(f"{file} cannot be read: it is no UTF-8 text ({error.reason}): save it so.") from None
        print(f"{file} is no UTF-8: read as cp1252.", file=sys.stderr)
        return raw.decode("cp1252")
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None


def lines_of(text: str) -> list[str]:
    """The titles in a text, one a line; bytes that are no text show as U+FFFD."""
    return [title for line in text.split("\n") if (title := plain(line))]


def plain(argument: str) -> str:
    """What a shell or a pipe gave, without the marks of bytes that are not UTF-8."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


class Answers:
    """Answers written one after the other: as JSONL to standard output or a file, or into the table they came from."""

    def __init__(self, path: Path | None, titles: Titles):
        """`path`: `.csv` gives the rows of the titles with the description filled in; else it is JSONL. It must not be
        there yet. Raises `UsageError`."""
        self._asked, self._file, self._table = titles.asked, None, None
        if path is None:
            return
        is_table = path.suffix.lower() == ".csv"
        try:
            # Excel takes a CSV file for UTF-8 when it begins with the mark.
            self._file = path.open("x", encoding="utf-8-sig" if is_table else "utf-8", newline="" if is_table else "\n")
        except FileExistsError:
            raise UsageError(f"{path} is there already: name another --out, or remove it.") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
        if is_table:
            self._content = titles.content or "description"
            self._added = [name if name not in titles.columns else f"{name} (vitrine)" for name in ADDED]
            columns = list(dict.fromkeys([*titles.columns, self._content, *self._added]))
            self._table = csv.DictWriter(
                self._file, columns, restval="", delimiter=titles.delimiter, extrasaction="ignore"
            )
            self._table.writeheader()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def write(self, number: int, entry: dict) -> None:
        """The answer to title `number`."""
        if self._table:
            unsupported = "; ".join(dict.fromkeys(claim["text"] for claim in entry.get("unsupported", [])))
            asked = self._asked[number]
            row = asked.row or {"title": asked.title}
            row = row | dict(zip(self._added, (unsupported, entry.get("error", entry.get("note", ""))), strict=True))
            if entry["answer"]:  # else what stood there stays
                row[self._content] = entry["answer"]
            self._table.writerow({name: printable(value) for name, value in row.items()})
        else:
            tqdm.write(json.dumps(entry, ensure_ascii=False), file=self._file or sys.stdout)
        if self._file:
            self._file.flush()
