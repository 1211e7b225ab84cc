"""The catalogue index, and how generate.py cites it."""

import json
from functools import partial

import pytest
from conftest import write_data
from hypothesis import given, settings
from hypothesis import strategies as st

import generate
from catalogue import index as module
from catalogue.index import Catalogue, check_fts5, words_of, write_catalogue
from catalogue.prepare import prepare
from run import loop
from text.errors import DataError

PRODUCTS = [
    {"uid": "A1", "title": "Caneca de cerâmica azul", "content": "Uma caneca de cerâmica para o café. 350 ml."},
    {"uid": "A2", "title": "Blue kettle", "content": "It boils a litre of water in two minutes."},
    {"uid": "A3", "title": "Notebook", "content": "Ruled pages; its cover is blue. NOT for watercolours."},
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("catalogue") / "data", PRODUCTS)
    write_catalogue(folder / "catalogue.sqlite", folder / "train.jsonl")
    return Catalogue(folder)


def uids(products) -> list[str]:
    return [product.uid for product in products]


def test_the_nearest_come_first_with_the_words_that_matched(catalogue):
    assert uids(catalogue.nearest("ceramica", 3)) == ["A1"]  # accents do not count
    assert uids(catalogue.nearest("What is blue?", 5)) == ["A2", "A3"]  # a title counts more
    assert uids(catalogue.nearest("What is blue, please?", 5)) == ["A2"]  # a word that no product has does not end it
    assert uids(catalogue.nearest("blue", 1)) == ["A2"]
    (found,) = catalogue.nearest("CERAMICA de 350 litros", 1)
    assert (found.title, found.matched) == (PRODUCTS[0]["title"], ("CERAMICA", "350"))
    assert catalogue.nearest("zebra", 3) == []
    assert catalogue.nearest("", 3) == catalogue.nearest('"', 3) == []
    assert uids(catalogue.nearest("kettle NOT blue", 3)) == ["A2"]  # operators of FTS5 are words here
    assert uids(catalogue.nearest("title:kettle OR blue (", 1)) == ["A2"]


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet="\"*()^:-+{} ANDORTNEaz\\'\x00;%", max_size=30))
def test_any_question_is_answered(catalogue, question):
    assert len(catalogue.nearest(question, 3)) <= 3


def test_a_long_question_is_cut_and_empty_words_count_when_alone():
    assert len(words_of(" ".join(f"w{i}" for i in range(1000)))) == module.MAX_WORDS
    assert words_of("What is the mug?") == ["mug"]
    assert words_of("what is it") == ["what", "is", "it"]


def test_a_missing_or_foreign_index_and_a_sqlite_without_fts5_are_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="does not exist. Make it"):
        Catalogue(tmp_path)
    (tmp_path / "catalogue.sqlite").write_bytes(b"this is no database, whatever its name says" * 50)
    with pytest.raises(DataError, match="Prepare the data again"):
        Catalogue(tmp_path).nearest("mug", 1)
    monkeypatch.setattr(module, "has_fts5", lambda: False)
    for ask in (check_fts5, lambda: Catalogue(tmp_path), lambda: prepare([tmp_path / "any.json"], tmp_path / "data")):
        with pytest.raises(DataError, match="without full-text search"):
            ask()


@pytest.fixture
def run(train, data, gpt2_folder, tmp_path, capsys):
    assert train("--model", gpt2_folder, "--max_steps", 1, "--run_name", "r") == 0
    capsys.readouterr()

    def ask(*args) -> int:
        given = ("--run", tmp_path / "runs" / "r", "--max_new_tokens", 4, "--device", "cpu")
        return generate.main(generate.parse([str(arg) for arg in (*given, *args)]))

    return ask


def test_generate_lists_sources_and_says_when_there_is_none(run, data, tmp_path, capsys):
    with pytest.raises(DataError, match="catalogue.sqlite does not exist"):
        run("--title", "Blue Mug", "--sources", 2)
    write_catalogue(data / "catalogue.sqlite", data / "train.jsonl")  # data of the run: the default of --data
    assert run("--title", "Caneca ceramica", "--sources", 2) == 0
    assert "[1] U1  Caneca azul  (matched: Caneca, ceramica)" in capsys.readouterr().out
    assert run("--title", "Zebra", "--title", "Lamp", "--sources", 1) == 0
    out = capsys.readouterr().out
    assert out.index("This answer has no source") < out.index("[1] U5  Lamp  (matched: Lamp)")
    titles = tmp_path / "titles.txt"
    titles.write_text("Blue mug\n", encoding="utf-8")
    assert run("--titles", titles, "--sources", 1, "--grounded") == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["sources"] == [{"uid": "U0", "title": "Blue Mug", "matched": ["Blue", "mug"]}]
    assert entry["grounded_on"] == "U0" and entry["note"] == "grounded on U0: Blue Mug"
    titles = tmp_path / "titles.jsonl"
    titles.write_text('{"title": "", "colour": "red"}\n{"title": "Lamp"}\n', encoding="utf-8")
    assert run("--titles", titles, "--sources", 1, "--grounded") == 0
    shown = capsys.readouterr()
    none, lamp = map(json.loads, shown.out.splitlines())
    assert none["error"] and not none.keys() & {"grounded_on", "sources", "note"} and lamp["grounded_on"] == "U5"
    assert "grounded" not in shown.err  # each row says it of itself
    assert run("--title", "Zebra", "--title", "Lamp", "--grounded") == 0
    said = capsys.readouterr().err
    assert said.index("nothing in the catalogue resembles") < said.index("(grounded on U5: Lamp)")


def test_grounded_puts_the_best_match_before_the_prompt_and_says_so(run, data, capsys, monkeypatch):
    write_catalogue(data / "catalogue.sqlite", data / "train.jsonl")
    asked = []
    write = loop.write

    def listened(model, next_answer, *rest):
        def heard():
            answer = next_answer()
            asked.extend([answer.prompt] if answer else [])
            return answer

        return write(model, heard, *rest)

    monkeypatch.setattr(loop, "write", listened)
    run = partial(run, "--candidates", 1)
    assert run("--title", "Red kettle", "--grounded") == 0
    assert "(grounded on U3: Red Kettle)" in capsys.readouterr().err
    assert run("--title", "Red kettle") == 0
    assert run("--title", "zebra", "--grounded") == 0
    assert "nothing in the catalogue resembles" in capsys.readouterr().err
    grounded, plain, _ = asked
    assert len(grounded) > len(plain)
    assert grounded[-len(plain) :] == plain
    assert len(grounded) <= (256 + len(plain)) // 2 + 1  # half of the rest of the window is the answer's


def test_sources_in_the_loop(run, data, capsys, monkeypatch):
    write_catalogue(data / "catalogue.sqlite", data / "train.jsonl")
    typed = iter(["Lamp", "/sources", "Lamp", "/sources 1", "Dog bed", "/sources x", "/sources", "Lamp", "quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run() == 0
    out, err = capsys.readouterr()
    assert (out.count("[1] U5  Lamp"), out.count("[1] U9  Dog bed")) == (1, 1)
    assert "Sources: the nearest products, up to 3." in err
    assert "as in /sources 5." in err
    assert "Sources: off." in err
