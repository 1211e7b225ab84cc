"""What evaluate.py counts: facts that are said, facts that nobody gave, and how they are shown."""

from types import SimpleNamespace

import pytest
from conftest import write_data
from test_claims import FACTS, RECORDS

from catalogue.claims import Claims, marked
from catalogue.index import Catalogue, write_catalogue
from catalogue.inventions import KnownFacts
from evaluate import escaped, invention_rates, markdown, other_questions, table_cell

HELD_OUT = RECORDS[:3]


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    folder = write_data(tmp_path_factory.mktemp("evaluate") / "data", RECORDS)
    write_catalogue(folder / "catalogue.sqlite", folder / "train.jsonl")
    return Claims(Catalogue(folder))


def questions(**options):
    return other_questions(HELD_OUT, KnownFacts(FACTS, RECORDS), SimpleNamespace(max_samples=300, **options))


def test_the_same_products_asked_in_other_ways():
    others = questions(grounded=True)
    assert list(others) == ["inventions_short", "cut_down", "grounded", "misled"]
    assert [r["title"] for r in others["cut_down"]] == [r["title"] for r in others["grounded"]]
    assert all(r["context"] == own["content"] for r, own in zip(others["grounded"], HELD_OUT, strict=True))
    assert all(r["context"] != own["content"] for r, own in zip(others["misled"], HELD_OUT, strict=True))
    assert "misled" not in questions(grounded=False)
    nothing = KnownFacts({}, RECORDS)
    assert other_questions(HELD_OUT, nothing, SimpleNamespace(max_samples=300, grounded=True)) == {}


def test_each_rate_is_of_the_answers_that_it_names(claims):
    known, others = KnownFacts(FACTS, RECORDS), questions(grounded=True)
    right = [record["content"] for record in HELD_OUT]
    wrong = ["A purple one from Zorvex, 999 ml."] * 3
    of = {
        "inventions_short": wrong[:1] * len(others["inventions_short"]),
        "cut_down": right,
        "grounded": wrong,
        "misled": right,
    }
    rates = invention_rates(HELD_OUT, right, others, of, known, claims)
    assert (rates["unsupported"], rates["inventions"], rates["inventions_short"]) == (0, 0, 1)
    assert (rates["cut_down"], rates["grounded"], rates["misled"]) == (1, 0, 0)
    rates = invention_rates(HELD_OUT, [right[0], wrong[0], wrong[0]], {}, {}, known, claims)
    assert rates["inventions"] == rates["unsupported"] == 2 / 3 and rates["inventions_interval"][1] == 1


def test_an_interval_is_of_products_and_not_of_their_facts():
    known = KnownFacts(FACTS, RECORDS)
    some = {"cut_down": known.cut_down(HELD_OUT[:1]), "inventions_short": known.short_titles(HELD_OUT[:1])}
    half = {"cut_down": ["A mug, in blue."], "inventions_short": ["A mug.", "A mug.", "A red mug from Zorvex."]}
    rates = invention_rates([], [], some, half, known, None)
    assert rates["cut_down"] == 0.5 and rates["inventions_short"] == 1 / 3
    for name in some:  # one product: nothing else can be drawn
        assert rates[f"{name}_interval"] == (rates[name], rates[name])


def test_what_nothing_supports_is_marked_and_the_rest_is_no_markup(claims):
    text = "A mug from *Zorvex* <b>and</b> 999 ml"
    found = claims.unsupported(text, ["mug"])
    shown = marked(text, found, escaped)
    assert "<mark>Zorvex</mark>" in shown and "<mark>999 ml</mark>" in shown and "<b>" not in shown
    assert shown.count("<mark>") == shown.count("</mark>") == len(found)
    assert marked("plain", [], escaped) == "plain" and table_cell("a\nb  |") == "a b &#124;"
    results = {"after": {"chrf": 1.0}}
    page = markdown(results, HELD_OUT, {"after": [text] * 3}, "test", claims)
    assert page.count("<mark>Zorvex</mark>") == 3 and "<b>" not in page
    assert "<mark>" not in markdown(results, HELD_OUT, {"after": [text] * 3}, "test", None)
