"""What generate.py is asked: titles from a table, from a file of lines or from a pipe; and whether answers can go where
they are wanted."""

import sys
import tempfile
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from catalogue.clean import clean
from catalogue.encoding import evident_encoding, looks_like_cp1252
from catalogue.fields import Fields, attribute_name, quoted
from catalogue.inputs import open_inputs
from catalogue.judge import Options, Reason, as_text, attributes_of, fields_of
from catalogue.sources import PACKED, SUFFIXES, find_sources
from run.cli import UsageError
from text.stream import Record

BARE_TITLE = "the row has no title"
KINDS = (".csv", ".jsonl", ".xlsx")  # of files with answers
NOTHING_GIVEN = Fields()


class Asked(NamedTuple):
    """A title, and the whole row of its table: {} of a line."""

    title: str
    row: dict[str, str] = {}
    fault: str = ""  # why there is no title
    own: dict[str, object] = {}  # attributes of a record that was prepared before

    def record(self, names: set[str], more: dict[str, str]) -> Record:
        """As a model is asked: the attributes are those columns that are called as one of `names`, those of its own,
        and `more`, which go before."""
        columns = [column for column in self.row if attribute_name(column) in names]
        attributes = attributes_of(self.row | {"attributes": self.own}, columns) | more
        return {"title": self.title} | ({"attributes": attributes} if attributes else {})


class Titles(NamedTuple):
    asked: list[Asked]
    columns: list[str]  # of the table
    content: str | None = None  # the column that is to be filled
    delimiter: str = ","


def read_titles(file: Path, given: Fields = NOTHING_GIVEN, most: int | None = None) -> Titles:
    """Of a table, or of whatever else data_prep.py reads, the titles and all of their columns; of any other file its
    lines; of `-` what standard input holds. `given`: the fields that the user named. `most`: of a table, behind so many
    rows at most one is read: it may be packed, and unpack to more than the memory holds.

    Raises `UsageError` when it cannot be read, `DataError` when it has no field for the title.
    """
    if str(file) == "-":
        return _read_standard_input(given)
    if not file.name.removesuffix(file.suffix if file.suffix in PACKED else "").lower().endswith(SUFFIXES):
        return Titles([Asked(line) for line in lines_of(text_of(file))], ["title"])
    if not file.is_file():
        raise UsageError(f"{file} cannot be read: it does not exist.")
    asked, columns, content, delimiter = [], {}, None, ","
    for source in open_inputs(find_sources([file]), Options(fields=given), lambda count: None, lambda sentence: None):
        left = None if most is None else max(0, most + 1 - len(asked))
        records, header = list(islice(source.layout.records, left)), source.layout.header
        source.look_at(records)
        fields = source.fields
        if fields.title is None:
            if not source.names:
                raise UsageError(f"{file} is empty.")
            names = quoted(source.names[:12])
            raise UsageError(f"{file}: no column for the title among {names}. Name it with --title_field.")
        content, delimiter = content or fields.content, source.layout.delimiter
        for raw in records:
            row, _ = fields_of(raw, header)
            fault = row.value if isinstance(row, Reason) else ""
            if fault and header and isinstance(raw, list):  # as far as its cells have a column
                row = dict(zip(header, raw, strict=False))
            texts = {name: as_text(value) for name, value in row.items()} if isinstance(row, dict) else {}
            columns |= dict.fromkeys(texts)
            title = "" if fault else clean(texts.get(fields.title, ""))
            own = row.get("attributes") if isinstance(row, dict) else None
            own = own if isinstance(own, dict) else {}
            asked.append(Asked(title, texts, fault or ("" if title else BARE_TITLE), own))
    return Titles(asked, list(columns), content, delimiter)


def _read_standard_input(given: Fields) -> Titles:
    """JSON or lines, by the first character."""
    text = sys.stdin.read()
    if not text.lstrip().startswith(("{", "[")):
        return Titles([Asked(line) for line in lines_of(text)], ["title"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "standard input.jsonl"
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        return read_titles(file, given)


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
    return [title for line in text.split("\n") if (title := title_of(plain(line)))]


def title_of(text: str) -> str:
    """A title that was typed, as a cleaned record has it; what is nothing but markup stays as it is."""
    return clean(text) or text


def plain(argument: str) -> str:
    """What a shell or a pipe gave, without the marks of bytes that are not UTF-8."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def check_out(path: Path) -> None:
    """Raises `UsageError` when no answers can be written to `path`."""
    if path.exists():
        raise UsageError(f"{path} is there already: name another --out, or remove it.")
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"--out writes {', '.join(KINDS)}, and {path.name} is none of them.")
    if path.suffix.lower() == ".xlsx" and find_spec("openpyxl") is None:
        raise UsageError("Spreadsheets are written by openpyxl: pip install openpyxl. A .csv needs nothing.")
