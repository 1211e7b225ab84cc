"""Records in a text table: CSV in all its dialects, TSV."""

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from catalogue.encoding import cells_in_cp1252
from catalogue.fields import SAMPLE_ROWS, Fields, choose_fields, header_row
from catalogue.records import MAX_RECORD_BYTES, START_BYTES, Broken, Layout, Raw, TooLong

DELIMITERS, QUOTES = ",;\t|", "\"'"
LIKE_A_DESCRIPTION = 20  # characters of the longest cell of a row
MAX_LINES_OF_A_ROW = 1 << 18  # characters; a row of several lines that is longer has a quote that is never closed
LEAST_OF_A_ROW = 1 << 12  # after many such rows

# Before a table's header: empty lines, and the line in which spreadsheets write their delimiter.
_BEFORE_HEADER = re.compile(rb"\A(?:[ \t]*\r?\n)*(?:sep=.\r?\n)?(?:[ \t]*\r?\n)*")


class Table(NamedTuple):
    """How a text table is to be read."""

    dialect: dict  # options of `csv.reader`
    before: int  # bytes that come before its first row
    above: int  # rows above its header
    header: tuple[str, ...]
    same: float  # the share of the rows that are as long


def read_table(stream: io.BufferedReader, table: Table) -> Layout:
    """`table`: what `table_in` says of the beginning of `stream`."""
    stream.read(table.before)
    mark = table.dialect["delimiter"]
    delimiter = {"\t": "tabs", " ": "spaces"}.get(mark, f'"{mark}"')
    escaped = "; quotes escaped by \\" if table.dialect["escapechar"] else ""
    rows = islice(_rows(stream, table.dialect, len(table.header)), table.above + 1, None)
    return Layout(
        f"a table, {delimiter} between its cells{escaped}",
        rows,
        table.header,
        table.above + 2,
        table.dialect["delimiter"],
    )


def table_in(sample: bytes, given: Fields) -> Table:
    """The table that begins with `sample`, were it one. `given` are the fields named by the user.

    Of the usual dialects, and the one that csv.Sniffer proposes (it alone would take the space behind each comma), the
    one whose header names the fields that are wanted, whose header stands highest, whose rows are of one length, and
    which has most columns.
    """
    before = _BEFORE_HEADER.match(sample).end()
    text = sample[before:].decode("utf-8", "surrogateescape")
    pairs = [(delimiter, quote) for quote in QUOTES for delimiter in DELIMITERS]
    with suppress(csv.Error):  # it cannot always tell, as with a single column
        sniffed = csv.Sniffer().sniff(text[:8192])
        if not sniffed.delimiter.isalnum() and sniffed.delimiter not in ". ":  # as it says of prose
            pairs.append((sniffed.delimiter, sniffed.quotechar))
    tables = []  # (how good, table)
    for delimiter, quote in pairs:
        # Spreadsheets write a quote inside a cell as "", databases as \".
        for escape in (None, "\\") if "\\" + quote in text else (None,):
            dialect: dict = {"delimiter": delimiter, "quotechar": quote, "escapechar": escape, "skipinitialspace": True}
            rows: list = []
            with suppress(csv.Error):
                rows.extend(islice(csv.reader(io.StringIO(text, newline=""), **dialect), SAMPLE_ROWS + 1))
            rows = rows[: max(1, len(rows) - 1)] or [[]]  # the last one may be cut
            rows = [tuple(cell.strip() for cell in cells_in_cp1252(row) or row) for row in rows]
            above = header_row(rows, given)
            header, rows = rows[above], rows[above + 1 :]
            same = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
            # A row that repeats the header's words in another dialect is no header: the one above it is.
            score = (choose_fields(header, given).found, -above, same, len(header))
            tables.append((score, Table(dialect, before, above, header, same)))
    return max(tables, key=itemgetter(0))[1]  # of equal ones the first


class _Lines:
    """The lines of a table, of which those of a row can be given back to be read anew."""

    def __init__(self, stream: io.BufferedReader):
        self._text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
        self._again: deque[str] = deque()
        self.taken: list[str] = []  # those of the row
        self.size = 0  # characters of them
        self.most = MAX_LINES_OF_A_ROW  # of them

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._text.readline(MAX_RECORD_BYTES)
        if not line:
            raise StopIteration
        self.taken.append(line)
        self.size += len(line)
        if len(self.taken) > 1 and self.size > self.most:
            raise csv.Error("a quote that is never closed")
        if len(line) >= MAX_RECORD_BYTES and not line.endswith(("\n", "\r")):
            while (rest := self._text.readline(MAX_RECORD_BYTES)) and not rest.endswith(("\n", "\r")):
                pass
            raise csv.Error("a line of more than MAX_RECORD_BYTES")
        return line

    def begin_row(self) -> None:
        self.taken, self.size = [], 0

    def give_back(self, but: int = 0) -> None:
        """The lines of the row, `but` its first ones, will be read anew."""
        self._again.extendleft(reversed(self.taken[but:]))
        self.taken, self.size = self.taken[:but], 0


def _rows(stream: io.BufferedReader, dialect: dict, columns: int) -> Iterator[Raw]:
    """The rows of a table. One whose quotes do not come out is read with those inside its cells escaped the other way
    (a database's \\" may come late). Else a quote that is never closed would take all that follows into one cell: the
    line that it stands in is broken, and the next ones are read anew."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    lines, escaped = _Lines(stream), "\\" + dialect["quotechar"]
    other = dialect | {"escapechar": None if dialect["escapechar"] else "\\"}
    rows = csv.reader(lines, **dialect)
    while True:
        lines.begin_row()
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            row = None
        is_one_line = row is not None and len(lines.taken) == 1
        has_escapes = any(escaped in line for line in lines.taken)
        if not (is_one_line and not has_escapes) and not _is_sound(row, lines.taken, columns, dialect):
            if has_escapes and (found := _row_of(lines, other, columns)):
                row = found
            elif not is_one_line:
                lines.give_back(but=1)
                first = lines.taken[0]
                start = first[:START_BYTES].encode("utf-8", "surrogateescape")
                row = TooLong(start) if len(first) >= MAX_RECORD_BYTES else Broken(start)
                lines.most = max(lines.most // 2, LEAST_OF_A_ROW)  # else each of many such lines costs all of it
            rows = csv.reader(lines, **dialect)
        elif len(lines.taken) > 1:
            lines.most = MAX_LINES_OF_A_ROW
        yield row


def _row_of(lines: _Lines, dialect: dict, columns: int) -> list[str] | None:
    """The row that was just taken, in another dialect; None where it is none in that one either."""
    before = list(lines.taken)
    lines.give_back()
    with suppress(csv.Error, StopIteration):
        row = next(csv.reader(lines, **dialect))
        if _is_sound(row, lines.taken, columns, dialect):
            return row
    lines.give_back()
    for _ in before:
        next(lines)
    return None


def _is_sound(row: list[str] | None, lines: list[str], columns: int, dialect: dict) -> bool:
    """Whether a row has its quotes on purpose: nothing stands behind one that closes a cell, and what is in it is not
    rows of the table; nor has it more than the `columns` of the table."""
    if row is None or len(row) > columns:
        return False
    try:
        list(csv.reader(lines, **dialect, strict=True))
    except csv.Error:
        return False
    inner = [row for line in lines[1:-1] for row in csv.reader([line], **dialect)]
    like_rows = sum(len(other) == len(row) and max(map(len, other)) >= LIKE_A_DESCRIPTION for other in inner)
    return like_rows < max(0.9 * len(inner), 3 if len(row) > 2 else 20)
