"""The plain loop and the page compute the same training; every lesson shows what it says."""

import importlib.util
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, logged

from catalogue.prepare import prepare
from lessons import lesson, plain_loop
from run import loading
from run.cli import UsageError
from run.data import EXAMPLE_CATALOGUE

LESSONS = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))
TRANSLATIONS = sorted((ROOT / "lessons").glob("*/[0-9][0-9]_*.md"))
STEPS, EPSILON = 20, {torch.float32: 1e-4, torch.float64: 1e-5}


def test_the_plain_loop_is_a_page():
    assert len((ROOT / "lessons" / "plain_loop.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_plain_loop_and_page_log_the_same_numbers(tmp_path, train, monkeypatch, capsys, dtype):
    """20 steps, losses and gradient norms. In float64 what is left is the page's fp32 logits."""
    prepare([EXAMPLE_CATALOGUE], tmp_path / "data")
    plain_loop.main(tmp_path / "data" / "train.jsonl", dtype)
    plain = [tuple(map(float, pair)) for pair in re.findall(r"loss (\S+)  grad_norm (\S+)", capsys.readouterr().out)]

    pocket = loading.pocket_model
    monkeypatch.setattr(loading, "pocket_model", lambda *args: pocket(*args).to(dtype))
    options = ("--model", "pocket", "--run_name", "a", "--question_share", 0, "--logging_steps", 1)
    options += ("--context_share", 0, "--optim", "adamw")
    assert train(*options, "--max_steps", STEPS) == 0
    page = [(entry["loss"], entry["grad_norm"]) for entry in logged(tmp_path / "runs" / "a")]
    assert len(plain) == len(page) == STEPS
    (losses, norms), (plain_losses, plain_norms) = torch.tensor(page).T, torch.tensor(plain).T
    torch.testing.assert_close(losses, plain_losses, rtol=0, atol=EPSILON[dtype])
    torch.testing.assert_close(norms, plain_norms, rtol=EPSILON[dtype], atol=EPSILON[dtype])  # up to 60 in these steps


# -- lessons that run -------------------------------------------------------------------------------------------------


def module_of(file: Path):
    """A lesson as a module; its name begins with a number, so `import` cannot name it."""
    spec = importlib.util.spec_from_file_location(f"lesson_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lessons_path(monkeypatch):
    """A lesson that is started has its own folder on sys.path."""
    monkeypatch.setitem(sys.modules, "lesson", lesson)


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def with_data(tmp_path: Path) -> Path:
    """Where the data of the lessons seems to be prepared."""
    (tmp_path / lesson.DATA).mkdir(parents=True)
    (tmp_path / lesson.DATA / "train.jsonl").write_text("{}\n", encoding="utf-8")
    return tmp_path


def lesson_at(tmp_path: Path, experiment: str) -> subprocess.CompletedProcess:
    """A lesson of its own in a copy of the tree, where the data is there already, started as a student starts it."""
    lesson.edited_copy(with_data(tmp_path), ())
    file = tmp_path / "lessons" / "99_try.py"
    body = "\n    ".join(experiment.splitlines())
    text = '"""Title\n\nDo: it\n\nPredict: it\n\nSee: {x:.1f}\n\nWhy: so\n\nand so"""\n\nfrom lesson import teach\n\n'
    end = '\n\nif __name__ == "__main__":\n    teach(__file__, __doc__, experiment)\n'
    file.write_text(f"{text}\ndef experiment(lab):\n    {body}\n{end}", encoding="utf-8")
    return started(file, "--lang", "en")


def started(file: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(file), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree for the lessons to work in."""
    return lesson.edited_copy(tmp_path_factory.mktemp("tree"), ())


@pytest.mark.slow
@pytest.mark.parametrize("name", [file.name for file in LESSONS])
def test_a_lesson_shows_what_it_says(tree, name):
    done = started(tree / "lessons" / name, "--lang", "en")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    title, _, question, _, why = lesson.paragraphs_of((ROOT / "lessons" / name).read_text(encoding="utf-8")[3:])
    assert title in done.stdout and question in done.stdout and why.split('"""')[0].strip() in done.stdout
    assert not placeholders(done.stdout.split("\nSee: ")[1].split("\n\n")[0])


@pytest.mark.parametrize("file", LESSONS, ids=lambda file: file.stem)
def test_every_lesson_has_its_five_parts_and_its_edits_fit_the_tree(file, lessons_path):
    module = module_of(file)
    title, *parts = lesson.paragraphs_of(module.__doc__)
    assert title.startswith(f"{int(file.stem[:2])}. ")
    assert [part.partition(":")[0] for part in parts] == ["Do", "Predict", "See", "Why"]
    assert placeholders(parts[2]) and not placeholders("".join([title, *parts[:2], parts[3]]))
    for value in vars(module).values():
        if isinstance(value, lesson.Edit):
            text = (ROOT / value.file).read_text(encoding="utf-8")
            compile(value.made_in(text), value.file, "exec")  # what it becomes is Python, too


def test_lessons_are_numbered_and_listed():
    numbers = [int(file.stem[:2]) for file in LESSONS]
    assert numbers == list(range(1, len(LESSONS) + 1))
    listed = re.findall(
        r"^\| \d+ \| \[[^]]+\]\(([^)]+)\)", (ROOT / "lessons" / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert listed == [file.name for file in LESSONS]


@pytest.mark.parametrize("file", TRANSLATIONS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_translation_has_the_parts_and_the_numbers_of_its_lesson(file, lessons_path):
    english = lesson.paragraphs_of(module_of(file.parent.parent / f"{file.stem}.py").__doc__)
    translated = lesson.text_of(file.parent.parent / f"{file.stem}.py", "", file.parent.name)
    assert [placeholders(part) for part in translated] == [placeholders(part) for part in english]


def test_a_lesson_is_told_in_the_language_that_it_was_translated_into(tmp_path):
    (tmp_path / "pt").mkdir()
    (tmp_path / "pt" / "01_try.md").write_text(
        "Título\n\nFaça\n\nPreveja\n\nVeja\n\nPor quê\n\ne mais", encoding="utf-8"
    )
    english = "Title\n\nDo\n\nPredict\n\nSee\n\nWhy"
    assert lesson.text_of(tmp_path / "01_try.py", english, "pt")[0] == "Título"
    assert lesson.text_of(tmp_path / "01_try.py", english, "pt")[4] == "Por quê\n\ne mais"
    assert lesson.text_of(tmp_path / "01_try.py", english, "en")[0] == "Title"
    assert lesson.text_of(tmp_path / "02_try.py", english, "pt")[0] == "Title"


def test_an_edit_is_made_in_the_copy_alone(tmp_path):
    before = (ROOT / "train.py").read_bytes()
    edit = lesson.Edit("train.py", "model.train()", "model.eval()")
    copy = lesson.edited_copy(tmp_path, (edit,))
    assert "model.eval()" in (copy / "train.py").read_text(encoding="utf-8")
    assert (ROOT / "train.py").read_bytes() == before
    for old in ("no such line", "import"):
        with pytest.raises(UsageError, match="places like"):
            lesson.Edit("train.py", old, "").made_in("import torch, import")


def test_what_was_not_seen_is_said_and_fails(tmp_path):
    done = lesson_at(tmp_path, "lab.see(x=1)\nassert 1 > 2")
    assert done.returncode == 1 and done.stderr.splitlines() == ["Not seen in this run: assert 1 > 2"]
    assert "See: 1.0" in done.stdout and "Why" not in done.stdout


def test_a_command_that_ends_otherwise_than_expected_is_a_sentence(tmp_path):
    done = lesson_at(tmp_path, 'lab.command("train.py", "--no_such_option")')
    assert done.returncode == 2 and "Traceback" not in done.stderr and "no_such_option" in done.stderr


def test_the_prediction_is_asked_for_and_set_beside_the_result(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lesson, "ROOT", with_data(tmp_path))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "it will fall")
    text = ["Title", "Do", "Predict", "See: {x:.2f}", "Why"]
    assert lesson._teach(Path("01_try.py"), text, lambda lab: lab.see(x=1.5), lesson.SAID["en"]) == 0
    out = capsys.readouterr().out
    assert out.index("Predict") < out.index("See: 1.50") < out.index("You predicted: it will fall") < out.index("Why")
