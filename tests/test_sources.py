"""What an input can be: every format, packing and encoding gives the same records, and nothing is lost."""

import gzip
import io
import json
from pathlib import Path

import pytest
from conftest import script, zipped
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalogue import read_json, read_table
from catalogue.fields import Fields, choose_fields
from catalogue.judge import Options
from catalogue.layout import read_layout
from catalogue.prepare import prepare
from catalogue.records import MAX_RECORD_BYTES, START_BYTES, Broken, TooLong
from catalogue.sources import Source, find_sources, size_of
from text.errors import DataError

PRODUCTS = [
    {"uid": f"B{i}", "title": f"Café {i}", "content": f"Uma “xícara” número {i}:\nlinha dois, com vírgula; e {w}."}
    for i, w in enumerate(["açúcar", "limão", "canela", "mel", "gengibre", "baunilha"])
]
EVERY = Options(val_share=0, test_share=0, drop_near_duplicates=False, catalogue=False)


def as_lines(products=PRODUCTS) -> bytes:
    return b"".join(json.dumps(p, ensure_ascii=False).encode() + b"\n" for p in products)


def as_array(products=PRODUCTS) -> bytes:
    return json.dumps(products, ensure_ascii=False, indent=2).encode()


def as_table(delimiter=",", newline="\r\n", products=PRODUCTS, quote='"') -> bytes:
    cells = [list(products[0]), *(list(p.values()) for p in products)]
    rows = [delimiter.join(quote + cell.replace(quote, 2 * quote) + quote for cell in row) for row in cells]
    return newline.join(rows).encode() + newline.encode()


def read(folder: Path, *inputs: Path, options: Options = EVERY) -> list[dict]:
    prepare(list(inputs), folder / "data", options)
    lines = (folder / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


EXPECTED = [{**p, "content": p["content"].replace("\n", " ")} for p in PRODUCTS]
OTHER = as_lines([{"title": "Not this", "content": "it belongs to the test split of LF-Amazon"}])
INPUTS = {
    "trn.json": as_lines(),
    "crlf.jsonl": as_lines().replace(b"\n", b"\r\n"),
    "bom.json": b"\xef\xbb\xbf" + as_lines(),
    "array.json": as_array(),
    "bom array.json": b"\xef\xbb\xbf\n " + as_array(),
    "no name": as_array(),
    "comma.csv": as_table(),
    "bom.csv": b"\xef\xbb\xbf" + as_table(";"),
    "tab.tsv": as_table("\t", "\n"),
    "pipe.csv": as_table("|"),
    "single quotes.csv": as_table(quote="'"),
    "old mac.csv": as_table(newline="\r"),
    "table without a name": as_table(";"),
    "excel.txt": as_table("\t").decode().encode("utf-16"),
    "trn.json.gz": gzip.compress(as_lines()),
    "two members.json.gz": gzip.compress(as_lines(PRODUCTS[:2])) + gzip.compress(as_lines(PRODUCTS[2:])),
    "table.csv.gz": gzip.compress(as_table()),
    "shop.zip": zipped(**{"products.csv": as_table(), "read me.txt": b"hello", "__MACOSX/products.csv": b"?"}),
    "LF-Amazon.zip": zipped(**{"tst.json": OTHER, "trn.json": as_lines(), "lbl.json": OTHER}),
    "LF-Amazon.raw.zip": zipped(**{f"LF/{n}.json.gz": gzip.compress(OTHER) for n in ("lbl", "tst")},
                                **{"LF/trn.json.gz": gzip.compress(as_lines())}),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_every_format_and_packing_gives_the_same_records(tmp_path, name):
    (tmp_path / name).write_bytes(INPUTS[name])
    read_bytes = []
    prepare([tmp_path / name], tmp_path / "data", EVERY, progress=read_bytes.append)
    assert read(tmp_path, tmp_path / name) == EXPECTED
    assert sum(read_bytes) == sum(map(size_of, find_sources([tmp_path / name])))


@pytest.mark.parametrize("mark", ['""', '\\"'])
def test_quotes_inside_a_cell_however_they_are_written(tmp_path, mark):
    rows = "".join(f'{i}, "Screen {i}", "It is 24{mark} wide, and {mark}flat{mark}."\r\n' for i in range(20))
    (tmp_path / "shop.csv").write_text(f"id, title, description\r\n{rows}", encoding="utf-8", newline="")
    expected = {"uid": "3", "title": "Screen 3", "content": 'It is 24" wide, and "flat".'}
    assert read(tmp_path, tmp_path / "shop.csv")[3] == expected


def test_a_table_is_the_same_for_any_number_of_workers(tmp_path):
    (tmp_path / "shop.csv").write_bytes(as_table(";", products=PRODUCTS * 700))
    options = Options(drop_near_duplicates=False)
    one, two = (prepare([tmp_path / "shop.csv"], tmp_path / str(n), options, workers=n) for n in (1, 2))
    assert one == two
    assert one.lines == 4200
    assert (tmp_path / "1" / "train.jsonl").read_bytes() == (tmp_path / "2" / "train.jsonl").read_bytes()


def test_folders_and_several_inputs_and_standard_input(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "a.csv").write_bytes(as_table(products=PRODUCTS[:2]))
    (folder / "b.json.gz").write_bytes(gzip.compress(as_lines(PRODUCTS[2:4])))
    (folder / "notes.txt").write_text("not a catalogue", encoding="utf-8")
    (tmp_path / "c.json").write_bytes(as_array(PRODUCTS[4:]))
    assert read(tmp_path, folder, tmp_path / "c.json") == EXPECTED
    (folder / "trn.json").write_bytes(as_lines(PRODUCTS[:1]))
    assert read(tmp_path, folder) == EXPECTED[:1]
    done = script("data_prep.py", "-", "--val_share=0", "--test_share=0", "--no_report", stdin=as_lines().decode(),
                  cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'standard input: JSON, an object a line; title from "title"' in done.stdout
    assert "kept                                 6" in done.stdout


def test_what_cannot_be_unpacked_is_a_sentence(tmp_path):
    for name, data, words in [
        ("torn.zip", INPUTS["shop.zip"][:-30], "damaged or was cut off"),
        ("scrambled.zip", INPUTS["shop.zip"].replace(b"PK\x01\x02", b"PK\x01\x03"), "damaged or was cut off"),
        ("empty.zip", zipped(), "holds no catalogue"),
        ("no catalogue.zip", zipped(**{"a.txt": b"?", "b.txt": b"?"}), "holds no catalogue"),
        ("nested.zip", zipped(**{"a.zip": zipped()}), "holds no catalogue"),
        ("deep.zip", zipped(**{"a.zip": zipped(**{"b.zip": zipped(**{"trn.json": as_lines()})})}), "too many times"),
        ("torn.json.gz", INPUTS["trn.json.gz"][:-12], "damaged or was cut off"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=words):
            prepare([tmp_path / name], tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["uid", "title", "content", "target_ind"], ("title", "content", "uid")),
        (["asin", "description", "title"], ("title", "description", "asin")),
        (["instruction", "input", "output"], ("instruction", "output", None)),
        (["prompt", "completion"], ("prompt", "completion", None)),
        (["SKU", "Nome", "Descrição"], ("Nome", "Descrição", "SKU")),
        (["Handle", "Title", "Body (HTML)", "Vendor"], ("Title", "Body (HTML)", "Handle")),
        (["product-name", "Long Description"], ("product-name", "Long Description", None)),
        (["título", "a"], ("título", None, None)),
        ([], (None, None, None)),
    ],
)
def test_fields_are_found_by_name(names, chosen):
    assert choose_fields(names) == Fields(*chosen)


def test_fields_named_by_the_user_go_first_and_the_choice_is_said(tmp_path):
    source = tmp_path / "shop.json"
    source.write_text(json.dumps([{"id": 7, "title": "x", "marca e nome": "Copo", "text": "Um copo de vidro azul."}]),
                      encoding="utf-8")  # fmt: skip
    said = []
    fields = Fields("marca e nome", "TEXT", None)
    prepare([source], tmp_path / "data", Options(fields=fields, val_share=0, test_share=0), say=said.append)
    assert f'{source}: JSON, an array; title from "marca e nome", content from "text", uid from "id"' in said
    words = 'no field for the content among "id", "title", "marca e nome", "text": name it with --content_field NAME'
    with pytest.raises(DataError, match=f"Not one usable.*{words}"):
        prepare([source], tmp_path / "data", say=said.append)
    assert said[-1].endswith(words)


def raw_records(data: bytes, name: str = "a.json") -> list:
    return list(read_layout(io.BufferedReader(io.BytesIO(data)), Source(Path(name)), Fields()).records)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(['"', "\\", "]", "},", '\\"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(JSON, max_size=6), st.sampled_from([None, 0, 3]), st.integers(1, 9), st.booleans())
def test_an_array_is_cut_into_its_elements(elements, indent, block, ascii):
    data = json.dumps(elements, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    cut = list(read_json.elements(Trickle(data, block), read_json.ARRAY, read_json.NEXT_ARRAY))
    assert [json.loads(raw) for raw in cut] == json.loads(data)


class Trickle(io.BytesIO):
    """Gives a few bytes at a time, so that every border falls everywhere."""

    def __init__(self, data: bytes, count: int):
        super().__init__(data)
        self._count = count

    def read(self, _=-1) -> bytes:
        return super().read(self._count)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='[]{},":\\ a1\n', max_size=40), st.integers(1, 9))
@example('[{"a": 1}, {"b": [}, 3', 2)
@example('["\\', 1)
def test_any_bytes_behind_a_bracket_end_and_only_commas_and_white_space_are_dropped(text, block):
    data = b"[" + text.encode()
    kept = b"".join(read_json.elements(Trickle(data, block), read_json.ARRAY, read_json.NEXT_ARRAY))
    drop = str.maketrans("", "", " \n,[]{}")
    assert kept.decode().translate(drop) == text.translate(drop)


def test_a_record_without_end_is_cut_off_and_the_next_one_is_found(monkeypatch):
    for reader in (read_json, read_table):
        monkeypatch.setattr(reader, "MAX_RECORD_BYTES", 1000)
    long = b'{"title": "' + b'\\"x,]}' * 200_000 + b'"}'
    for data, name in (
        (b"[1," + long + b", 2]", "a.json"),
        (b"1\n" + long + b"\n 2", "a.jsonl"),
        (b"[1, [[" + long + b'], "' + b"y" * 9000 + b'"], 2]', "a.json"),
    ):
        one, cut, two = raw_records(data, name)
        assert (one.strip(), type(cut), two.strip()) == (b"1", TooLong, b"2")
        assert len(cut) <= START_BYTES
    rows = raw_records(b'title,content\na,b\n"' + b"x" * 5000 + b"\nc,d\n", "a.csv")
    assert rows[0] == ["a", "b"]
    assert any(isinstance(row, TooLong) for row in rows)


@pytest.mark.parametrize("delimiter", [b",", b"\t"])
def test_a_quote_that_is_never_closed_costs_its_own_line(delimiter):
    text = b'title,content\n"a",b\nc,"never closed\nd,e\nf,g\n'.replace(b",", delimiter)
    a, broken, d, f = raw_records(text, "a.csv")
    assert (a, d, f) == (["a", "b"], ["d", "e"], ["f", "g"])
    assert isinstance(broken, Broken) and broken.startswith(b"c")


def test_a_long_line_of_a_table_is_one_record(tmp_path):
    source = tmp_path / "shop.csv"
    source.write_bytes(b"title,content\nA," + b"x" * 28_000_000 + b"\nB,A description of more than twenty letters.\n")
    counts = prepare([source], tmp_path / "data", EVERY)
    assert (counts.lines, counts.records, counts.reasons["longer than 4 MB"]) == (2, 1, 1)


@pytest.mark.parametrize("before", [b"sep=;\r\n", b"\r\n\r\n", b"\n \nsep=;\n"])
def test_what_stands_before_the_header_of_a_table(before):
    assert raw_records(before + b"title;content\na;b\n", "a.csv") == [["a", "b"]]


def test_quotes_of_a_database_beside_empty_cells():
    text = b'"id","title","note","content"\n' + b'"1","Mug","","of 5 cm\\" wide, \\"steel\\", ok"\n' * 3
    assert raw_records(text, "a.csv") == [["1", "Mug", "", 'of 5 cm" wide, "steel", ok']] * 3


@pytest.mark.parametrize("bad", [b"\n", b"caf\xe9\n", b'{"title": "a"}\n'])
def test_fields_are_looked_for_until_they_are_found(tmp_path, bad):
    source = tmp_path / "late.jsonl"
    source.write_bytes(bad * 5_000 + as_lines())
    counts = prepare([source], tmp_path / "data", EVERY)
    assert counts.records == len(PRODUCTS)


def test_names_that_cannot_be_printed_are_escaped(tmp_path):
    shop = tmp_path / "shop.csv"
    shop.write_bytes("Имя;Описание товара\nКружка;Кружка из нержавеющей стали\n".encode("cp1251") * 2)
    result = script("data_prep.py", str(shop), "--output_dir", str(tmp_path / "data"))
    assert result.returncode == 2 and "--encoding" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes(as_lines().replace(b'"uid"', b'"uid\\ud800"'))
    assert prepare([odd], tmp_path / "odd", EVERY).records == len(PRODUCTS)


def test_an_encoding_that_is_none_is_a_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_lines())
    with pytest.raises(DataError, match="no encoding 'base64'"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "data", Options(encoding="base64"))


def test_its_own_outputs_are_no_input(tmp_path):
    (tmp_path / "shop.jsonl").write_bytes(as_lines())
    first = prepare([tmp_path], tmp_path, EVERY)
    assert prepare([tmp_path], tmp_path, EVERY) == first


def test_a_star_that_the_shell_left_alone(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(as_lines())
    assert [source.name for source in find_sources([tmp_path / "*.jsonl"])] == ["a.jsonl", "b.jsonl"]


def test_a_line_of_50_mb_is_one_rejected_record(tmp_path):
    source = tmp_path / "trn.json.gz"
    line = b'{"title": "' + b"x" * 50_000_000 + b'"}\n'
    source.write_bytes(gzip.compress(as_lines() + line + as_lines()[:0], compresslevel=1))
    counts = prepare([source], tmp_path / "data", EVERY)
    assert (counts.lines, counts.records, counts.reasons["longer than 4 MB"]) == (7, 6, 1)
    (reject,) = (tmp_path / "data" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(reject) | {"start": ""} == {
        "input": "trn.json", "line": 7, "reason": "longer than 4 MB", "start": "",
    }  # fmt: skip
    assert len(line) > 10 * MAX_RECORD_BYTES


GOOD = as_lines().splitlines()
field = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()))
    | st.lists(st.text(max_size=5)) | st.dictionaries(st.text(max_size=3), st.integers())
)  # fmt: skip
any_line = (
    st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(["uid", "title", "content"]), field).map(lambda r: json.dumps(r).encode())
    | st.tuples(field, field).map(lambda v: f'{{"title": {json.dumps(v[0])}, "title": {json.dumps(v[1])}}}'.encode())
    | st.sampled_from([b"\x00" * 9, b"[" * 5000, b'{"a":' * 3000, b'{"title": "\\ud800", "content": "\\udfff"}', b"\r"])
    | st.sampled_from(GOOD)
)


@settings(max_examples=120, deadline=None)
@example([b"title::content:", GOOD[0], b"\x00"], "a.csv")  # a second header, in another dialect
@example([b"title::content:", GOOD[0], b":::", b"\x00"], "a.csv")  # and a row that is as long as that one
@given(st.lists(any_line, max_size=10), st.sampled_from(["a.json", "a.csv", "a", "array.json", "a.json.gz", "a.zip"]))
def test_any_bytes_in_any_format_are_accounted_for(tmp_path_factory, lines, name):
    folder = tmp_path_factory.mktemp("any")
    if name == "a.csv":
        data = b"title,content\n" + b"Mug,Holds the coffee for a whole morning\n" + b"\n".join(lines)
    elif name == "array.json":
        data = b"[" + b",".join([*GOOD, *lines])
    else:
        data = b"\n".join([*GOOD, *lines])
    packed = {"a.json.gz": gzip.compress, "a.zip": lambda data: zipped(**{"a.json": data})}.get(name, bytes)(data)
    (folder / name).write_bytes(packed)
    counts = prepare([folder / name], folder / "data", EVERY)  # asserts lines == kept + reasons itself
    written = (folder / "data" / "train.jsonl").read_bytes()
    assert written.count(b"\n") == counts.kept["train"] >= 1
    if name in ("a.json", "a", "a.json.gz", "a.zip"):
        assert counts.lines == data.count(b"\n") + (not data.endswith(b"\n"))
    rejects = (folder / "data" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    unreadable = ("longer than 4 MB", "not UTF-8", "broken line", "not an object")
    assert len(rejects) == sum(counts.reasons[reason] for reason in unreadable)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200), st.sampled_from(["a.json", "a.csv", "a", "a.gz", "a.zip"]))
@example(b"\r", 1, "a.csv")  # a table whose first row is blank
def test_damaged_and_random_files_are_a_sentence_or_an_account(tmp_path_factory, noise, at, name):
    folder = tmp_path_factory.mktemp("noise")
    data = bytearray({"a.gz": INPUTS["trn.json.gz"], "a.zip": INPUTS["shop.zip"]}.get(name, noise))
    data[at : at + len(noise)] = noise
    (folder / name).write_bytes(bytes(data))
    try:
        prepare([folder / name], folder / "data", EVERY)
    except DataError as error:
        assert str(error)
        assert {path.name for path in (folder / "data").glob("*")} <= {".lock"}
