"""Columns that are facts: found in the source, kept in the record, put behind the title, passed on when asking."""

import csv
import json

import pytest
from conftest import RECORDS, script, write_data

import generate
from catalogue.claims import Claims
from catalogue.fields import AUTO, Fields
from catalogue.index import Catalogue, write_catalogue
from catalogue.judge import Options
from catalogue.prepare import prepare
from run.answers import Answers
from run.titles import Asked, read_titles
from text.batch import Encoder
from text.errors import DataError
from text.stream import RecordFile, given
from text.template import QA, choose_template

COLOURS = ("azul", "verde", "preta", "branca")
ROWS = [
    {
        "Nome": f"Caneca {i}",
        "Descrição": f"Uma caneca {COLOURS[i % 4]} da marca Kelbra, para o café da manhã.",
        "Cor": COLOURS[i % 4].upper(),
        "Marca ": "Kelbra",
        "Preço": str(10 + i),
        "Notas": "ver com o fornecedor antes de publicar " * 9,
    }
    for i in range(40)
]


def prepared(folder, rows=ROWS, attributes=(AUTO,)) -> tuple[list[dict], list[str]]:
    source, said = folder / "loja.csv", []
    with source.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    options = Options(fields=Fields(attributes=attributes), val_share=0, test_share=0, drop_near_duplicates=False)
    prepare([source], folder / "data", options, say=said.append)
    file = RecordFile(folder / "data" / "train.jsonl")
    return [file[i] for i in range(len(file))], said


def test_auto_takes_what_the_descriptions_repeat(tmp_path):
    records, said = prepared(tmp_path)
    assert all(list(record["attributes"]) == ["cor", "marca"] for record in records)
    assert records[1]["attributes"] == {"cor": "VERDE", "marca": "Kelbra"}
    assert 'attributes from "Cor", "Marca"' in said[0]
    assert Catalogue(tmp_path / "data").attributes == {"cor", "marca"}


def test_named_ones_are_taken_and_absent_ones_said(tmp_path):
    records, said = prepared(tmp_path, attributes=("preco", "tamanho"))
    assert [record["attributes"] for record in records[:2]] == [{"preco": "10"}, {"preco": "11"}]
    assert 'no field "tamanho" for the attributes so far' in said[0]
    assert "--attributes auto takes such fields along" in said[0]


def test_without_them_a_record_and_its_prompt_are_what_they_were(tmp_path, tokenizer):
    records, said = prepared(tmp_path, attributes=())
    assert all(set(record) == {"uid", "title", "content"} for record in records)
    assert 'the descriptions repeat "Cor", "Marca": --attributes auto' in said[0]
    line = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert list(json.loads(line)) == ["uid", "title", "content"]
    assert QA.asked(records[0]) == QA.asked(records[0] | {"attributes": {}}) == records[0]["title"]
    assert given(records[0]) == records[0]["title"]


def test_empty_and_long_values_are_none(tmp_path):
    rows = [row | {"Cor": "" if i % 2 else row["Cor"]} for i, row in enumerate(ROWS)]
    records, _ = prepared(tmp_path, rows, ("cor", "notas"))
    assert [set(record.get("attributes", {})) for record in records[:2]] == [{"cor"}, set()]


@pytest.mark.parametrize("value", ["[1]", '"blue"', "3"])
def test_attributes_that_are_none_are_a_sentence(tmp_path, value):
    (tmp_path / "train.jsonl").write_text(
        f'{{"uid": "1", "title": "a", "content": "b", "attributes": {value}}}\n', encoding="utf-8"
    )
    with pytest.raises(DataError, match="record 1"):
        RecordFile(tmp_path / "train.jsonl")[0]


def test_the_template_puts_them_behind_title_or_question(tmp_path, tokenizer):
    record = RECORDS[0] | {"attributes": {"colour": "blue", "size": "350 ml"}}
    assert QA.asked(record) == "Blue Mug (colour: blue; size: 350 ml)"
    assert QA.asked(record | {"title": "What is Blue Mug?"}).startswith("What is Blue Mug? (colour")
    encoder = Encoder(tokenizer, QA, 256)
    (row,) = encoder.rows([record])
    assert encoder.prompts([QA.asked(record)]) == [row.ids[: row.first_supervised]]
    own = tmp_path / "own.toml"
    own.write_text(
        'prompt = "Q: {title}\\nA:"\nanswer = " {content}"\nattributes = " | {attributes}"\n', encoding="utf-8"
    )
    assert choose_template(str(own)).asked(record) == "Blue Mug | colour: blue; size: 350 ml"
    own.write_text('prompt = "Q: {title}\\nA:"\nanswer = " {content}"\nattributes = "none"\n', encoding="utf-8")
    with pytest.raises(DataError, match="attributes"):
        choose_template(str(own))


def test_they_support_what_an_answer_claims(tmp_path):
    """And are part of what the claims are learned from: here no title holds a colour."""
    prepared(tmp_path)
    claims = Claims(Catalogue(tmp_path / "data"))
    text = "Uma caneca verde da marca Kelbra."
    assert [claim.text for claim in claims.unsupported(text, [given({"title": "Caneca"})])] == ["verde", "Kelbra"]
    attributes = {"cor": "verde", "marca": "Kelbra"}
    assert claims.unsupported(text, [given({"title": "Caneca", "attributes": attributes})]) == []


def test_a_catalogue_of_an_earlier_version_is_read(tmp_path):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "catalogue.sqlite")) as base:
        base.execute("CREATE VIRTUAL TABLE product USING fts5(uid UNINDEXED, title, content)")
        base.execute("INSERT INTO product VALUES ('1', 'Blue mug', 'A blue mug.')")
        base.commit()
    catalogue = Catalogue(tmp_path)
    assert catalogue.attributes == set() and [p.uid for p in catalogue.nearest("blue mug", 3)] == ["1"]
    assert Claims(catalogue).unsupported("A Kelbra.", ["mug"])


def test_a_table_of_titles_keeps_its_columns_and_passes_known_ones_on(tmp_path):
    table = tmp_path / "in.csv"
    table.write_text("Nome;Cor;Estoque;Descrição\nCaneca;azul;7;\n;verde;1;\nPrato;;2;velho\n", encoding="utf-8")
    titles = read_titles(table)
    assert [asked.title for asked in titles.asked] == ["Caneca", "", "Prato"]
    assert titles.columns == ["Nome", "Cor", "Estoque", "Descrição"] and titles.content == "Descrição"
    assert titles.asked[0].record({"cor"}, {"marca": "Kelbra"}) == {
        "title": "Caneca",
        "attributes": {"cor": "azul", "marca": "Kelbra"},
    }
    assert titles.asked[2].record({"cor"}, {}) == {"title": "Prato"}
    out = tmp_path / "out.csv"
    answers = Answers(out, titles, {})
    for asked in titles.asked:
        text = f'{asked.title}, a "good" one;\nindeed'
        answers.add({"answer": text, "unsupported": [{"text": "good", "start": 3}] * 2})
    assert not out.exists()
    answers.finish(copies=1)
    with out.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert list(rows[0]) == ["Nome", "Cor", "Estoque", "Descrição", "unsupported", "note"]
    assert [row["Estoque"] for row in rows] == ["7", "1", "2"] and rows[0]["unsupported"] == "good"
    assert rows[2]["Descrição"] == 'Prato, a "good" one;\nindeed'


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A run that prepared columns, trained for a moment."""
    folder = tmp_path_factory.mktemp("attributes")
    prepared(folder)
    command = ("--model", "pocket", "--max_steps", 3, "--batch_size", 4, "--device", "cpu", "--data", folder / "data")
    assert script("train.py", *command, "--output_dir", folder / "runs", "--run_name", "r").returncode == 0
    return folder / "runs" / "r"


def test_asked_on_the_command_line_and_from_a_table(run, tmp_path):
    more = ("--max_new_tokens", 8, "--candidates", 1, "--greedy", "--device", "cpu")
    asked = script("generate.py", "--run", run, "--title", "Caneca", "--attribute", "Cor=azul", *more)
    assert asked.returncode == 0 and asked.stdout.strip()
    table, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    table.write_text("Nome,Cor,Descrição\nCaneca,azul,\n,verde,\n", encoding="utf-8")
    result = script("generate.py", "--run", run, "--titles", table, "--out", out, *more)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())
    assert first["attributes"] == {"cor": "azul"} and first["answer"] == asked.stdout.strip()
    assert "note" not in first
    table.write_text("Nome,Cor\nTelescope,black\n", encoding="utf-8")
    said = script("generate.py", "--run", run, "--titles", table, *more)
    assert json.loads(said.stdout)["note"].startswith("nothing in the catalogue resembles this")
    assert "attributes of its catalogue: cor, marca; columns of the table that are: cor)" in said.stderr
    assert second["title"] == "" and second["answer"] == "" and "no title" in second["error"]
    again = script("generate.py", "--run", run, "--titles", table, "--out", out, *more)
    assert again.returncode == 2 and "is there already" in again.stderr
    unknown = script("generate.py", "--run", run, "--title", "Caneca", "--attribute", "peso=2 kg", *more)
    assert unknown.returncode == 0 and "cor, marca" in unknown.stderr


def test_attributes_are_read_in_asking_as_in_preparing(tmp_path):
    """Those of a record that was prepared before; of two columns that look alike the first that has a value."""
    file = tmp_path / "records.jsonl"
    lines = [
        {"title": "Caneca", "attributes": {"Cor": "azul", "peso": 2}, "marca": "Kelbra"},
        {"title": "Prato", "Cor ": "", "cor": "verde<br>", "marca": "x" * 101},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    first, second = read_titles(file).asked
    assert first.record({"cor", "marca"}, {})["attributes"] == {"marca": "Kelbra", "cor": "azul", "peso": "2"}
    assert second.record({"cor", "marca"}, {})["attributes"] == {"cor": "verde"}
    assert second.record({"cor"}, {"cor": "roxo"})["attributes"] == {"cor": "roxo"}  # the command line goes before


def test_a_value_is_given_once(run):
    twice = ("--attribute", "Cor=azul", "--attribute", "marca=Kelbra", "--attribute", "cor=verde")
    result = script("generate.py", "--run", run, "--title", "Caneca", *twice)
    assert result.returncode == 2 and "cor is given more than once (azul and verde)" in result.stderr


def test_a_title_that_was_typed_is_read_as_one_of_a_table(tmp_path):
    """Accents that stand beside their letters, markup."""
    (tmp_path / "titles.txt").write_text("Cera\u0302mica &amp; vidro\n<br>\n", encoding="utf-8")
    assert read_titles(tmp_path / "titles.txt").asked == [Asked("Cerâmica & vidro"), Asked("<br>")]
    assert generate.parse(["--adapter", "x", "--title", "Cera\u0302mica"]).asked.asked == [Asked("Cerâmica")]


@pytest.mark.parametrize("wrong", ["azul", "=azul", "cor=", "cor= ", "cor=<br>"])
def test_what_is_no_attribute_is_a_sentence(run, wrong):
    result = script("generate.py", "--run", run, "--title", "Caneca", "--attribute", wrong)
    assert result.returncode == 2 and "NAME=VALUE" in result.stderr


def test_asked_is_what_a_line_is(tmp_path):
    (tmp_path / "titles.txt").write_text("Caneca, azul\n\nPrato;verde\n", encoding="utf-8")
    assert read_titles(tmp_path / "titles.txt").asked == [Asked("Caneca, azul"), Asked("Prato;verde")]
    data = write_data(tmp_path / "d", RECORDS)
    write_catalogue(data / "catalogue.sqlite", data / "train.jsonl")
    assert Catalogue(data).attributes == set()


def test_a_row_that_cannot_be_read_and_a_column_of_the_shop_are_kept(tmp_path):
    table = tmp_path / "in.csv"
    table.write_text("Nome,note,Texto\n" + "Caneca,meu,\n" * 30 + "a,b,c,d\nPrato,nosso,velho\n", encoding="utf-8")
    titles = read_titles(table)
    assert [asked.title for asked in titles.asked[-2:]] == ["", "Prato"]
    answers = Answers(tmp_path / "out.csv", titles, {})
    for number in range(32):
        entry = {"answer": "Boa \ud800."} if number < 30 else {"answer": "", "error": ("none", "left out")[number - 30]}
        answers.add(entry)  # a lone surrogate is no reason to lose the rest
    answers.finish(copies=1)
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    some = [rows[0], rows[30], rows[31]]  # the broken one has the cells that fit a column
    assert [row["note"] for row in some] == ["meu", "b", "nosso"]
    assert [row["note (vitrine)"] for row in some] == ["", "none", "left out"]
    assert [row["Texto"] for row in some] == ["", "c", "velho"] and len(rows) == 32
    assert [row["description"] for row in some] == ["Boa \\ud800.", "", ""]


def test_a_field_that_comes_late_or_twice_and_a_record_prepared_before(tmp_path):
    late = [
        {"uid": str(i), "title": f"Mug {i}", "content": f"A mug of steel, number {i} of a series."} for i in range(300)
    ]
    late[-1] |= {"colour": "grey"}
    late[-2] |= {"attributes": {"Marca": "Kelbra", "nested": {"a": 1}}}
    late[-3] |= {"Colour": "blue", "colour": ""}
    late[-4] |= {"title": "T", "": "nameless"}
    source = tmp_path / "late.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in late), encoding="utf-8")
    options = Options(
        fields=Fields(attributes=("Colour", "colour", "title", "")),
        val_share=0,
        test_share=0,
        drop_near_duplicates=False,
    )
    prepare([source], tmp_path / "data", options)
    file = RecordFile(tmp_path / "data" / "train.jsonl")
    found = {record["uid"]: record["attributes"] for record in file if "attributes" in record}
    assert found == {"299": {"colour": "grey"}, "298": {"marca": "Kelbra"}, "297": {"colour": "blue"}}


def test_a_prompt_that_does_not_fit_gets_no_answer_and_the_others_do(tokenizer):
    from conftest import tiny_gpt2

    from model.sample import Sampling
    from run.candidates import NOTHING, Prompt, Writer

    encoder = Encoder(tokenizer, QA, 256)
    writer = Writer(tiny_gpt2(len(tokenizer)), encoder, Sampling(max_new_tokens=4, greedy=True), None)
    short, long = encoder.prompts(["Mug"]), encoder.prompts(["Mug " * 400])
    mug, none = Prompt(short[0], ["Mug"], 0), Prompt(long[0], ["x"], 1)
    alone = list(writer.write([mug]))
    assert list(writer.write([none, mug, none])) == [NOTHING, *alone, NOTHING]


def test_one_nearest_is_the_first_of_many(tmp_path):
    prepared(tmp_path)
    catalogue = Catalogue(tmp_path / "data")
    for question in ("Caneca verde", "marca Kelbra café", "caneca 7 azul", "café da manhã zebra", "verde xyz"):
        assert catalogue.nearest(question, 1) == catalogue.nearest(question, 5)[:1], question
