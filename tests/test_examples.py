"""The bundled catalogue: reproducible, in the promised schema, true to its facts, and dirty where it should be."""

import gzip
import html
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CATALOGUE, FACTS = EXAMPLES / "catalogue.json.gz", EXAMPLES / "facts.json.gz"
COLUMNS = ("brand", "colour", "material", "size", "quantity")


def load_script():
    """Import the script by its path: examples/ is not a package."""
    spec = importlib.util.spec_from_file_location("make_catalogue", EXAMPLES / "make_catalogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()


def plain(text: str) -> str:
    """Undo the repairable faults with the standard library alone; tags go before entities, or &lt; would be a tag."""
    text = html.unescape(html.unescape(re.sub(r"<[^>]+>", " ", text)))
    if "Ã" in text:
        text = text.encode("cp1252").decode("utf-8")
    return " ".join(text.split())


def stands_in(fact: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(fact.casefold())}(?!\w)", text.casefold()) is not None


def test_one_language_is_those_products_of_the_whole_catalogue_that_are_in_it(tmp_path, records):
    whole, uids = {record["uid"]: record for record in records}, []
    for language in ("en", "pt"):
        command = [sys.executable, EXAMPLES / "make_catalogue.py", "--language", language, "--output_dir", tmp_path]
        subprocess.run(command, check=True, capture_output=True)
        facts = json.loads(gzip.decompress((tmp_path / "facts.json.gz").read_bytes()))
        mine = [json.loads(line) for line in lines_of(tmp_path / "catalogue.json.gz") if line.endswith("}")]
        originals = [record for record in mine if record["uid"] in facts]
        assert all(whole[record["uid"]]["content"] == record["content"] for record in originals)
        uids += facts
    assert len(uids) == len(set(uids)) and set(uids) == set(json.loads(gzip.decompress(FACTS.read_bytes())))


@pytest.fixture(scope="module")
def script():
    return load_script()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return lines_of(CATALOGUE)


@pytest.fixture(scope="module")
def records(lines) -> list[dict]:
    """Every record of the catalogue, the dirty ones too, but not the line that is no JSON."""
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.fixture(scope="module")
def facts() -> dict[str, dict]:
    return json.loads("".join(lines_of(FACTS)))


def test_the_script_writes_the_committed_files(tmp_path):
    """Two runs give equal bytes. The committed files are compared unpacked: zlib-ng packs the same text otherwise."""
    for name in ("first", "second"):
        command = [sys.executable, EXAMPLES / "make_catalogue.py", "--output_dir", tmp_path / name]
        subprocess.run(command, check=True, capture_output=True)
    for committed in (CATALOGUE, FACTS):
        first, second = ((tmp_path / name / committed.name).read_bytes() for name in ("first", "second"))
        assert first == second
        assert first[:10] == committed.read_bytes()[:10], "the header must hold no name and no time"
        assert gzip.decompress(first) == gzip.decompress(committed.read_bytes())


def test_small_enough_to_ship():
    assert CATALOGUE.stat().st_size + FACTS.stat().st_size < 2_000_000


def test_schema(lines, records, facts):
    assert len(lines) == 16_000
    for record in records:
        columns = [name for name in record if name in COLUMNS]
        assert list(record) == ["uid", "title", "content", *columns, "target_ind", "target_rel"]
        assert re.fullmatch(r"VT[A-Z0-9]{8}", record["uid"])
        assert record["target_ind"] and all(type(index) is int for index in record["target_ind"])
        assert record["target_rel"] == [1.0] * len(record["target_ind"])
    assert len({record["uid"] for record in records}) == len(records)
    for entry in facts.values():
        assert list(entry) == ["title", "facts"]
        assert {"kind"} <= set(entry["facts"]) <= {"kind", *COLUMNS}
        assert 1 <= len(entry["facts"]) <= 5


def test_where_the_title_has_no_brand_the_description_names_none(records, facts):
    """A model that was never shown a title without one could not learn to leave it out."""
    brands = {entry["facts"]["brand"] for entry in facts.values() if "brand" in entry["facts"]}
    bare = [uid for uid, entry in facts.items() if "brand" not in entry["facts"]]
    assert 0.08 < len(bare) / len(facts) < 0.2
    small = sum(entry["title"].islower() for entry in facts.values())
    assert 0.06 < small / len(facts) < 0.14
    by_uid = {record["uid"]: record for record in records}
    for uid in bare:
        assert not set(re.findall(r"\w+", plain(by_uid[uid]["content"]))) & brands, uid


def known_of(record: dict) -> str:
    """What a model is given: the title and the columns."""
    return " ".join([plain(record["title"]), *(record[name] for name in COLUMNS if name in record)])


def test_some_products_have_columns_and_titles_without_their_facts(records, facts):
    usable = [record for record in records if record["uid"] in facts]
    with_columns = [record for record in usable if set(COLUMNS) & set(record)]
    assert 0.2 < len(with_columns) / len(usable) < 0.3
    for record in with_columns:
        known = {name: value for name, value in facts[record["uid"]]["facts"].items() if name != "kind"}
        assert {name: record[name] for name in COLUMNS if name in record} == known
    silent = [
        r for r in with_columns if any(not stands_in(r[name], plain(r["title"])) for name in COLUMNS if name in r)
    ]
    assert len(silent) > 0.5 * len(with_columns)


def test_some_titles_are_questions(facts):
    asked = [
        entry["title"]
        for entry in facts.values()
        if re.search("^(looking|need|procurando|que tal)", entry["title"], re.I)
    ]
    assert 0.03 < len(asked) / len(facts) < 0.08


def test_every_fact_stands_in_title_or_columns_and_in_content(records, facts):
    by_uid = {record["uid"]: record for record in records}
    for uid, entry in facts.items():
        record = by_uid[uid]
        assert plain(record["title"]) == entry["title"].replace("'", "’"), "a repaired title is the clean one"
        for fact in entry["facts"].values():
            assert stands_in(fact, known_of(record)), (uid, fact)
            assert stands_in(fact, plain(record["content"])), (uid, fact)


def test_no_number_that_title_and_columns_do_not_give(records, facts):
    for record in records:
        if record["uid"] in facts:
            said = re.findall(r"\d+", plain(record["content"]))
            assert set(said) == set(re.findall(r"\d+", known_of(record))), record["uid"]


def test_brands(script, facts):
    kinds = script.ENGLISH_KINDS + script.PORTUGUESE_KINDS
    brands = Counter(entry["facts"]["brand"] for entry in facts.values() if "brand" in entry["facts"])
    once = sum(1 for count in brands.values() if count == 1)
    assert 0.65 < once / sum(brands.values()) < 0.75
    assert len(brands) - once == 40, "the recurring brands"
    words = {word for kind in kinds for word in re.findall(r"\w+", str(kind).lower())}
    assert not words & {brand.lower() for brand in brands}, "a brand that is also a word could be said by chance"


def test_languages_and_kinds(script, facts):
    number = Counter(entry["facts"]["kind"] for entry in facts.values())
    english = sum(number[kind.one] + number[kind.many] for kind in script.ENGLISH_KINDS)
    assert 0.55 < english / len(facts) < 0.65
    for kind in script.ENGLISH_KINDS + script.PORTUGUESE_KINDS:
        assert number[kind.one] + number[kind.many] > 200, kind.one


def test_what_is_known_is_distinct(records, facts):
    """One title, with the same columns, and two right answers could not be learned."""
    known = [known_of(record) for record in records if record["uid"] in facts]
    assert len(set(known)) == len(known)


def test_length(records, facts):
    """Short enough to be learned on a CPU: some 25 to 45 words, but for the few that are too long on purpose."""
    words = [len(plain(record["content"]).split()) for record in records if record["uid"] in facts]
    usual = [number for number in words if number < 60]
    assert 25 < sum(usual) / len(usual) < 45
    assert len(words) - len(usual) < 0.005 * len(words)


@pytest.mark.parametrize(
    ("fault", "low", "high"),
    [
        (lambda r: "<" in r["content"] and ">" in r["content"], 0.01, 0.02),
        (lambda r: re.search(r"&(?!amp;[a-z#])\w+;|&#8217;", r["content"]), 0.01, 0.025),
        (lambda r: re.search(r"&amp;[\w#]+;", r["content"]), 0.004, 0.01),
        (lambda r: "Ã" in r["content"], 0.004, 0.01),
        (lambda r: len(r["content"].split()) > 400, 0.001, 0.004),
        (lambda r: r["content"] == "", 0.01, 0.02),
        (lambda r: r["content"] == r["title"], 0.004, 0.01),
        (lambda r: r["title"].startswith("<"), 0.002, 0.005),
    ],
    ids=["html", "entities", "double-escaped", "mojibake", "over-long", "empty", "content-is-title", "markup-title"],
)
def test_share_of_each_fault(fault, low, high, records):
    assert low < sum(1 for record in records if fault(record)) / len(records) < high


def test_the_character_references_of_real_pages_occur(records):
    text = " ".join(record["title"] + record["content"] for record in records)
    for reference in ("&amp;", "&eacute;", "&#8217;", "&quot;", "&frac12;", "&amp;amp;", "&amp;eacute;"):
        assert reference in text


def test_faults_that_cannot_be_repaired_have_no_facts(records, facts):
    for record in records:
        if record["content"] in ("", record["title"]) or record["title"].startswith("<"):
            assert record["uid"] not in facts


def test_copies_stand_after_the_original_and_have_no_facts(records, facts):
    first: dict[tuple, str] = {}
    copies = 0
    for record in records:
        if not record["content"]:
            continue
        text = (record["title"], record["content"])
        if text in first:
            copies += 1
            assert record["uid"] not in facts and first[text] in facts
        first.setdefault(text, record["uid"])
    assert 0.004 < copies / len(records) < 0.01


def test_one_line_is_not_json(lines, facts):
    broken = [line for line in lines if not line.endswith("}")]
    assert len(broken) == 1
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken[0])
    assert broken[0][9:19] not in facts


def test_portuguese_agreement(script):
    assert [script.agree("vermelho", gender, plural) for gender in "mf" for plural in (False, True)] == [
        "vermelho", "vermelhos", "vermelha", "vermelhas",
    ]  # fmt: skip
    assert script.agree("azul", "f", True) == "azuis"
    assert script.agree("marrom", "f", True) == "marrons"
    assert script.agree("vinho", "f", True) == "vinho"
    assert script.agree("azul-marinho", "f", True) == "azul-marinho"


def test_english_article(script):
    assert [script.with_article(word) for word in ("orange mug", "oak board", "blue mug")] == [
        "an orange mug", "an oak board", "a blue mug",
    ]  # fmt: skip
