"""Every command that a document names is parsed by the program that it starts; the quick ones are run."""

import argparse
import ast
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, script

import run.cli
from run.config import parse_train

SCRIPTS = sorted(
    [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("lessons/*.py"), *ROOT.glob("examples/*.py")]
)
WITH_PARSER = [  # the others take no arguments; a lesson has its parser from lessons/lesson.py
    path
    for path in SCRIPTS
    if re.search(r"pars|\bteach\(", text := path.read_text(encoding="utf-8")) and '__name__ == "__main__"' in text
]
MARKDOWN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lessons/**/*.md")])
PLAIN = [ROOT / "Makefile", ROOT / ".ci" / "run", *ROOT.glob("recipes/*.toml"), *ROOT.glob(".github/workflows/*.yml")]
NOTEBOOKS = sorted(ROOT.glob("lessons/*.ipynb"))

STARTED = re.compile(r"(?:\b|[/\\])(?:python3?|py|torchrun(?: --\S+)*) ((?:\w+/)?\w+\.py)(?=[\s,.)\"]|$)( [^;|&<>]*|)")
WITHOUT_PYTHON = re.compile(r"((?:\w+/)?\w+\.py)( --.*)")  # `evaluate.py --grounded`: said in passing
REQUIRED = {"data_prep.py": ["FILE"], "plot.py": ["RUN"]}
FOREIGN = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"}  # torchrun's


class Parsed(Exception):
    """The program has read its arguments; it does not go on."""


def lines_of(path: Path) -> list[str]:
    """What may hold a command: lines of code, and code within a sentence, each on one line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        code = "\n".join(source for kind, source in cells if kind == "code")
        started = re.findall(r"^ *[!%](.*)", code, re.MULTILINE)
        return started + spans_of("\n".join(source for kind, source in cells if kind == "markdown"))
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
        indented = [line for line in text.split("\n") if line.startswith("    ")]
        return indented + spans_of(text)
    if path.suffix == ".md":
        fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return "".join(fenced).split("\n") + spans_of(re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return text.split("\n") + spans_of(text)


def spans_of(text: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands_of(path: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of each command; what stands behind two spaces or a # tells of it and is no part of it."""
    found = []
    for line in lines_of(path):
        for part in re.split(r"\s{2,}", line):
            found += STARTED.findall(part) or WITHOUT_PYTHON.findall(part)
    return [
        (script if (ROOT / script).is_file() else f"benchmarks/{script}", arguments(rest)) for script, rest in found
    ]


def arguments(text: str) -> list[str]:
    words = shlex.split(re.sub(r"\[.*?\]|\.\.\.", "", text), comments=True)  # plot.py RUN [RUN ...]
    return ["1" if word == "N" else word for word in words]


COMMANDS = {
    (path.relative_to(ROOT).as_posix(), script, *args)
    for path in (*MARKDOWN, *PLAIN, *NOTEBOOKS, *SCRIPTS)
    for script, args in commands_of(path)
}


@pytest.fixture
def parse(monkeypatch):
    """Parse as the program does when it is started; returns the options that it knows."""
    for kind in (argparse.ArgumentParser, run.cli.Parser):

        def and_stop(self, args=None, namespace=None, original=kind.parse_args):
            original(self, args, namespace)
            raise Parsed(self._option_string_actions)

        monkeypatch.setattr(kind, "parse_args", and_stop)
    monkeypatch.setattr(run.cli, "take_over_streams", lambda: None)  # they are pytest's
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(ROOT)

    def parse(script: str, *args: str) -> set[str]:
        monkeypatch.setattr(sys, "argv", [script, *args])
        monkeypatch.syspath_prepend((ROOT / script).parent)
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return set(parsed.value.args[0])

    return parse


def test_commands_are_found_where_they_are():
    """A pattern that finds nothing would pass every test."""
    documents = {document for document, *_ in COMMANDS}
    assert {"README.md", "docs/MODELS.md", "Makefile", ".ci/run", "train.py", "benchmarks/gpu.py"} <= documents
    assert ("README.md", "train.py") in COMMANDS  # of Windows, too
    assert ("README.md", "generate.py", "--title", "Blue mug") in COMMANDS
    assert ("docs/SCALING.md", "train.py", "--shard") in COMMANDS
    assert ("recipes/qwen2.5-0.5b-lora.toml", "export.py", "--format", "pkl") in COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS), ids=" ".join)
def test_a_command_of_a_document_is_parsed_by_its_program(command, parse, capsys):
    _, script, *args = command
    assert (ROOT / script).is_file()
    for name in args:
        assert not re.match(r"(recipes|examples|lessons|benchmarks)/", name) or (ROOT / name).exists(), name
    if ROOT / script not in WITH_PARSER:
        assert not args
        return
    try:
        parse(script, *args)
    except SystemExit as end:
        said = capsys.readouterr()
        in_passing = "arguments are required" in said.err and f"`{script} --" in text_of(command[0])
        assert end.code == 0 or in_passing, said.err


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(c for c in COMMANDS if c[1] == "train.py"), ids=" ".join)
def test_the_options_of_a_training_that_a_document_names_fit_together(command, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(ROOT)
    assert parse_train(list(command[2:])).config


def test_every_option_that_a_document_names_is_one_of_a_program(parse):
    scripts = [path.relative_to(ROOT).as_posix() for path in WITH_PARSER]
    known = FOREIGN.union(*(parse(name, *REQUIRED.get(name, ())) for name in scripts))
    for path in MARKDOWN:
        named = {option for line in lines_of(path) for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", line)}
        assert path.name == "LOG.md" or named <= known, (path.name, named - known)  # the log tells of what is no more


@pytest.mark.parametrize("path", WITH_PARSER, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_help_is_answered(path, parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse(path.relative_to(ROOT).as_posix(), "--help")
    assert end.value.code == 0 and "usage:" in capsys.readouterr().out


def test_a_file_is_described():
    result = script("data_prep.py", "--describe", "examples/catalogue.json.gz")
    assert result.returncode == 0 and "title" in result.stdout


def test_a_plan_is_printed(train, data, tmp_path, capsys):
    assert train("--model", "pocket", "--dry_run") == 0
    assert "learning rate" in capsys.readouterr().out and not list((tmp_path / "runs").glob("*/final"))


def test_before_a_commit_and_in_the_workflow_lint_is_what_make_lint_is():
    """One list of checks, in three files."""
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    made = re.search(r"^lint:.*\n\t(.*)", text_of("Makefile"), re.MULTILINE)[1].replace("$(BIN)/", "").replace(" .", "")
    assert [hook["entry"].removeprefix("python -m ") for hook in hooks] == made.split(" && ")
    steps = yaml.safe_load(text_of(".github/workflows/newcomer.yml"))["jobs"]["newcomer"]["steps"]
    (lint,) = (step["run"] for step in steps if step.get("name") == "Lint")
    assert lint.replace(" .", "") == made
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


def test_it_can_be_cited():
    """The keys that version 1.2.0 of the format wants."""
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["title"] and citation["message"]
    assert citation["authors"] == [{"name": "The Vitrine authors"}] and citation["license"] == "MIT"


def test_how_to_contribute_is_a_page():
    assert len(text_of("CONTRIBUTING.md").splitlines()) <= 60
