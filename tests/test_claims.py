"""Claims: what an answer states and nothing supports."""

import json
from types import SimpleNamespace

import pytest
from conftest import write_data

import generate
import run.candidates as candidates
from catalogue.claims import TOKEN, Claims, folded, forms_of, numbers_of, repeated, support_of
from catalogue.index import FILE_NAME, Catalogue, write_catalogue
from catalogue.inventions import KnownFacts
from model.sample import Sampling
from run.answers import UNSUPPORTED
from run.candidates import Prompt, Writer
from run.cli import UsageError
from run.sources import Sources

COLOURS, BRANDS = ("blue", "red", "green", "white"), ("Velmora", "Tinilan", "Zarivia", "Kelbra")
RECORDS = [
    {
        "uid": f"{colour}{brand}{size}",
        "title": f"{brand} {colour} ceramic mug, {size} ml",
        "content": f"This {colour} ceramic mug from {brand} holds {size} ml. Coffee stays warm in it for 10 minutes.",
    }
    for colour in COLOURS
    for brand in BRANDS
    for size in (250, 350)
]
FACTS = {
    r["uid"]: {
        "title": r["title"],
        "facts": {
            "kind": "mug",
            "colour": r["title"].split()[1],
            "brand": r["title"].split()[0],
            "size": r["title"][-6:],
        },
    }
    for r in RECORDS
}


@pytest.fixture
def claims(tmp_path) -> Claims:
    folder = write_data(tmp_path / "data", RECORDS)
    write_catalogue(folder / FILE_NAME, folder / "train.jsonl")
    return Claims(Catalogue(folder))


def texts(found) -> list[str]:
    return [claim.text for claim in found]


def test_what_the_title_does_not_say_is_unsupported(claims):
    answer = "This red ceramic mug from Pamonel holds 350 ml. Coffee stays warm in it for 10 minutes."
    found = claims.unsupported(answer, ["Blue ceramic mug, 350 ml"])
    assert texts(found) == ["red", "Pamonel"]
    assert all(answer[claim.start :].startswith(claim.text) for claim in found)
    assert texts(claims.unsupported(answer, ["mug"])) == ["red", "ceramic", "Pamonel", "350 ml"]
    assert claims.unsupported(answer, ["Blue ceramic mug, 350 ml", "In red, by Pamonel."]) == []  # another text at hand


def test_what_descriptions_say_without_their_titles_is_no_claim(claims):
    """Coffee, and the ten minutes: no title speaks of them."""
    assert claims.unsupported("Coffee stays warm for 10 minutes.", ["mug"]) == []
    assert texts(claims.unsupported("Coffee stays warm for 12 minutes.", ["mug"])) == ["12"]


def test_the_real_descriptions_make_no_false_alarm(claims):
    assert all(claims.unsupported(r["content"], [r["title"]]) == [] for r in RECORDS)


def test_what_an_answer_and_its_title_share():
    """Forms of one word are one, quantities are compared as such, articles and prepositions count for nothing."""
    title, answer = (
        "Velmora blue ceramic mugs with a lid, 0,35 l",
        "This blue ceramic mug, with a handle, holds 350 ml.",
    )
    assert texts(repeated(title, answer)) == ["blue", "ceramic", "mug", "350 ml"]
    assert texts(repeated(answer, title)) == ["blue", "ceramic", "mugs", "0,35 l"]


@pytest.mark.parametrize(
    "one, other",
    [
        ("mug", "mugs"), ("scarf", "scarves"), ("azul", "azuis"), ("preto", "pretas"), ("marrom", "marrons"),
        ("algodão", "algodões"), ("branca", "branco"), ("knives", "knife"), ("glass", "glasses"), ("wood", "wooden"),
        ("berry", "berries"), ("fácil", "fáceis"), ("francês", "francesa"), ("espanhol", "espanhóis"), ("bom", "bons"),
        ("alemão", "alemã"), ("limão", "limões"), ("luz", "luzes"), ("verde", "verdes"), ("prata", "pratas"),
    ],
)  # fmt: skip
def test_forms_of_a_word_are_one_word(one, other):
    one, other = folded(one), folded(other)
    assert support_of([one]).has_word(other) and support_of([other]).has_word(one)
    assert other in forms_of(one) and one in forms_of(other)  # so the index counts what the answer is judged by


@pytest.mark.parametrize(
    "one, other",
    [
        ("wool", "wood"), ("casa", "caneca"), ("steel", "stone"), ("bed", "red"), ("prata", "prato"),
        ("linho", "linha"),
        ("pin", "pine"), ("line", "linen"), ("tin", "tiny"), ("cobre", "cobra"), ("seda", "sede"), ("rosa", "rosto"),
    ],
)  # fmt: skip
def test_other_words_are_others(one, other):
    assert not support_of([one]).has_word(other) and other not in forms_of(one)


@pytest.mark.parametrize(
    "said, title, supported",
    [
        ("350 ml", "Mug, 0,35 l", True), ("0.35 litre", "Mug 350ml", True), ("350 ml", "Mug, 350 g", False),
        ("40 x 30 cm", "Board 40x30 cm", True), ("40 x 30 cm", "Board 300 x 400 mm", True), ("4", "Set of 4", True),
        ("1.000 ml", "Jar, 1 litre", True), ("5", "Set of 4", False), ("30 cm", "Board 40 x 30 cm", True),
        ("40 cm x 30 cm", "Board 40 x 30 cm", True), ("40 por 30 cm", "Board 40cm x 30cm", True),
        ("40 x 50 cm", "Board 40 x 30 cm", False), ("500 gramas", "Arroz 0,5 kg", True), ("0.5 kg", "Rice 500g", True),
        ("5 centímetros", "Gancho 50 mm", True), ("2 quilos", "Arroz 2kg", True), ("12-inch", 'Pan 12"', True),
        ("12 inches", "Pan 12 in.", True), ("6 ft", "Rope 6 feet", True), ("16 oz", "Bag 1 lb", True),
        ("35 cl", "Jar 350ml", True), ("2 in 1", "Mug 2-in-1", True), ("5 l", "Jar 5 cm", False),
        ("1.299,90", "R$1299,90", True), ("1,299.90", "1299.9", True), ("2", "Kit com dois", True),
        ("two", "Set of 2", True), ("nove", "Kit com 6", False), ("0.128 TB", "Phone 128GB", True),
        ("2 x 500 ml", "Kit 2x500ml", True), ("2 bottles, 500 ml", "2 x 500 ml bottles", True),
    ],
)  # fmt: skip
def test_a_quantity_is_one_claim_in_whatever_unit(claims, said, title, supported):
    assert (claims.unsupported(f"it is {said}.", [title]) == []) == supported


def test_a_claim_in_one_spelling_is_counted_in_all(tmp_path):
    """Ten stands in every description, ten centimetres only where the title has them, in whatever unit."""
    records = [
        {
            "uid": str(n),
            "title": f"Gancho {n * 10}mm",
            "content": f"O gancho tem {n} cm e vem em 10 minutos, tamanho M.",
        }
        for n in range(1, 40)
    ]
    folder = write_data(tmp_path / "other", records)
    write_catalogue(folder / FILE_NAME, folder / "train.jsonl")
    claims = Claims(Catalogue(folder))
    assert texts(claims.unsupported("O gancho tem 10 cm.", ["Gancho"])) == ["10 cm"]
    assert texts(claims.unsupported("O gancho tem 0,1 m.", ["Gancho"])) == ["0,1 m"]
    assert claims.unsupported("O gancho vem em 10 minutos.", ["Gancho"]) == []
    assert texts(claims.unsupported("Tamanho XL, é tamanho M. O A É.", ["Gancho"])) == ["XL"]


def test_numbers_are_read_as_people_write_them():
    assert numbers_of("1.5 1,5 1.000 1,000 1.234.567 0,350 12") == [1.5, 1.5, 1000, 1000, 1234567, 0.35, 12]
    assert numbers_of("1.299,90 1,299.90 1.234.567,8") == [1299.9, 1299.9, 1234567.8]


def test_nothing_in_an_answer_is_taken_for_a_query(claims):
    for hostile in ('" OR title:"', "NEAR(a b)", "x* NOT y", "💡 -- ;", "a" * 5000, "𝟛𝟝"):
        claims.unsupported(hostile, [hostile])


def test_the_known_facts_say_the_same_without_knowing_it(claims):
    known = KnownFacts(FACTS, RECORDS)
    found = known.inventions({"title": "Blue mug"}, "This red mug from Kelbra holds 350 ml.")
    assert sorted(found) == ["350 ml", "Kelbra", "red"]
    assert all(known.inventions(r, r["content"]) == [] for r in RECORDS)
    assert [r["title"] for r in known.short_titles(RECORDS[:1])] == ["mug", "blue mug", "blue mug 250 ml"]
    (cut,) = known.cut_down(RECORDS[:1])
    assert cut["title"] == "mug" and "blue" in cut["attributes"].values() and "kind" not in cut["attributes"]
    assert all(known.facts_said(cut, RECORDS[0]["content"])) and not any(known.facts_said(cut, "A lamp."))
    sized = [{"uid": "s", "title": "shirt size M", "content": "A shirt of size M."}]
    other = [{"uid": "o", "title": "shirt", "content": "A shirt for people of any size."}]
    facts = {r["uid"]: {"title": r["title"], "facts": {"kind": "shirt"}} for r in (*sized, *other)}
    facts["s"]["facts"]["size"] = "size M"
    shirts = KnownFacts(facts, [*sized, *other])
    assert shirts.inventions({"title": "shirt"}, "A shirt of size M.") == ["size M"]  # "size" alone tells nothing
    assert shirts.inventions({"title": "shirt"}, "A shirt of any size.") == []
    attributes = {"colour": "red", "brand": "Kelbra", "size": "0,35 l"}
    assert known.inventions({"title": "mug", "attributes": attributes}, "This red mug from Kelbra holds 350 ml.") == []


# -- the truest of several --------------------------------------------------------------------------------------------


@pytest.fixture
def writer(claims, monkeypatch):
    """A writer whose model says what `say(stream, greedy)` returns."""

    def made(say, tries):
        def write(model, next_answer, end, sampling, rows, rule, check):
            while answer := next_answer():
                text, log_p = say(answer.number, answer.greedy or sampling.greedy)
                answer.ids, answer.log_ps, answer.stopped = [text], [log_p], True
                yield [(answer, True)]

        monkeypatch.setattr(candidates, "write", write)
        monkeypatch.setattr(candidates, "decode", lambda tokenizer, ids, stop: ids[0])
        template = SimpleNamespace(stop=())
        encoder = SimpleNamespace(end_token=0, tokenizer=None, template=template)
        return Writer(
            SimpleNamespace(config=SimpleNamespace(max_position_embeddings=99)),
            encoder,
            Sampling(greedy=True),
            claims,
            tries,
        )

    return made


def test_the_fewest_claims_then_the_most_facts_then_the_likeliest(writer):
    answers = {
        0: ("A red mug from Pamonel.", -1.0),
        1: ("A mug.", -1.0),
        2: ("A blue ceramic mug.", -9.0),
        3: ("A blue ceramic mug!", -5.0),
    }

    def say(stream, greedy):
        return answers[stream // candidates.APART % 4]

    (best,) = writer(say, 4).write([Prompt([1], ["Blue ceramic mug"], 0)])
    assert best.text == "A blue ceramic mug!" and best.unsupported == []


def test_a_single_try_is_the_answer_as_it_was(writer):
    seen = []

    def say(stream, greedy):
        seen.append((stream, greedy))
        return "A red mug.", 0.0

    (only,) = writer(say, 1).write([Prompt([1], ["Blue mug"], 7)])
    assert seen == [(7, True)] and texts(only.unsupported) == ["red"]


def test_each_try_has_a_stream_of_its_own(writer):
    streams = []

    def say(stream, greedy):
        streams.append(stream)
        return ("A blue mug." if stream == 5 + candidates.APART * 2 else "A red mug.", 0.0)

    some = list(writer(say, 3).write([Prompt([1], ["Blue mug"], 5), Prompt([2], ["Red mug"], 6)]))
    assert [answer.text for answer in some] == ["A blue mug.", "A red mug."]
    assert len(streams) == len(set(streams)) == 6


def test_the_tokenizer_of_the_index_and_ours_agree(claims):
    for record in RECORDS[:2]:
        for token in TOKEN.finditer(record["content"]):
            assert claims._catalogue.contents_and_titles([token[0]], [token[0]], 10)[0] > 0, token[0]


# -- as it is shown ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, claims, gpt2_folder, train):
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 1, "--data", tmp_path / "data")
    return ["--run", str(tmp_path / "runs" / "a"), "--device", "cpu", "--max_new_tokens", "4"]


def asked(run, monkeypatch, text, *args) -> int:
    monkeypatch.setattr(candidates, "decode", lambda tokenizer, ids, stop: text)
    return generate.main(generate.parse([*run, *map(str, args)]))


def test_a_file_of_titles_names_what_nothing_supports(run, tmp_path, monkeypatch, capsys):
    titles = tmp_path / "titles.txt"
    titles.write_text("Blue mug\nRed mug\n", encoding="utf-8")
    assert asked(run, monkeypatch, "A red mug.", "--titles", titles) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["unsupported"] == [{"text": "red", "start": 2}] and second["unsupported"] == []
    assert asked(run, monkeypatch, "A red mug.", "--titles", titles, "--strict") == 0
    shown = capsys.readouterr()
    first, second = map(json.loads, shown.out.splitlines())
    assert first["answer"] == "" and first["fault"] == UNSUPPORTED and "red" in first["error"]
    assert "fault" not in second and second["answer"] == "A red mug."
    assert "2 titles: 1 answered, 1 without an answer (states what nothing supports)" in shown.err


def test_where_nothing_is_underlined_it_is_named(run, monkeypatch, capsys):
    """Into a pipe, as here: the answer alone on standard output."""
    assert asked(run, monkeypatch, "A red 💡 mug, in red.", "--title", "Blue mug", "--candidates", 2) == 0
    shown = capsys.readouterr()
    assert shown.out == "A red 💡 mug, in red.\n" and "(nothing supports: red)\n" in shown.err
    assert asked(run, monkeypatch, "A red mug.", "--title", "Blue mug", "--title", "Red mug") == 0
    assert capsys.readouterr().err.count("(nothing supports: red)\n") == 1


def test_a_title_in_capitals_is_asked_as_the_catalogue_writes_them(claims, tmp_path):
    shouted = {"title": "BLUE MUG É 350 ML", "attributes": {"brand": "IKEA"}}
    assert Sources(tmp_path / "data", 0, False).as_taught(shouted) == shouted | {"title": "blue mug é 350 ml"}
    assert Sources(tmp_path, 0, False).as_taught(shouted) == shouted  # no catalogue: nothing is known
    folder = write_data(tmp_path / "loud", [r | {"title": r["title"].upper()} for r in RECORDS])
    write_catalogue(folder / FILE_NAME, folder / "train.jsonl")
    assert Sources(folder, 0, False).as_taught(shouted) == shouted
    assert Sources(folder, 0, False).as_taught({"title": "Blue mug"}) == {"title": "Blue mug"}


def test_a_title_that_resembles_nothing_is_said_to(run, monkeypatch, capsys):
    assert asked(run, monkeypatch, "A mug.", "--title", "iPhone 250 Pro", "--candidates", 2) == 0
    assert "nothing in the catalogue resembles" in capsys.readouterr().err
    assert asked(run, monkeypatch, "A mug.", "--title", "Blue mug", "--candidates", 2) == 0
    shown = capsys.readouterr()
    assert shown.out == "A mug.\n" and "nothing in the catalogue" not in shown.err


def test_without_a_catalogue_candidates_are_refused(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / FILE_NAME).unlink()
    with pytest.raises(UsageError, match="there is none"):
        asked(run, monkeypatch, "A mug.", "--title", "Blue mug", "--candidates", 2)
    assert asked(run, monkeypatch, "A mug.", "--title", "Blue mug") == 0


def test_a_source_that_shares_a_number_alone_is_none(claims):
    assert claims._catalogue.nearest("iPhone 250 Pro", 3) == []
    assert len(claims._catalogue.nearest("250", 3)) == 3  # who asks for nothing but a number gets what has it
