"""The Portuguese documents are in step with the English ones, and use one word for one thing."""

import re
import sys
import unicodedata
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest
from conftest import ROOT
from test_lessons import LESSONS, module_of

from lessons import lesson

DOCUMENTS = sorted([*ROOT.glob("*.pt-BR.md"), *ROOT.glob("docs/*.pt-BR.md")])
GLOSSARY = ROOT / "docs" / "GLOSSARY.pt-BR.md"
TEXTS = [ROOT / "lessons" / "pt" / f"{file.stem}.md" for file in LESSONS]
WIDTH = 80  # of a terminal
# The words of all translations. The English one stands behind the first use, in brackets, and nowhere else.
TERMS = {
    "ajuste fino": "fine-tuning",
    "aquecimento": "warm-up",
    "cabeça": "head",
    "corte do gradiente": "clipping",
    "decaimento dos pesos": "weight decay",
    "época": "epoch",
    "fatia": "chunk",
    "laço": "loop",
    "lote": "batch",
    "lote achatado": "flat batch",
    "meia precisão": "half precision",
    "microlote": "micro-batch",
    "passo": "step",
    "perda": "loss",
    "preenchimento": "padding",
    "quase duplicata": "near duplicate",
    "semente": "seed",
    "sobreajuste": "overfitting",
    "taxa de aprendizado": "learning rate",
}
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def english_of(path: Path) -> Path:
    return path.with_name(path.name.replace(".pt-BR.md", ".md"))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def outline(text: str) -> list[str]:
    """Each heading with its level, list item, table row, block of code, picture and paragraph, as a mark."""
    marks, lines = [], FENCE.sub("```", text).split("\n")
    for before, line in zip(["", *lines], lines, strict=False):
        if mark := re.match(r"#+ |```|\||\s*(?:\*|\d{1,2}\.) |!\[", line):
            marks.append(mark[0].strip())
        elif line and (not before or before.startswith(("#", "```", "|"))):
            marks.append("text")
    return marks


def code(text: str) -> list[str]:
    """Its blocks of code without what is translated: comments of commands, and the words of a drawing or a formula."""
    blocks = []
    for block in FENCE.findall(text):
        if block.startswith("```python"):
            blocks.append(block)
        elif re.search(r"^\S*(?:python|make|py) ", block, re.MULTILINE):
            blocks.append(re.sub(r"\s+# .*", "", block))
        else:
            blocks.append(re.sub(r"[^\W\d_]+|\s+", "", block))
    return blocks


def spans(text: str) -> set[str]:
    return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))}


def links(text: str, itself: Path) -> Counter:
    """The files and pages that it points at; a document and its translation count as one, and neither as itself."""
    targets = [target.replace(".pt-BR.md", ".md") for target in re.findall(r"\]\(([^)#\s]+)", text)]
    return Counter(target for target in targets if target != english_of(itself).name)


def prose(text: str) -> str:
    """Without code, the {numbers} of a lesson and what links point at."""
    return re.sub(r"`[^`]+`|\{[^}]*\}|\]\([^)]*\)", " ", FENCE.sub(" ", text))


def numbers(text: str, thousands: str, decimal: str) -> Counter:
    """Those of the prose: 1,300.5 and 1.300,5 are one number. The numbers of a list are left out."""
    text = re.sub(r"^\s*\d{1,2}\. ", "", prose(text), flags=re.MULTILINE)
    text = re.sub(rf"(?<=\d)\{thousands}(?=\d{{3}}(?!\d))", "", text)
    return Counter(re.findall(r"\d+(?:\.\d+)?", re.sub(rf"(?<=\d)\{decimal}(?=\d)", ".", text)))


def first_difference(one: list, other: list):
    return next(((n, a, b) for n, (a, b) in enumerate(zip_longest(one, other)) if a != b), None)


def test_what_is_to_be_in_portuguese_is():
    assert {path.name for path in DOCUMENTS} == {"README.pt-BR.md", "GLOSSARY.pt-BR.md", "WALKTHROUGH.pt-BR.md"}
    assert sorted((ROOT / "lessons" / "pt").iterdir()) == TEXTS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_translation_has_the_same_parts_commands_links_and_numbers(path):
    english, portuguese = read(english_of(path)), read(path)
    assert not first_difference(outline(english), outline(portuguese))
    assert not first_difference(code(english), code(portuguese))
    assert spans(english) == spans(portuguese)
    assert links(english, path) == links(portuguese, path)
    assert numbers(english, ",", ".") == numbers(portuguese, ".", ",")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_translation_points_at_translations_and_at_headings_that_are_there(path):
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", read(path)):
        if "://" in target:
            continue
        file = path.parent / target if target else path
        translated = file.with_name(f"{file.stem}.pt-BR.md")
        assert translated not in DOCUMENTS or file == english_of(path), target
        assert not heading or heading in map(slug, re.findall(r"^#+ (.*)", read(file), re.MULTILINE)), heading


def slug(heading: str) -> str:
    """The name that a heading has in an address."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_lesson_in_portuguese_names_the_same_code_and_fits_into_a_terminal(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lesson", lesson)  # a lesson that is started has its own folder on sys.path
    english, portuguese = module_of(ROOT / "lessons" / f"{path.stem}.py").__doc__, read(path)
    assert spans(english) == spans(portuguese)
    assert set(numbers(english, ",", ".")) == set(numbers(portuguese, ",", "."))  # a terminal has the point
    starts = [part.partition(":")[0] for part in lesson.paragraphs_of(portuguese)[1:]]
    assert starts == ["Faça", "Preveja", "Veja", "Por quê"]
    assert max(map(len, re.sub(r"\{[^}]*\}", "1.2345", portuguese).split("\n"))) <= WIDTH


def words(text: str) -> list[tuple[str, str]]:
    """The rows of a glossary: the word, and where it is."""
    return re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", text, re.MULTILINE)[1:]


def test_the_glossary_has_each_word_once_in_the_order_of_its_language_with_the_english_name():
    names, places = {}, {}
    for word, where in words(read(GLOSSARY)):
        name, _, english = word.removesuffix(")").partition(" (")
        names[name], places[english or name] = english or name, where
    assert places == dict(words(read(english_of(GLOSSARY))))
    plain = [unicodedata.normalize("NFD", name.casefold()).encode("ascii", "ignore") for name in names]
    assert plain == sorted(plain)
    single = {  # `cabeça, cabeça da saída` are `head, output head`
        one: other
        for name, english in names.items()
        for one, other in zip(name.split(", "), english.split(", "), strict=True)
    }
    assert {term: single[term] for term in TERMS if term in single} == {t: e for t, e in TERMS.items() if t in single}
    assert set(TERMS) - set(single) == {"laço", "meia precisão"}  # everyday words


@pytest.mark.parametrize("path", [*(p for p in DOCUMENTS if p != GLOSSARY), *TEXTS], ids=lambda path: path.name)
def test_a_term_has_one_name_and_its_english_one_once(path):
    said = " ".join(prose(re.sub(r"^#.*|\A\d+\..*", "", read(path), flags=re.MULTILINE)).split())
    for term, english in sorted(TERMS.items(), key=lambda item: -len(item[0])):  # `lote achatado` before `lote`
        uses = re.findall(rf"\b{term.replace(' ', 's? ')}s?\b(?: \({english}(?:e?s)?\))?", said, re.IGNORECASE)
        named = [use for use in uses if use.endswith(")")]
        assert len(named) == len(re.findall(rf"(?<![\w-]){english}(?:e?s)?(?![\w-])", said, re.IGNORECASE)), english
        assert named in ([], uses[:1]), (term, uses)
        assert path in TEXTS or not uses or named, (term, "without its English name")
        said = re.sub("|".join(map(re.escape, uses)), "", said) if uses else said
