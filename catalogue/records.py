"""What the readers give: the raw records of one file. Nothing is judged here.

Whatever stands between two borders is one record, so that all of them can be counted. Memory is one record, and a
record is at most MAX_RECORD_BYTES.
"""

from collections.abc import Iterator
from typing import NamedTuple

MAX_RECORD_BYTES = 1 << 22
START_BYTES = 200  # what is kept of a record that cannot be read

Raw = bytes | list[str] | dict  # a line or an element in JSON; the cells of a row; fields by their names


class TooLong(bytes):
    """The start of a record of more than MAX_RECORD_BYTES; the rest was skipped."""


class Broken(bytes):
    """The start of a record that its reader could not read: a quote that is never closed, markup that is torn."""


class Layout(NamedTuple):
    """What a file was taken for, and its raw records."""

    what: str  # for the screen: 'a table, ";" between the cells'
    records: Iterator[Raw]
    header: tuple[str, ...] | None = None  # of a table; None: each record names its own fields
    first: int = 1  # the number of the first record: the line, for tables the row
    delimiter: str = ","  # of a table as text
