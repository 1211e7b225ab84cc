"""What the documents say of the tree, read off the tree."""

import re

import pytest
from conftest import ROOT

DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text(encoding="utf-8") for path in DOCS}


def test_the_readme_is_short():
    assert len(TEXT["README.md"].splitlines()) <= 180


def test_every_file_has_its_line_and_no_line_has_no_file():
    folders = (".", "run", "catalogue", "text", "model", "lessons", "benchmarks", "examples", "docs")
    files = {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).glob("*.py")}
    named = set(re.findall(r"`([\w/]+\.py)`", TEXT["FILES.md"]))
    assert named == {name for name in files if not name.endswith("__init__.py")}


@pytest.mark.parametrize("name", TEXT)
def test_what_a_document_points_at_is_there(name):
    folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#\s]+)", TEXT[name]):
        assert "://" in target or (folder / target).exists(), target
    for target in re.findall(
        r"`((?:tests|run|model|text|catalogue|benchmarks|lessons|recipes)/[\w./]+\.\w+)`", TEXT[name]
    ):
        assert name == "LOG.md" or (ROOT / target).exists(), target  # the log tells of files that are no more


def test_the_tests_that_a_document_names_are_there():
    there = set().union(
        *(re.findall(r"def (test_\w+)", p.read_text(encoding="utf-8")) for p in (ROOT / "tests").glob("*.py"))
    )
    there |= {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    for name in ("README.md", "CONTRIBUTING.md", "WALKTHROUGH.md", "FAULTS.md", "SEED.md"):
        named = set(re.findall(r"\b(test_\w+)\b", TEXT[name]))
        assert named <= there, named - there
