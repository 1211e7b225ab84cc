"""`clean`: what goes, what stays, and that a second time changes nothing."""

import html
import re
import time

import pytest
from ftfy.badness import is_bad
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalogue import clean as module
from catalogue.clean import clean

# Pieces that only do harm together: a hidden character inside a tag, half an entity before the other half, …
MARKUP = "< > & ; amp; &amp; &lt; &gt lt;b> &#60; &#x97; &eacute; <b> </b> <p> <br <td> </ <! ? <!-- --> ' <a\tb='"
RAW_TEXT = "<script> </script> <style> <textarea> </textarea> <title> <plaintext> <xmp> <svg> <template> <select>"
LETTERS = "é e \u0301 \u0316 Ã © Ã© â €‹ Â œ ि م ½ ™ ° \u0958 \u037e \ufffd \U0001f469 \U0001f3f4 \U000e0067 \ud83d"
HIDDEN = ["\xa0", "\x97", "\x85", "\x00", "\x1f", "\u200b", "\u200c", "\u200d", "\ufeff", "\xad", " ", "\n", " ,", "."]
PIECES = [*MARKUP.split(" "), *RAW_TEXT.split(" "), *LETTERS.split(" "), *HIDDEN]
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=30).map("".join)
ANY_TEXT = HOSTILE | st.text(st.characters(), max_size=60)


@settings(max_examples=1500, deadline=None)
@given(ANY_TEXT)
@example("&" * 30 + "lt;b>" * 30)  # deeper than MAX_ROUNDS: the last resort
@example("â" * 30 + "€‹" * 30)
@example("a" + "\u0301\u0316" * 2000)
def test_clean_twice_is_clean_once_and_the_result_is_one_line_of_utf8(text):
    once = clean(text)
    assert clean(once) == once
    once.encode("utf-8")
    assert once == " ".join(once.split())


@settings(max_examples=500, deadline=None)
@given(ANY_TEXT)
def test_no_markup_no_entity_no_control_character_is_left(text):
    once = clean(text)
    assert not re.search(r"<[A-Za-z!?]|</.", once)  # `</` begins nothing at the very end
    assert html.unescape(once) == once
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b\ufeff\xad\ud800-\udfff\ufffd]", once)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("&lt;5 cm", "<5 cm"),
        ("&amp;lt;5 cm", "<5 cm"),
        ("a < b and c <3", "a < b and c <3"),
        ("&lt;b&gt;New&lt;/b&gt;", "New"),
        ("&lt;b&gt;Caneca&lt;/b&gt; t&amp;eacute;rmica , &amp;lt;5 cm", "Caneca térmica, <5 cm"),
        ("Salt &amp;amp;amp;amp; pepper", "Salt & pepper"),
        ("AT&T, H&M, R&D", "AT&T, H&M, R&D"),
        ("Caf&amp;eacute;", "Café"),
        ("Café &" + "amp;" * 40 + " chá", "Café & chá"),  # one layer more at every save
        ("5 < ! 6", "5 < ! 6"),
        ("2001&#x97;2010 &#151; it&#x92;s &#x85;", "2001—2010 — it’s …"),
        ("2001\x972010", "2001—2010"),
        ("&#" + "9" * 5000 + ";!", "!"),
    ],
)
def test_tags_go_before_entities_are_decoded(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("<style>p{color:red}</style>Mug<script>if (1<2) x()</script><!-- hidden --> blue", "Mug blue"),
        ("<p>Steel</p><p>Blue</p>one<br>two<BR/>three", "Steel Blue one two three"),
        ("<ul><li>a</li><li>b</li></ul><table><tr><td>x<td>y</table>", "a b x y"),
        ("<td>x</td><td>y</td>", "x y"),
        ("hand<b>made</b> H<sub>2</sub>O", "handmade H2O"),
        ("a<o:p>b</o:p>c", "a b c"),
        ('<span class="a-size-medium a-color-secondary"', ""),
        ("Mug <br", "Mug"),
        ("<![CDATA[<p>A steel mug.</p><p>Blue</p>]]>", "A steel mug. Blue"),
        ("<![CDATA[Caneca]]>", "Caneca"),
        ("my heart </3 and a long text", "my heart < /3 and a long text"),
        ("what <? and more", "what < ? and more"),
        ("Waist <XL. Machine washable", "Waist < XL. Machine washable"),
    ],
)
def test_tags_are_dropped_and_block_elements_separate_words(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Caneca térmica de aço inoxidável",
        "½ xícara, 30 °C, Marca™, 10³, ﬁne, Ｗide",  # NFKC would rewrite five of them
        "保温マグカップ термокружка θερμός קומקום",
        "می‌خواهم क्‍ष",  # a joiner between letters has a meaning
        "👨‍👩‍👧 👍🏽 ❤️ 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "“curly” ‘quotes’ – dashes—and…",
        "size .5 mm :) a .NET book",
    ],
)
def test_what_carries_meaning_survives(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Caneca tÃ©rmica de aÃ§o inoxidÃ¡vel", "Caneca térmica de aço inoxidável"),
        ("it&acirc;&#128;&#153;s", "it’s"),
        ("e\u0301", "é"),
        ("a\u200bb\ufeffc\u00add\x00e\x7ff\u200dg", "abcdefg"),
        ("safe\U000e0041\U000e0042 text", "safe text"),
        ("\ud83d\ude00 lone \ud83d half", "😀 lone half"),
        (" a \t\r\n\u00a0\u3000 b ", "a b"),
        ("red , blue ; ready ! ok ?", "red, blue; ready! ok?"),
    ],
)
def test_broken_and_invisible_characters(raw, cleaned):
    assert clean(raw) == cleaned


@settings(max_examples=1500, deadline=None)
@given(st.text(st.characters(max_codepoint=0x2600), max_size=12) | HOSTILE)
@example("Œuvre œ 1")
@example("voilÃ le travail")
def test_the_quick_look_misses_no_mojibake_that_ftfy_would_see(text):
    assert module._MAYBE_MOJIBAKE.search(text) or not is_bad(text)


@pytest.mark.parametrize(
    "unit",
    ["<div>", "<b a=1><p>x", "<<b>", "&lt;b&gt;", "<!--", "<a ", "\u0301\u0316", "â", "<table><td>", " ,", "&#", "x"],
)
def test_time_is_linear_in_hostile_text(unit):
    """500,000 characters each; what is quadratic (tree depth, clones, order of marks) would take minutes."""
    begin = time.perf_counter()
    clean(unit * (500_000 // len(unit)))
    assert time.perf_counter() - begin < 10


def test_a_tag_of_very_many_attributes_is_a_tag():
    attributes = " ".join(f"x{i}=1" for i in range(400_000))
    begin = time.perf_counter()
    assert clean(f"before <a {attributes}>mug</a> after") == "before mug after"
    assert time.perf_counter() - begin < 10


def test_text_that_never_settles_keeps_its_ascii():
    depth = 3 * module.MAX_ROUNDS
    cleaned = clean("Mug " + "&" * depth + "lt;b>" * depth)
    assert cleaned.startswith("Mug")
    assert "<" not in cleaned
    assert html.unescape(cleaned) == cleaned


def test_a_piece_is_bounded_in_tags_and_characters_and_never_cuts_a_tag():
    style = f'<b style="{"x" * module.MAX_CHARS_PER_PARSE}">'
    text = "a<b " * (3 * module.MAX_TAGS_PER_PARSE) + style + "<p>b" * 10
    pieces = list(module._pieces(text))
    assert "".join(pieces) == text
    assert max(piece.count("<") for piece in pieces) == module.MAX_TAGS_PER_PARSE
    assert pieces[-1] == "<p>b" * 10  # the long tag, which every <p> would have copied, is in the piece before
    assert all(piece.startswith("<") for piece in pieces[1:])


def test_a_long_text_is_parsed_in_pieces_that_lose_no_word():
    rows = "".join(f"<tr><td>row{i}</td><td>value {i}</td></tr>" for i in range(3000))
    expected = " ".join(f"row{i} value {i}" for i in range(3000))
    assert clean(f"<table>{rows}</table>") == expected
