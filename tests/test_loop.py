"""The interactive loop: its commands, in both languages; and the file of answers that goes on where it was."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, script

import generate
from catalogue.index import write_catalogue
from run.cli import UsageError
from run.loop import wrapped
from run.sayings import SAID, language


@pytest.fixture
def run(tmp_path, data, gpt2_folder, train):
    write_catalogue(data / "catalogue.sqlite", data / "train.jsonl")
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1, "--data", data)
    return tmp_path / "runs" / "a"


@pytest.fixture
def typed(run, monkeypatch, capsys):
    """`typed(lines, options)`: what the loop prints, and what it says on the side."""

    def made(lines: list[str], *options) -> tuple[str, str]:
        waiting = iter([*lines, "quit"])
        monkeypatch.setattr("builtins.input", lambda prompt: next(waiting))
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        args = ["--run", run, "--device", "cpu", "--max_new_tokens", 6, *options]
        capsys.readouterr()
        assert generate.main(generate.parse([str(arg) for arg in args])) == 0
        return capsys.readouterr()

    return made


def test_both_languages_say_the_same_things():
    assert SAID["en"].keys() == SAID["pt"].keys()
    for what, text in SAID["en"].items():
        assert text.count("{") == SAID["pt"][what].count("{"), what


@pytest.mark.parametrize("name, speech", [("pt_BR.UTF-8", "pt"), ("Portuguese_Brazil.1252", "pt"), ("de_DE", "en")])
def test_the_language_is_the_system_s(monkeypatch, name, speech):
    monkeypatch.setenv("LC_ALL", name)
    assert language() == speech


def test_an_unknown_command_suggests_the_nearest(typed):
    _, said = typed(["/bfore", "/help", "/zzz"], "--lang", "pt")
    assert "/bfore não é um comando; seria /before?" in said and "/candidates N" in said and "/zzz" in said


@pytest.mark.parametrize("speech", SAID)
@pytest.mark.parametrize("width", [24, 40, 60, 100])
def test_help_fits_the_terminal_and_loses_no_word(speech, width):
    text = SAID[speech]["help"]
    lines = wrapped(text, width).split("\n")
    assert " ".join(lines).split() == text.split() and max(map(len, lines)) < width
    assert width < 100 or lines == text.split("\n")


@pytest.mark.parametrize("line", ["quit", "sair", "exit", "/quit", "/exit"])
def test_every_way_out_leaves(run, monkeypatch, line):
    asked = iter([line])  # a second question would end in StopIteration
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert generate.main(generate.parse(["--run", str(run), "--device", "cpu"])) == 0


def test_before_and_again_and_what_they_need(typed):
    out, said = typed(["/before", "/again", "Blue mug", "/before", "/again", "/before Red mug"], "--lang", "en")
    assert said.count("There is no answer yet") == 2
    assert out.count("before: ") == out.count("after:  ") == 2


def test_another_answer_is_another_one(typed):
    out, _ = typed(["Blue mug", "/again", "/again"], "--candidates", 1, "--temperature", 1)
    assert len({line for line in out.splitlines() if line}) == 3
    _, said = typed(["Blue mug", "/again"], "--greedy", "--lang", "en")
    assert "always the same" in said


def test_settings_are_checked_and_taken(typed):
    lines = ["/temp hot", "/temp 101", "/temp 0,8", "/candidates x", "/candidates 0", "/candidates 2", "/stats"]
    _, said = typed([*lines, "/temp 0", "/stats", "/adapter"], "--lang", "en")
    assert said.count("/temp takes a number") == 2 and said.count("/candidates takes a number") == 2
    assert "Temperature 0.8, tries 2." in said and "Temperature 0, tries 1." in said and "no adapters" in said


def test_answers_are_saved_once(typed, tmp_path):
    file = tmp_path / "answers.jsonl"
    bad = ["/save " + "b" * 300, "/SAVE a\0b", "/sources 2000", "/candidates " + "9" * 5000]
    _, said = typed(["Blue mug", f"/save {file}", f"/save {file}", "/save", f"/save {tmp_path}", *bad], "--lang", "en")
    (entry,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert entry["title"] == "Blue mug" and "answer" in entry and "unsupported" in entry
    assert said.count("is no path") == 2 and said.count("takes a number") == 2
    assert "Answers saved in" in said and "is there already" in said and said.count("/save takes the name") == 2


def test_ctrl_c_stops_the_answer_and_a_second_one_leaves(run, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt
        yield

    asked = []

    def ask(prompt):
        asked.append(prompt)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return "Blue mug"

    monkeypatch.setattr("run.loop.write", interrupted)
    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    options = ["--run", str(run), "--device", "cpu", "--candidates", "1", "--lang", "en"]
    assert generate.main(generate.parse(options)) == 0
    assert len(asked) == 2 and "(stopped;" in capsys.readouterr().err


# -- a file of answers ------------------------------------------------------------------------------------------------


def in_file(run: Path, titles: Path, out: Path, *options) -> subprocess.CompletedProcess:
    more = ("--max_new_tokens", 8, "--device", "cpu", "--candidates", 2)
    return script("generate.py", "--run", run, "--titles", titles, "--out", out, *more, *options)


def test_what_was_begun_otherwise_is_refused_and_a_torn_line_goes(run, tmp_path):
    titles, out = tmp_path / "titles.csv", tmp_path / "out.jsonl"
    titles.write_text("title\n" + "".join(f"Mug {i}\n" for i in range(6)), encoding="utf-8")
    assert in_file(run, titles, out).returncode == 0
    whole = out.read_text(encoding="utf-8")
    assert not (tmp_path / "out.jsonl.part").exists() and len(whole.splitlines()) == 6
    out.rename(tmp_path / "whole.jsonl")
    other = in_file(run, titles, out, "--seed", 1)
    assert other.returncode == 0 and out.read_text(encoding="utf-8") != whole
    out.unlink()
    from run.answers import Answers
    from run.titles import read_titles

    answers = Answers(out, read_titles(titles), {"seed": 5})
    answers.add({"answer": "x"})
    del answers
    with (tmp_path / "out.jsonl.part").open("ab") as part:
        part.write(b'{"answer": "to')
    again = Answers(out, read_titles(titles), {"seed": 5})
    again.add({"answer": "y"})
    assert [json.loads(line).get("answer") for line in again.part.read_bytes().splitlines()] == [None, "x", "y"]
    del again
    refused = in_file(run, titles, out)
    assert refused.returncode == 2 and "was begun with other" in refused.stderr and "seed" in refused.stderr


def test_two_may_not_write_one_file(run, tmp_path):
    from run.answers import Answers
    from run.titles import Asked, Titles

    titles = Titles([Asked("Mug")], ["title"])
    first = Answers(tmp_path / "out.csv", titles, {})
    with pytest.raises(UsageError, match="Another program"):
        Answers(tmp_path / "out.csv", titles, {})
    first.add({"answer": "A mug."})
    first.finish(copies=1)


def test_columns_of_the_shop_and_none_else(run, tmp_path):
    titles, out = tmp_path / "titles.csv", tmp_path / "out.csv"
    titles.write_text("Handle,Title,Body (HTML)\nm,Blue mug,\nm,,\n", encoding="utf-8")
    result = in_file(run, titles, out, "--same_columns")
    assert result.returncode == 0, result.stderr
    header, _, variant = out.read_bytes().decode("utf-8").splitlines()[:3]
    assert header == "Handle,Title,Body (HTML)" and variant == "m,,"
    assert "1 without an answer (the row has no title)" in result.stderr


def test_a_spreadsheet_has_texts_and_no_formulas(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    from run.answers import write_sheet

    write_sheet(tmp_path / "out.xlsx", [["title", "description"], ["=1+1", "a\x1b" + "x" * 40_000]])
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    cell, long = sheet["A2"], sheet["B2"]
    assert cell.value == "=1+1" and cell.data_type == "s" and long.value.startswith("a\\u001bx")


@pytest.mark.slow
def test_killed_five_times_the_file_is_what_it_would_have_been(run, tmp_path):
    titles, whole, out = (tmp_path / name for name in ("titles.txt", "whole.jsonl", "out.jsonl"))
    titles.write_text("".join(f"Mug number {i}\n" for i in range(1000)), encoding="utf-8")
    assert in_file(run, titles, whole).returncode == 0
    draw, part = random.Random(0), tmp_path / "out.jsonl.part"
    options = ["--run", run, "--titles", titles, "--out", out, "--max_new_tokens", 8, "--device", "cpu"]
    command = [sys.executable, "generate.py", *map(str, options), "--candidates", "2"]
    for k in range(5):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = draw.randint(150 * k + 20, 150 * k + 150)  # answers, the head of the file aside
        while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < wanted):
            pass
        process.kill()
        process.wait()
    assert not out.exists() and part.exists()
    assert in_file(run, titles, out).returncode == 0
    assert out.read_bytes() == whole.read_bytes() and not part.exists()
