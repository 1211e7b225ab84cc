"""Records in tables that are no text: spreadsheets of Excel and LibreOffice, and Parquet."""

import io
from collections.abc import Iterator
from itertools import islice

from catalogue.fields import SAMPLE_ROWS, Fields, header_row, one_line
from catalogue.records import Layout, Raw
from catalogue.sources import Source, with_random_access
from text.errors import DataError

SHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")  # zip: .xlsx, .xlsb, .ods; OLE: .xls
PARQUET = b"PAR1"


def read_spreadsheet(stream: io.BufferedReader, sheet: str | None, given: Fields, place: Source) -> Layout:
    """`sheet`: its name; None: the first. `given` are the fields named by the user, `place` is for messages.

    Raises DataError for a file that is damaged, has no such sheet, or when python-calamine is missing.
    """
    try:
        from python_calamine import CalamineWorkbook
    except ImportError:
        raise DataError(f"{place} is a spreadsheet: pip install python-calamine, or save it as CSV.") from None
    with with_random_access(stream) as file:
        try:
            workbook = CalamineWorkbook.from_filelike(file)
            names = workbook.sheet_names
            name = names[0] if sheet is None and names else sheet
            found = workbook.get_sheet_by_name(name) if name in names else None
        except Exception as error:  # a library in Rust, with exceptions of its own
            raise DataError(f"{place} is no spreadsheet that can be read: {one_line(error)}.") from None
    if found is None:
        raise DataError(f"{place} has no sheet {name!r}; it has {_listed(names)}. Name one with --sheet.")
    rows = found.iter_rows()
    head = [_cells(row) for row in islice(rows, SAMPLE_ROWS)]
    at = header_row(head, given)
    header = tuple(cell.strip() for cell in head[at]) if head else ()
    left = [other for other in names if other != name]
    what = f'a spreadsheet, sheet "{one_line(name)}"' + (f", {_listed(left)} left alone" if left else "")
    return Layout(what, _rows(head[at + 1 :], rows), header, first=at + 2)


def _listed(names: list[str]) -> str:
    return ", ".join(f'"{one_line(name)}"' for name in names[:5]) + (" ..." if len(names) > 5 else "")


def _rows(head: list[list[str]], rows: Iterator[list]) -> Iterator[list[str]]:
    yield from head
    yield from map(_cells, rows)


def _cells(row: list) -> list[str]:
    return [_as_shown(cell) for cell in row]


def _as_shown(cell: object) -> str:
    """As the sheet shows it: whole numbers without a point."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return "" if cell is None else str(cell)


def read_parquet(stream: io.BufferedReader, place: Source) -> Layout:
    """Raises DataError for a file that is damaged, or when pyarrow is missing."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{place} is Parquet: pip install pyarrow.") from None

    def rows() -> Iterator[Raw]:
        with with_random_access(stream) as file:
            try:
                for batch in parquet.ParquetFile(file).iter_batches(batch_size=1000):
                    yield from ({name: _plain(value) for name, value in row.items()} for row in batch.to_pylist())
            except Exception as error:  # Arrow's own, and Python's where it has no such date
                raise DataError(f"{place} is Parquet that cannot be read: {one_line(str(error)[:200])}.") from None

    return Layout("Parquet", rows())


def _plain(value: object) -> object:
    """What JSON has too: bytes become text, dates and decimals what they are shown as."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, (str, bool, int, float, list, dict)) else str(value)
