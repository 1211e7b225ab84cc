"""Every file that a shop can export, written by the program that people use for it, read back equal."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import script, zipped
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from catalogue import read_json, read_table
from catalogue.encoding import evident_encoding, looks_like_cp1252
from catalogue.fields import Fields
from catalogue.inputs import BLOCK_BYTES, _next_block, described
from catalogue.judge import Options
from catalogue.prepare import prepare
from text.errors import DataError

EVERY = Options(val_share=0, test_share=0, drop_near_duplicates=False, catalogue=False)
ROWS = [
    {
        "uid": str(1000 + i),
        "title": f"Caneca {cor} nº {i}",
        "content": f"Uma caneca {cor} de cerâmica, com alça; cabe {200 + i} ml & vai à máquina.",
        "brand": "Aço & Cia",
        "color": cor,
    }
    for i, cor in enumerate(["azul", "verde", "âmbar", "preta", "rosé", "branca", "lilás"])
]
EXPECTED = [{name: row[name] for name in ("uid", "title", "content")} for row in ROWS]


def read(folder: Path, name: str, options: Options = EVERY) -> tuple[list[dict], list[str]]:
    """The records kept, in order, and what was said of the file."""
    said = []
    counts = prepare([folder / name], folder / "data", options, say=said.append)
    assert counts.lines == counts.records + sum(counts.reasons.values())
    lines = (folder / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], said


# -- tables that are no text ------------------------------------------------------------------------------------------


def test_excel_by_openpyxl(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Produtos"
    sheet.append(["Loja da Ana, exportado em 2026-01-02"])  # above the header, as many programs do
    sheet.append([])
    sheet.append(["SKU", "Nome", "Descrição", "Marca", "Peso"])
    for row in ROWS:
        sheet.append([int(row["uid"]), row["title"], row["content"], row["brand"], 0.5])
    other = book.create_sheet("Outros")
    other.append(["nome", "descricao"])
    other.append(["Jarro", "Um jarro de vidro para a água."])
    book.save(tmp_path / "loja.xlsx")
    records, said = read(tmp_path, "loja.xlsx")
    assert records == EXPECTED
    assert 'a spreadsheet, sheet "Produtos", "Outros" left alone; title from "Nome"' in said[0]
    records, _ = read(tmp_path, "loja.xlsx", Options(**{**vars(EVERY), "sheet": "Outros"}))
    assert [record["title"] for record in records] == ["Jarro"]
    with pytest.raises(DataError, match='no sheet .Nada.; it has "Produtos", "Outros".*--sheet'):
        prepare([tmp_path / "loja.xlsx"], tmp_path / "data", Options(sheet="Nada"))
    (tmp_path / "named.csv").write_bytes((tmp_path / "loja.xlsx").read_bytes())  # whatever it is called
    assert read(tmp_path, "named.csv")[0] == EXPECTED
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as archive:
        archive.write(tmp_path / "loja.xlsx", "loja.xlsx")
    assert read(tmp_path, "sent.zip")[0] == EXPECTED
    (tmp_path / "torn.xlsx").write_bytes((tmp_path / "loja.xlsx").read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged|no spreadsheet"):
        prepare([tmp_path / "torn.xlsx"], tmp_path / "data")


@pytest.mark.parametrize(("suffix", "engine"), [("xlsx", "openpyxl"), ("ods", "odf"), ("parquet", "pyarrow")])
def test_what_pandas_writes(tmp_path, suffix, engine):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip(engine)
    frame = pandas.DataFrame(ROWS).assign(price=[1.5, None, 3, 4, 5, 6, 7], sold=True)
    if suffix == "parquet":
        frame.to_parquet(tmp_path / "shop.parquet", engine=engine)
    else:
        frame.to_excel(tmp_path / f"shop.{suffix}", index=False, engine=engine)
    assert read(tmp_path, f"shop.{suffix}")[0] == EXPECTED
    (tmp_path / f"shop.{suffix}.gz").write_bytes(gzip.compress((tmp_path / f"shop.{suffix}").read_bytes()))
    assert read(tmp_path, f"shop.{suffix}.gz")[0] == EXPECTED


def test_old_excel_by_xlwt(tmp_path):
    xlwt = pytest.importorskip("xlwt")
    book = xlwt.Workbook()
    sheet = book.add_sheet("Plan1")
    for r, row in enumerate([dict(zip(ROWS[0], ROWS[0], strict=True)), *ROWS]):
        for c, cell in enumerate(row.values()):
            sheet.write(r, c, cell)
    book.save(str(tmp_path / "shop.xls"))
    assert read(tmp_path, "shop.xls")[0] == EXPECTED


def test_parquet_with_lists_and_bytes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"title": ["Mug"], "description": [["A mug of steel,", "and of glass."]], "raw": [b"\xff"]})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path, "a.parquet")[0] == [{"uid": "1", "title": "Mug", "content": "A mug of steel, and of glass."}]
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"b\.parquet is Parquet that cannot be read"):
        prepare([tmp_path / "b.parquet"], tmp_path / "data")


@pytest.mark.parametrize(("module", "name", "begin"), [
    ("python_calamine", "a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), ("pyarrow", "a.parquet", b"PAR1")
])  # fmt: skip
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, module, name, begin):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(begin * 9)
    with pytest.raises(DataError, match=rf"{name} is .*pip install {module.replace('_', '-')}"):
        prepare([tmp_path / name], tmp_path / "data")


# -- JSON -------------------------------------------------------------------------------------------------------------

SHOPIFY = {
    "products": [
        {
            "id": int(row["uid"]),
            "title": row["title"],
            "body_html": f"<p>{row['content'].replace('&', '&amp;')}</p>",
            "vendor": row["brand"],
            "variants": [{"id": 1, "title": "Default Title", "price": "9.90"}, {"id": 2, "title": "Grande"}],
            "options": [{"name": "Cor", "values": [row["color"]]}],
        }
        for row in ROWS
    ],
    "next": None,
}
WOOCOMMERCE = [
    {
        "id": int(row["uid"]),
        "name": row["title"],
        "description": f"<p>{row['content']}</p>\n",
        "categories": [{"id": 15, "name": "Canecas"}],
        "attributes": [{"name": "Cor", "options": [row["color"]]}],
    }
    for row in ROWS
]
MERCHANT = {
    "kind": "content#productsListResponse",
    "resources": [
        {"kind": "content#product", "offerId": row["uid"], "id": row["uid"], "title": row["title"],
         "description": row["content"], "brand": row["brand"]}
        for row in ROWS
    ],
}  # fmt: skip
JSONS = {"Shopify": SHOPIFY, "WooCommerce": WOOCOMMERCE, "Google Merchant": MERCHANT, "in data": {"data": SHOPIFY}}


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("name", JSONS)
def test_what_shops_answer_in_json(tmp_path, name, indent):
    text = json.dumps(JSONS[name], ensure_ascii=False, indent=indent)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read(tmp_path, "a.json")[0] == EXPECTED
    (tmp_path / "pages.json").write_text(f"{text}\n{text.replace('Caneca', 'Copo')}", encoding="utf-8")
    records, _ = read(tmp_path, "pages.json")
    assert len(records) == 14 and records[:7] == EXPECTED and records[7]["title"].startswith("Copo")


@pytest.mark.parametrize("between", ["\n", "", "\n\n", ",\n"])
@pytest.mark.parametrize("indent", [1, 4])
def test_objects_one_after_another(tmp_path, indent, between):
    text = between.join(json.dumps(product, indent=indent) for product in SHOPIFY["products"])
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    records, said = read(tmp_path, "a.json")
    assert records == EXPECTED and "objects one after another" in said[0]


def test_an_array_in_an_object_is_streamed(tmp_path, monkeypatch):
    """Of any size, with its borders at any byte."""
    head = {"count": 3, "links": [{"rel": "self"}], "filters": {"a": [1, 2]}}
    text = json.dumps({**head, "items": ROWS * 3000, "more": {"items": []}, "end": "}]"}, ensure_ascii=False)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    counts = prepare([tmp_path / "a.json"], tmp_path / "data", EVERY)
    assert (counts.lines, counts.records) == (21_000, 7)


def test_a_json_file_is_known_by_its_content(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "lines.csv").write_text(lines, encoding="utf-8")
    assert read(tmp_path, "lines.csv")[0] == EXPECTED
    with (tmp_path / "table.json").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    assert read(tmp_path, "table.json")[0] == EXPECTED
    (tmp_path / "begins badly.json").write_text('{"title": "torn\n' + lines, encoding="utf-8")
    assert read(tmp_path, "begins badly.json")[0] == EXPECTED


# -- XML feeds --------------------------------------------------------------------------------------------------------

G = "http://base.google.com/ns/1.0"
ATOM = "http://www.w3.org/2005/Atom"


def rss() -> etree.Element:
    root = etree.Element("rss", nsmap={"g": G}, version="2.0")
    channel = etree.SubElement(root, "channel")
    for name in ("title", "link", "description"):
        etree.SubElement(channel, name).text = f"{name} of the shop, which is no product of it"
    for row in ROWS:
        item = etree.SubElement(channel, "item")
        for name, key in (("id", "uid"), ("title", "title"), ("brand", "brand"), ("color", "color")):
            etree.SubElement(item, f"{{{G}}}{name}").text = row[key]
        etree.SubElement(item, f"{{{G}}}description").text = etree.CDATA(f"<p>{row['content']}</p>")
        shipping = etree.SubElement(item, f"{{{G}}}shipping")
        etree.SubElement(shipping, f"{{{G}}}country").text = "BR"
        for i in range(2):
            etree.SubElement(item, f"{{{G}}}additional_image_link").text = f"https://example.com/{i}.jpg"
    return root


def atom() -> etree.Element:
    root = etree.Element(f"{{{ATOM}}}feed", nsmap={None: ATOM, "g": G})
    etree.SubElement(root, f"{{{ATOM}}}title").text = "The shop"
    for row in ROWS:
        entry = etree.SubElement(root, f"{{{ATOM}}}entry")
        etree.SubElement(entry, f"{{{G}}}id").text = row["uid"]
        etree.SubElement(entry, f"{{{ATOM}}}title").text = row["title"]
        etree.SubElement(entry, f"{{{ATOM}}}summary").text = row["content"]
    return root


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "utf-16"])
@pytest.mark.parametrize("make", [rss, atom])
def test_feeds_of_google_merchant(tmp_path, make, encoding):
    data = etree.tostring(make(), xml_declaration=True, encoding=encoding, pretty_print=make is rss)
    (tmp_path / "feed.xml").write_bytes(data)
    records, said = read(tmp_path, "feed.xml")
    assert records == EXPECTED
    assert f"XML, its <{'item' if make is rss else 'entry'}> elements" in said[0]


def test_a_feed_with_a_bare_ampersand_html_entities_and_controls(tmp_path):
    items = "".join(
        f"<produto><nome>Caneca {i} & tampa</nome>"
        "<descricao>Uma&nbsp;caneca &eacute; útil \x0b &lt;5 cm</descricao></produto>"
        for i in range(9000)  # entities across every border of what is read at a time
    )
    (tmp_path / "a.xml").write_text(f"<produtos>{items}</produtos>", encoding="utf-8")
    records, _ = read(tmp_path, "a.xml")
    assert len(records) == 9000
    assert records[5] == {"uid": "6", "title": "Caneca 5 & tampa", "content": "Uma caneca é útil <5 cm"}
    assert len({record["content"] for record in records}) == 1


def test_entities_of_a_feed_stay_what_they_are(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("SECRET", encoding="utf-8")
    bomb = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x" * 10}">' for i in range(12))
    (tmp_path / "a.xml").write_text(
        f'<?xml version="1.0"?><!DOCTYPE rss [{bomb}<!ENTITY file SYSTEM "{secret.as_uri()}">]><rss><item><title>Mug'
        "</title><description>A mug with &e11; and &file; in it.</description></item></rss>", encoding="utf-8"
    )  # fmt: skip
    records, _ = read(tmp_path, "a.xml")
    assert records == [{"uid": "1", "title": "Mug", "content": "A mug with &e11; and &file; in it."}]


def test_a_torn_feed_is_a_sentence_with_the_line(tmp_path):
    data = etree.tostring(rss(), pretty_print=True)
    (tmp_path / "a.xml").write_bytes(data[:-40])
    with pytest.raises(DataError, match=r"a\.xml is no whole XML: .*line \d+"):
        prepare([tmp_path / "a.xml"], tmp_path / "data")
    (tmp_path / "a.xls").write_text("<html><table><tr><td>title</td></tr></table></html>", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.xls is a web page"):
        prepare([tmp_path / "a.xls"], tmp_path / "data")


# -- tables in text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("dialect", [{"delimiter": ";"}, {"dialect": "excel-tab"}, {"quoting": csv.QUOTE_ALL},
                                     {"delimiter": "|", "doublequote": False, "escapechar": "\\"}])  # fmt: skip
def test_what_the_csv_module_writes(tmp_path, encoding, dialect):
    with (tmp_path / "shop.txt").open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), **dialect)
        writer.writeheader()
        writer.writerows(ROWS)
    records, said = read(tmp_path, "shop.txt")
    assert records == EXPECTED
    assert ("in " + encoding[:6] in said[0]) == (not encoding.startswith("utf-8"))


def test_single_lines_in_another_encoding_are_repaired_and_counted(tmp_path):
    rows = ["title,content", *(f"Caneca {i},Uma caneca de aço número {i} é útil" for i in range(4000))]
    data = [row.encode("cp1252" if i % 1000 == 7 else "utf-8") for i, row in enumerate(rows)]
    (tmp_path / "a.csv").write_bytes(b"\n".join(data))
    counts = prepare([tmp_path / "a.csv"], tmp_path / "data", EVERY)
    assert (counts.records, counts.as_cp1252) == (4000, 4)
    text = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8")
    assert text.count("aço") == text.count("é útil") == 4000
    assert ("  as cp1252, not UTF-8", 4, 4 / 4000) in counts.rows()


@settings(deadline=None)
@given(st.text("abcdefgh ,.", min_size=1, max_size=60), st.sampled_from(["для кружки", "日本の茶碗", "ετικέτα"]))
def test_other_scripts_are_not_taken_for_cp1252(latin, other):
    encoding = {"д": "cp1251", "日": "shift_jis", "ε": "iso8859-7"}[other[0]]
    assert not looks_like_cp1252(f"{latin} {other} {latin}".encode(encoding))
    assert not looks_like_cp1252("ação".encode() + b" cortad\xc3")  # a torn character of UTF-8
    assert looks_like_cp1252(f"{latin} «É a ação» – 5°".encode("cp1252"))


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x17F, exclude_characters="Ā", exclude_categories=("Cc", "Cs")), min_size=8))
def test_utf16_shows_without_a_mark(text):
    for encoding in ("utf-16-le", "utf-16-be"):
        if sum(ord(mark) < 256 for mark in text) > 0.5 * len(text):
            assert evident_encoding(text.encode(encoding)) == encoding
    assert evident_encoding(text.encode()) == "utf-8"


def test_an_odd_byte_at_the_end_of_utf16_costs_its_record_alone(tmp_path):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-16") + b"x")
    assert read(tmp_path, "a.jsonl")[0] == EXPECTED
    (tmp_path / "b.jsonl").write_bytes(text[:-2].encode("utf-16") + b"\x00")
    assert read(tmp_path, "b.jsonl")[0] == EXPECTED[:-1]


@pytest.mark.parametrize("first", [20, 25_000])
def test_quotes_escaped_by_a_backslash_break_no_row_and_mangle_no_title(tmp_path, first):
    """As an electronics shop's list: inches in one of fifty rows, the first of them early or after megabytes."""
    draw = random.Random(first)
    rows, expected = ["sku,name,description,path"], []
    for i in range(50_000):
        title, content = f"Pipe {i}, wide", f"A pipe with the number {i}, which is long enough; and {i * 7} more."
        if i >= first and draw.random() < 0.02:
            title = draw.choice(['{}" wide pipe', 'Pipe {}", wide', 'A "{}" pipe', '{}"', '"{}" first']).format(i)
            content = draw.choice([content, f'{content}\nIt is {i}" wide, "flat", and\nsteel "', f'"{content}"'])
        path = "C:\\" if i % 31 == 0 and '"' not in title + content and first > 20 else "" if i % 7 else str(i)
        cells = (str(i), title, content, path)
        rows.append(",".join('"' + cell.replace('"', '\\"') + '"' for cell in cells))
        expected.append({"uid": str(i), "title": title, "content": " ".join(content.split())})
    (tmp_path / "shop.csv").write_text("\r\n".join(rows), encoding="utf-8", newline="")
    counts = prepare([tmp_path / "shop.csv"], tmp_path / "data", EVERY)
    assert counts.lines == counts.records == 50_000
    lines = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == expected


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_cells_with_any_marks_come_back_from_every_dialect(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cells")
    text = st.text(st.sampled_from("ab ,;\"'\n\\|é"), min_size=25, max_size=60)
    texts = data.draw(st.lists(text, min_size=3, max_size=12))
    escaping = data.draw(st.sampled_from([{}, {"doublequote": False, "escapechar": "\\"}]))
    rows = [{"sku": str(i), "title": f"Mug {i}", "content": f"It is {t} so"} for i, t in enumerate(texts)]
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL, **escaping)
        writer.writeheader()
        writer.writerows(rows)
    records, _ = read(folder, "a.csv")
    assert [(r["uid"], r["title"]) for r in records] == [(row["sku"], row["title"]) for row in rows]


# -- packed -----------------------------------------------------------------------------------------------------------


def zst(data: bytes) -> bytes:
    zstd = pytest.importorskip("backports.zstd")
    return zstd.compress(data)


def tar(mode: str, **files: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=f"w:{mode}") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return packed.getvalue()


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
BIG = LINES + b"\n" * 300_000
PACKED = {
    "a.bz2": lambda: bz2.compress(BIG),
    "a.xz": lambda: lzma.compress(BIG),
    "a.zst": lambda: zst(BIG),
    "a.tar": lambda: tar("", **{"x/a.jsonl": BIG, "notes.txt": b"?"}),
    "a.tar.gz": lambda: tar("gz", **{"a.jsonl": LINES, "../b.txt": b"?"}),
    "a.tgz in a name that says nothing": lambda: tar("gz", **{"a.jsonl": BIG}),
    "a.tar.xz": lambda: tar("xz", **{"a.jsonl.gz": gzip.compress(LINES)}),
    "a.zip": lambda: zipped(**{"a.tar.bz2": tar("bz2", **{"a.jsonl": LINES}), "b.txt": b"?"}),
    "b.zip": lambda: zipped(**{"inner.zip": zipped(**{"a.csv": b"x", "trn.json": LINES})}),
    "b.tar.gz": lambda: tar("gz", **{"inner.zip": zipped(**{"a.jsonl": LINES})}),
}


@pytest.mark.parametrize("name", PACKED)
def test_every_packing_by_its_own_program(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name]())
    assert read(tmp_path, name)[0] == EXPECTED
    assert {path.name for path in tmp_path.iterdir()} == {name, "data"}


def test_every_member_of_a_tar_is_read_or_named_as_left_alone(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(tar("gz", **{"b.jsonl": LINES, "a.csv": b"title,content\nA,B", "c.md": b"?"}))
    _, said = read(tmp_path, "a.tar.gz")
    assert [s for s in said if "left alone" in s] == [
        f"archive {tmp_path / 'a.tar.gz'}: left alone: c.md, link.jsonl (a link)"
    ]
    assert [s.split(":")[0] for s in said[1:3]] == [f"{tmp_path / 'a.tar.gz'}, {name}" for name in ("a.csv", "b.jsonl")]


@pytest.mark.parametrize("name", [name for name in PACKED if name != "a.tar"])
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_packing_is_a_sentence(tmp_path, name, seed):
    draw, data = random.Random(seed), bytearray(PACKED[name]())
    if seed % 2:
        del data[draw.randrange(20, len(data) - 1) :]
    else:
        for _ in range(10):
            data[draw.randrange(10, len(data))] = draw.randrange(256)
    (tmp_path / name).write_bytes(bytes(data))
    try:
        prepare([tmp_path / name], tmp_path / "data", EVERY)
    except DataError as error:
        assert name in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", ["a.xz", "a.tar.gz", "b.zip"])
def test_a_packed_pipe(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED[name]())
    command = [
        sys.executable,
        str(Path(__file__).parent.parent / "data_prep.py"),
        "-",
        "--output_dir",
        str(tmp_path / "d"),
    ]
    with (tmp_path / name).open("rb") as file, subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as cat:
        done = subprocess.run([*command, "--no_report"], stdin=cat.stdout, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "kept                                 7" in done.stdout, done.stderr


@pytest.mark.parametrize(("begin", "words"), [(b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"%PDF-1.7", "PDF"), (b"Rar!", "RAR")])
def test_what_is_no_catalogue_is_named(tmp_path, begin, words):
    (tmp_path / "a.csv").write_bytes(begin + b"\x00" * 99)
    with pytest.raises(DataError, match=words):
        prepare([tmp_path / "a.csv"], tmp_path / "data")


# -- what is said -----------------------------------------------------------------------------------------------------


def test_a_description_says_what_was_found_and_writes_nothing(tmp_path):
    with (tmp_path / "loja.csv").open("w", encoding="cp1252", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["SKU", "Nome", "Descrição", "Marca"])
        writer.writerows([row["uid"], row["title"], row["content"], row["brand"]] for row in ROWS)
    done = script("data_prep.py", "--describe", tmp_path / "loja.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ('a table, ";" between its cells, in cp1252', "fields: SKU, Nome, Descrição, Marca",
                  'title from "Nome", content from "Descrição", uid from "SKU"', "Nome: Caneca azul nº 0",
                  "Marca: Aço & Cia", "record 4"):  # fmt: skip
        assert words in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["loja.csv"]
    (tmp_path / "odd.csv").write_text("a\x1b[31m,b\nc,d\n", encoding="utf-8")
    assert any("no field for the title" in line for line in described([tmp_path / "odd.csv"], EVERY))


@pytest.mark.parametrize(("name", "data", "words"), [
    ("a.jsonl", b"not json\n" * 201, r"201 \(broken line 201\).*JSON, an object a line"),
    ("a.csv", b"brand,colour\nAcme,blue\n", 'no field for the title and the content among "brand", "colour": name it'),
    ("a.jsonl", b'{"title": "Mug", "content": ""}\n' * 3, r"Lines read: 3 \(empty content 3\).*--content_field"),
    ("a.jsonl", b'{"title": "Mug", "content": "short"}\n', "--min_content_chars"),
    ("a.jsonl", b'["Mug"]\n["Cup"]\n', "A product is an object with fields"),
    ("a.jsonl", b'{"title": "\xe0\xe1\xe2\xe3\xe4\xe5"}\n', "--encoding"),
    ("a.jsonl", b"", "There is nothing in it"),
    ("a.xml", b"<a><b>1</b><c>2</c></a>", "no field for the title and the content among \"b\", \"c\""),
])  # fmt: skip
def test_the_sentence_names_the_cause(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"Not one usable record.*{words}") as error:
        prepare([tmp_path / name], tmp_path / "data", Options(fields=Fields()))
    assert "\n" not in str(error.value) and len(str(error.value)) - len(str(tmp_path)) < 240


# -- what a reviewer found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["Artículos", "a/b", 'with "quotes"', "\x1b[2J", "produtos"])
@pytest.mark.parametrize("ascii", [True, False])
def test_the_key_of_an_array_may_be_any(tmp_path, key, ascii):
    (tmp_path / "a.json").write_text(json.dumps({key: ROWS}, ensure_ascii=ascii), encoding="utf-8")
    assert read(tmp_path, "a.json")[0] == EXPECTED


def test_several_arrays_of_records_in_an_object(tmp_path):
    """The one with most is read; the others are named, and what cannot be seen from the beginning is counted."""
    collections = [{"title": "Blue", "description": "All that is blue, in one place."}] * 2
    (tmp_path / "a.json").write_text(json.dumps({"collections": collections, "products": ROWS}), encoding="utf-8")
    records, said = read(tmp_path, "a.json")
    assert records == EXPECTED and 'the array "products", "collections" left alone' in said[0]
    text = json.dumps({"products": ROWS}) + "\n" + json.dumps({"items": ROWS})
    (tmp_path / "b.json").write_text(text, encoding="utf-8")
    counts = prepare([tmp_path / "b.json"], tmp_path / "data", EVERY)
    assert counts.records == 7 and counts.lines == 7 + counts.reasons["broken line"] == 8


@pytest.mark.parametrize("wrap", [lambda record: {"products": [record] * 9}, lambda record: record])
def test_an_array_inside_a_record_is_not_the_one_that_holds_the_records(tmp_path, wrap):
    images = [{"name": f"{i}.jpg", "src": "https://example.com/" + "x" * 70} for i in range(900)]
    (tmp_path / "a.json").write_text(json.dumps(wrap({"id": 1, "images": images, **ROWS[0]})), encoding="utf-8")
    assert read(tmp_path, "a.json")[0] == [EXPECTED[0]]


def test_a_name_with_a_star_and_a_folder_of_them(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "star*.jsonl").write_bytes(LINES)
    assert read(tmp_path, "in/star*.jsonl")[0] == read(tmp_path, "in")[0] == EXPECTED


def test_dates_that_python_has_not(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"title": ["Mug"], "description": ["A mug of steel."], "until": pa.array([10**7], pa.date32())})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is Parquet that cannot be read"):
        prepare([tmp_path / "a.parquet"], tmp_path / "data")


def test_title_and_g_title_are_not_joined_and_references_to_controls_are_nothing(tmp_path):
    root = rss()
    for item, row in zip(root.iter("item"), ROWS, strict=True):
        etree.SubElement(item, "title").text = f"{row['title']} | The shop"
        etree.SubElement(item, "description").text = "Buy now"
    data = etree.tostring(root).replace(b"<g:shipping>", b"<g:shipping>&#8;&#x1F;")
    (tmp_path / "a.xml").write_bytes(data)
    assert read(tmp_path, "a.xml")[0] == EXPECTED


def test_an_entity_in_capitals_and_titles_of_other_namespaces(tmp_path):
    (tmp_path / "a.xml").write_text(
        '<rss xmlns:m="http://search.yahoo.com/mrss/"><item><title>R&AMP;D mug</title><m:title>a.jpg</m:title>'
        "<description>A mug of steel, for all of us.</description></item></rss>", encoding="utf-8"
    )  # fmt: skip
    assert read(tmp_path, "a.xml")[0] == [{"uid": "1", "title": "R&D mug", "content": "A mug of steel, for all of us."}]


def test_blocks_are_as_small_for_long_texts_in_feeds():
    block = _next_block({"title": "Mug", "content": "x" * 100_000} for _ in range(100))
    assert len(block) <= BLOCK_BYTES // 100_000 + 1


def test_rows_above_the_header_of_a_table(tmp_path):
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        file.write("Loja da Ana;;;;\n2026-01-02\n\n")
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(ROWS)
    assert read(tmp_path, "a.csv")[0] == EXPECTED


def test_a_string_that_the_sample_cuts_off_is_looked_at_once():
    sample = b'{"products":[{"body_html":"' + b'\\"' * 40_000
    assert list(read_json._TOKENS.finditer(sample))[-1].end() == len(sample)


def test_many_quotes_that_are_never_closed_cost_a_few_lines_each(tmp_path, monkeypatch):
    rows = "".join(f'Monitor {i} 24" wide,"A monitor with the number {i}\n' for i in range(6_000))
    good = "".join(f'Mug {i},"A mug with the number {i}, of steel"\n' for i in range(30))
    (tmp_path / "a.csv").write_text(f"title,content\n{good}{rows}", encoding="utf-8")
    taken, take = [0], read_table._Lines.__next__

    def counted(lines):
        taken[0] += 1
        return take(lines)

    monkeypatch.setattr(read_table._Lines, "__next__", counted)
    counts = prepare([tmp_path / "a.csv"], tmp_path / "data", EVERY)
    assert counts.lines == 6_030
    assert taken[0] < 500 * 6_000  # 6,000 lines for each of them before


def test_links_in_a_tar_and_objects_without_end(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(LINES)
        archive.addfile(info, io.BytesIO(LINES))
        for name, target in (("b.jsonl", "a.jsonl"), ("c.jsonl", "../victim")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    (tmp_path / "a.tar").write_bytes(packed.getvalue())
    said = []
    counts = prepare([tmp_path / "a.tar"], tmp_path / "data", EVERY, say=said.append)
    assert counts.lines == 14 and said[0].endswith("left alone: c.jsonl (a link)")
    (tmp_path / "deep.jsonl").write_bytes(b'{"a":' * 12_000 + b"\n" + LINES)
    assert read(tmp_path, "deep.jsonl")[0] == EXPECTED


def test_a_zip_with_a_content_xml_is_no_spreadsheet(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(**{"content.xml": etree.tostring(rss())}))
    assert read(tmp_path, "a.zip")[0] == EXPECTED
