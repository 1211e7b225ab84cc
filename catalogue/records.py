"""One input cut into its raw records: lines of JSON, the elements of a JSON array, or the rows of a table.

Nothing is judged here: whatever stands between two borders is one record, so that all of them can be counted. Memory
is one record, and a record is at most MAX_RECORD_BYTES.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from operator import itemgetter

from catalogue.fields import Fields, choose_fields

MAX_RECORD_BYTES = 1 << 22
LIKE_A_DESCRIPTION = 20  # characters of the longest cell of a row
START_BYTES = 200  # what is kept of a record that cannot be read

# Before a table's header: empty lines, and the line in which spreadsheets write their delimiter.
_BEFORE_HEADER = re.compile(rb"\A(?:[ \t]*\r?\n)*(?:sep=.\r?\n)?(?:[ \t]*\r?\n)*")
MAX_LINES_OF_A_ROW = 1 << 18  # characters; a row of several lines that is longer has a quote that is never closed

Raw = bytes | list[str]  # a line or an element; or the cells of a row


class TooLong(bytes):
    """The start of a record of more than MAX_RECORD_BYTES; the rest was skipped."""


class Unclosed(bytes):
    """The start of a table's line with a quote that is never closed."""


def read_layout(stream: io.BufferedReader, name: str, given: Fields) -> tuple[tuple[str, ...] | None, Iterator[Raw]]:
    """The header of the table in `stream`, UTF-8 bytes of the file `name`, or None for JSON; and its raw records.

    A table is known by its name (.csv, .tsv), a JSON array by its first character; where the name says nothing
    (standard input), by the first line. `given` are the fields named by the user, which help to tell a table's header.
    """
    sample = stream.peek()
    named_table = name.lower().endswith((".csv", ".tsv"))
    named_json = name.lower().endswith((".json", ".jsonl", ".ndjson"))
    if named_table:
        sample = sample.removeprefix(stream.read(_BEFORE_HEADER.match(sample).end()))
    start = sample.lstrip()[:1]
    if named_table or not (named_json or start in b"{["):
        dialect, header = _table(sample.decode("utf-8", "surrogateescape"), given)
        if named_table or choose_fields(header, given).found:
            return header, islice(_rows(stream, dialect), 1, None)  # 1: the header
    is_array = start == b"[" and not name.lower().endswith((".jsonl", ".ndjson"))
    return None, _elements(stream) if is_array else _lines(stream)


def _lines(stream: io.BufferedReader) -> Iterator[bytes]:
    while line := stream.readline(MAX_RECORD_BYTES):
        if len(line) < MAX_RECORD_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield TooLong(line[:START_BYTES])


# A string, closed or running into the end of what was read; or a bracket; between elements also a comma.
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*(?P<close>"?)'
_INSIDE = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_BETWEEN = re.compile(_STRING + rb"|[\[\]{},]", re.DOTALL)


def _elements(stream: io.BufferedReader) -> Iterator[bytes]:
    """The elements of a JSON array, as they stand in the file. Only strings, brackets and commas are looked at.

    After a closing bracket too many, or after the end of the array, everything up to the end is one more element
    (a broken one). A file that ends before its array does gives the part of the last element that is there.
    """
    buffer = stream.read(1 << 16)
    position = buffer.find(b"[") + 1
    start, depth, skipping, ended = position, 0, False, False  # the element began at `start`; depth counts inside it
    while True:
        found = (_INSIDE if depth else _BETWEEN).search(buffer, position) if not ended else None
        if found is None or found["close"] == b"":
            # All of the buffer was looked at, or its last string goes on behind it: take more.
            in_string = found is not None
            if not skipping and len(buffer) - start > MAX_RECORD_BYTES:
                yield TooLong(buffer[start : start + START_BYTES])
                skipping = True
            if skipping:  # nothing of it is needed but that it is inside a string
                buffer = (b'"' + buffer[found.end() :]) if in_string else b""
                start = position = 0
            else:
                position = (found.start() if in_string else len(buffer)) - start
                buffer, start = buffer[start:], 0
            more = stream.read(1 << 18)
            buffer += more
            if more:
                continue
            if buffer.strip() and not skipping:
                yield buffer
            return
        position = found.end()
        mark = found[0]
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}") and depth:
            depth -= 1
        elif mark in (b",", b"]", b"}"):  # between elements: one has ended
            element = buffer[start : found.start()]
            if not skipping and (element.strip() or mark == b","):
                yield element
            skipping, start = False, position
            ended = mark != b","


DELIMITERS, QUOTES = ",;\t|", "\"'"
SAMPLE_ROWS = 20


def _table(sample: str, given: Fields) -> tuple[dict, tuple[str, ...]]:
    """The dialect of a table, as options of `csv.reader`, and its first row.

    Of the usual dialects, and the one that csv.Sniffer proposes (it alone would take the space behind each comma), the
    one whose first row names the fields that are wanted, whose rows are of one length, and which has most columns.
    """
    pairs = [(delimiter, quote) for quote in QUOTES for delimiter in DELIMITERS]
    with suppress(csv.Error):  # it cannot always tell, as with a single column
        sniffed = csv.Sniffer().sniff(sample[:8192])
        pairs.append((sniffed.delimiter, sniffed.quotechar))
    tables = []  # (how good, dialect, header)
    for delimiter, quote in pairs:
        # Spreadsheets write a quote inside a cell as "", databases as \".
        for escape in (None, "\\") if "\\" + quote in sample else (None,):
            dialect = {"delimiter": delimiter, "quotechar": quote, "escapechar": escape, "skipinitialspace": True}
            rows = []
            with suppress(csv.Error):
                rows.extend(islice(csv.reader(io.StringIO(sample, newline=""), **dialect), SAMPLE_ROWS + 1))
            header, *rows = rows[: max(1, len(rows) - 1)] or [()]  # the last one may be cut
            same = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
            score = (choose_fields(header, given).found, same, len(header))
            tables.append((score, dialect, tuple(cell.strip() for cell in header)))
    return max(tables, key=itemgetter(0))[1:]  # of equal ones the first


def _is_one_row(lines: list[str], columns: int, dialect: dict) -> bool:
    """Whether a row that goes over several lines does so on purpose, and not for stray quotes in two of them.

    Of a cell on purpose nothing stands behind the quote that closes it; and what is in it is not rows of the table.
    """
    try:
        list(csv.reader(lines, **dialect, strict=True))
    except csv.Error:
        return False
    inner = [row for line in lines[1:-1] for row in csv.reader([line], **dialect)]
    like_rows = sum(len(row) == columns and max(map(len, row)) >= LIKE_A_DESCRIPTION for row in inner)
    return like_rows < max(0.9 * len(inner), 3 if columns > 2 else 20)


def _rows(stream: io.BufferedReader, dialect: dict) -> Iterator[Raw]:
    """The rows of a table. A quote that is never closed would take all that follows into one cell: where one runs to
    the end of the file or past MAX_LINES_OF_A_ROW, the line that it stands in is broken, and the next ones are read
    anew."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    taken, size, again = [], 0, deque()  # lines of the row, their characters; lines that will be read anew
    ended = False

    def next_line() -> str:
        nonlocal size, ended
        line = again.popleft() if again else text.readline(MAX_RECORD_BYTES)
        ended = not line
        if ended:
            return ""
        taken.append(line)
        size += len(line)
        if len(taken) > 1 and size > MAX_LINES_OF_A_ROW:
            raise csv.Error("a quote that is never closed")
        if len(line) >= MAX_RECORD_BYTES and not line.endswith(("\n", "\r")):
            while (rest := text.readline(MAX_RECORD_BYTES)) and not rest.endswith(("\n", "\r")):
                pass
            raise csv.Error("a line of more than MAX_RECORD_BYTES")
        return line

    rows, columns = csv.reader(iter(next_line, ""), **dialect), 0
    while True:
        taken, size = [], 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            row = None
        quotes = sum(line.count(dialect["quotechar"]) for line in taken) if ended else 0
        if row is not None and (len(taken) == 1 or (quotes % 2 == 0 and _is_one_row(taken, columns, dialect))):
            columns = columns or len(row)
            yield row
            continue
        first, *others = taken
        again.extendleft(reversed(others))
        rows = csv.reader(iter(next_line, ""), **dialect)
        start = first[:START_BYTES].encode("utf-8", "surrogateescape")
        yield TooLong(start) if len(first) >= MAX_RECORD_BYTES else Unclosed(start)
