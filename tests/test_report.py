"""The dataset report: its numbers, and that text from the data stays text."""

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import shared_assets

from catalogue.judge import Options
from catalogue.page import as_text
from catalogue.prepare import prepare
from catalogue.report import estimated_tokens, frequent_titles, language_of, token_counter
from text.errors import DataError

EVIL = '<script>alert("1")</script> & | `code` ![x](http://x) \ud83d\x00'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    title, content = "Mug {} &lt;3 | `x` [a](b)", "A mug &amp; saucer for the number {}, with &lt;3."
    lines = [{"title": title.format(i % 5), "content": content.format(i) + " word" * 2 * i} for i in range(150)]
    lines.append({"title": "Caneca", "content": "Uma caneca para o café, não é de vidro."})
    lines.append({"title": EVIL, "content": EVIL})
    (folder / "<b>.json").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    prepare([folder / "<b>.json"], folder / "data", Options(report=True, drop_near_duplicates=False))
    return folder / "data"


class Tags(HTMLParser):
    """The names of the tags of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text, self.open = set(), "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not any(name.startswith("on") or (value or "").startswith(("http:", "https:")) for name, value in attrs
                       if not name.startswith("xmlns"))  # fmt: skip

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_by_itself_and_holds_no_markup_of_the_data(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert "script" not in tags.tags
    assert "img" not in tags.tags
    assert "svg" in tags.tags
    assert "256 tokens" in tags.text
    assert "<b>.json" in tags.text  # the name of the input
    assert "A mug &amp; saucer for the number" in tags.text  # an example, as it came
    for words in ("152", "English", "Mug 0 <3 | `x` [a](b)"):
        assert words in tags.text


def test_the_counts_are_those_of_report_json(folder):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    cells = re.findall(r'<tr><td[^>]*>(?:<b>)?([\w ]+)(?:</b>)?</td><td class="n">([\d,]+)</td>', page)
    rows = {name: int(count.replace(",", "")) for name, count in cells}
    assert rows["lines read"] == report["lines"]
    assert {split: rows[split] for split in report["kept"]} == report["kept"]
    assert rows["kept"] + rows["left out"] == report["lines"]
    examples = page[page.index('<table class="pairs">') :]
    assert examples.count("<tr><td") == 10 and examples.count("<td") == 20


def test_the_same_bytes_come_out_twice(folder, tmp_path):
    prepare([folder.parent / "<b>.json"], tmp_path, Options(report=True, drop_near_duplicates=False))
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_text_in_html_stays_text():
    assert html.unescape(as_text(EVIL)) == EVIL.replace("\ud83d", "\\ud83d").replace("\x00", " ")
    assert "<" not in as_text(EVIL) and as_text("<b>\x00\ud83d") == "&lt;b&gt; \\ud83d"


def test_frequent_titles_are_exact(tmp_path):
    path = tmp_path / "train.jsonl"
    titles = ["b"] * 3 + ["A", "a"] + ["once"] + ["c"] * 3
    path.write_text("".join(json.dumps({"title": title}) + "\n" for title in titles), encoding="utf-8")
    assert frequent_titles([path]) == [("b", 3), ("c", 3), ("A", 2)]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("This is the best mug for the office and it keeps your coffee hot.", "English"),
        ("Uma caneca de cerâmica para o seu café, não vai ao forno.", "Portuguese"),
        ("Una taza de cerámica para el café, con los colores de las flores y más.", "Spanish"),
        ("Une tasse pour le café, avec les fleurs dans la cuisine.", "French"),
        ("Der Becher ist für den Kaffee und die Küche.", "German"),
        ("Una tazza per il caffè, con gli amici che sono nel giardino.", "Italian"),
        ("保温マグカップ", "Chinese or Japanese"),
        ("термокружка для кофе", "Cyrillic"),
        ("XK-200 5V", "not clear"),
    ],
)
def test_languages(text, language):
    assert language_of(text) == language


def test_the_estimate_is_near_to_what_gpt2_s_tokenizer_counts():
    records = json.loads(shared_assets("products", "lf_amazon_500.json").read_text(encoding="utf-8"))
    records = [{"title": record["instruction"], "content": record["output"]} for record in records]
    languages = ["English"] * len(records)
    exact = np.array(token_counter(str(shared_assets("gpt2-tokenizer")))[0](records, languages))
    estimate = np.array(token_counter(None)[0](records, languages))
    assert abs(estimate.mean() / exact.mean() - 1) < 0.05
    assert abs((estimate > 256).mean() - (exact > 256).mean()) < 0.02


def test_a_tokenizer_that_is_not_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be loaded"):
        token_counter(str(tmp_path))
    assert estimated_tokens("A mug, for 350 ml!", "English") == 7
