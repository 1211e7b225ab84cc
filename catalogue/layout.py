"""What a file is, told by its content: which reader takes it."""

import io

from catalogue.encoding import in_utf8, looks_like_cp1252
from catalogue.fields import Fields, choose_fields
from catalogue.read_feed import looks_like_a_web_page, looks_like_xml, read_feed
from catalogue.read_json import json_lines, looks_like_json, read_json
from catalogue.read_sheet import PARQUET, SHEETS, read_parquet, read_spreadsheet
from catalogue.read_table import read_table, table_in
from catalogue.records import Layout
from catalogue.sources import Source
from text.errors import DataError

STRANGERS = {
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it, give the file in it",
    b"Rar!": "a RAR archive: unpack it, give the file in it",
    b"%PDF": "a PDF: export the catalogue as CSV",
    b"SQLite format 3\x00": "an SQLite database: export its table of products as CSV",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}


def read_layout(
    file: io.BufferedReader, place: Source, fields: Fields, encoding: str | None = None, sheet: str | None = None
) -> Layout:
    """The records of `file`, whose beginning `peek` shows. `fields`, `encoding`, `sheet`: as the user named them.

    Raises DataError, which names the `place`, for a file that is none of the formats or cannot be read.
    """
    head = file.peek()
    for magic, what in STRANGERS.items():
        if head.startswith(magic):
            raise DataError(f"{place} is {what}.")
    if head.startswith(SHEETS):
        return read_spreadsheet(file, sheet, fields, place)
    if head.startswith(PARQUET):
        return read_parquet(file, place)
    stream, name = in_utf8(file, encoding)
    layout = _read_text(stream, place, fields, None if name == "utf-8" else "utf-8")
    if name == "utf-8" and not looks_like_xml(head) and looks_like_cp1252(head):  # XML says by itself what it is in
        name = "cp1252 where it is not UTF-8"
    return layout if name == "utf-8" else layout._replace(what=f"{layout.what}, in {name}")


def _read_text(stream: io.BufferedReader, place: Source, fields: Fields, encoding: str | None) -> Layout:
    """`encoding`: as which an XML feed is read, whatever it declares; None: as it declares."""
    sample = stream.peek()
    if looks_like_json(sample):
        return read_json(stream, fields)
    if looks_like_a_web_page(sample):
        raise DataError(f"{place} is a web page and no catalogue: open it in a spreadsheet program, save it as CSV.")
    if looks_like_xml(sample):
        return read_feed(stream, encoding, fields, place)
    # The content does not say it for certain: where the header does not either, its name decides.
    name, table = place.name.lower(), table_in(sample, fields)
    is_table = choose_fields(table.header, fields).found > 0 or name.endswith((".csv", ".tsv"))
    looks_like_one = len(table.header) > 1 and table.same > 0.8
    if is_table or (looks_like_one and not name.endswith((".json", ".jsonl", ".ndjson"))):
        return read_table(stream, table)
    return Layout("JSON, an object a line", json_lines(stream))
