"""From the raw text of a catalogue to plain text: no markup, no entities, no mojibake, nothing invisible.

`clean` is pure and idempotent. What carries meaning survives: accents, every script, ½ ™ °, emoji.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby, islice

from ftfy import TextFixerConfig, fix_encoding
from selectolax.lexbor import LexborHTMLParser

# Layers of escaping that are undone one by one. Real catalogues have at most three; text that is still changing
# after so many rounds was built to be hostile.
MAX_ROUNDS = 16

# What one parse is given at most. HTML trees cost time quadratic in the depth, and `<b a=1><b a=2>…<p><p>…` memory
# quadratic in the number of tags (each <p> clones every open <b>), so a monster is parsed in pieces.
MAX_TAGS_PER_PARSE = 1_024
MAX_CHARS_PER_PARSE = 65_536

# Mojibake is looked for in texts up to this length: ftfy reads hostile text at 0.1 M characters a second.
MAX_CHARS_TO_REPAIR = 1_000_000

# In texts longer than MAX_CHARS_TO_SORT a letter carries at most MAX_MARKS combining marks, as in the Stream-Safe Text
# Format of Unicode (UAX #15): normalisation sorts them in time quadratic in their number.
MAX_MARKS = 30
MAX_CHARS_TO_SORT = 2_000

# Elements inside a word or a line. Every other element, known or not, separates words.
_INLINE = (
    "a,abbr,acronym,b,bdi,bdo,big,cite,code,data,del,dfn,em,font,i,ins,kbd,label,mark,nobr,q,rp,rt,ruby,s,samp,small,"
    "span,strike,strong,sub,sup,time,tt,u,var,wbr"
)
_SEPARATING = f":not({_INLINE})"
_UNSEEN = "script,style,iframe,noembed,noframes,template"

# Where HTML sees a tag, a comment or a character reference begin; `<5 cm`, `a < b` and `H & M` are plain text to it.
_MARKUP = re.compile(r"<[A-Za-z/!?]|&[#A-Za-z]")

# HTML ignores a table cell without its table (a description cut out of one), and its words would join.
_CELL = re.compile(r"<(?=/?(?:t[dhr]|caption)\b)", re.IGNORECASE)

# After the last `>`: `<XL. Washable` and whatever else does not look like a tag cut off in its middle (`<br`,
# `<span class="a-si`). For HTML it would be a tag all the same, and take the rest of the text with it.
_NOT_A_TAG = re.compile(r"<(?=[A-Za-z])(?![A-Za-z][\w:-]*(?:\s*(?:/\s*)?\Z|\s+[\w:-]+\s*(?:=|\Z)))|<(?=/[^A-Za-z]|\?)")

# The parser compares each attribute of a tag with all others of it: 4 MB of them would take minutes.
MAX_CHARS_OF_A_TAG = 20_000
_ENDLESS_TAG = re.compile(rf"(<[A-Za-z][\w:-]*)[^<>]{{{MAX_CHARS_OF_A_TAG},}}>")

# A shortcut to the same result: `&amp;amp;amp;quot;`, escaped anew at every save, would lose one layer a round.
_ESCAPED_AGAIN = re.compile(r"&(?:amp;)+")

# What all mojibake has: two neighbours that are not ASCII, a C1 control, or one of the four letters that ftfy suspects
# alone. Exact for ftfy 6.3 (a test compares), and fifty times as fast as its own first look.
_MAYBE_MOJIBAKE = re.compile("[^\x00-\x7f](?:[^\x00-\x7f]|(?<=[\x80-\x9fÂÃŒœ]))")

# Controls, soft hyphen, zero-width and direction marks, noncharacters, and U+FFFD, which stands for a lost character.
_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_HIDDEN = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\uffff"
)
# One class, ten times as fast to search as the alternatives below.
_MAYBE_INVISIBLE = re.compile(f"[{_HIDDEN}\u200c\u200d\U000e0000-\U000e007f]")
# A zero-width joiner or non-joiner has a meaning between two letters of a script that needs it, or between two emoji.
_JOINED = (
    "\u0590-\u1fff\u2190-\u2bff\u3030\u3297\u3299\ua800-\uabff\ufb1d-\ufdff\ufe0f\ufe70-\ufefc\U00010000-\U0001fbff"
)
_INVISIBLE = re.compile(
    f"[{_HIDDEN}]"
    f"|(?<![{_JOINED}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINED}])"
    # Tag characters spell out a flag (England, Scotland, Wales) after a black flag; elsewhere they hide text.
    "|(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+"
)
_LONG_RUN_OF_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{MAX_MARKS + 1},}}")

# Only before punctuation that ends something: not in ` .5 mm`, ` :)`, ` .NET`. Not after `<`, where `< !` is text
# and `<!` would be markup.
_SPACE_BEFORE_PUNCTUATION = re.compile(r" (?<!< )(?=[,.;:!?]+(?: |\Z))")

_UNSAFE = re.compile(r"[^\x00-%'-;=-\x7f]")  # all but ASCII without & and <

# Only `fix_encoding` is called, which neither unescapes, nor uncurls quotes, nor normalises; this says it again.
_FTFY = TextFixerConfig(unescape_html=False, uncurl_quotes=False, normalization=None, explain=False)


def clean(text: str) -> str:
    """Plain text of `text`, on one line, encodable as UTF-8. `clean(clean(x)) == clean(x)` for every x.

    What counts as markup: `<` followed by a letter, `/`, `!` or `?`, and whatever HTML reads as a character reference.
    It counts in every round, and rounds are repeated until the text stays as it is. Tags go before entities are
    decoded, so a decoded `<5 cm` is never taken for a tag, while a tag that was escaped as a whole is one. A `<` that
    no `>` follows begins a tag only if it looks like one that was cut off (`<br`, `<span class="a-si`):

        &lt;b&gt;Caneca&lt;/b&gt; t&amp;eacute;rmica , &amp;lt;5 cm      the source
        <b>Caneca</b> térmica, <5 cm                                 after round 1 (&amp;x; counts as one layer)
        Caneca térmica, <5 cm                                        after round 2
        Caneca térmica, <5 cm                                        round 3 changes nothing: done

    The result is thus a fixed point of one round, which is what makes the function idempotent. Text that still
    changes after MAX_ROUNDS (each layer hidden inside the next) is reduced to its ASCII without `<` and `&`,
    a fixed point by construction, so that hostile text costs at most MAX_ROUNDS passes.
    """
    for _ in range(MAX_ROUNDS):
        before = text
        if not text.isascii():
            # Surrogate pairs become the character they encode, lone halves U+FFFD.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if _has_markup(text):
            text = _visible_text(text)
        if not text.isascii():
            text = _repaired(text)
        text = _spaced(text)
        if text == before or (text.isascii() and not _has_markup(text)):
            return text
    return _spaced(_UNSAFE.sub(" ", text))


def _has_markup(text: str) -> bool:
    """Whether the HTML parser could change `text`. The two `in` cost a tenth of the search and mostly suffice."""
    return ("<" in text or "&" in text) and _MARKUP.search(text) is not None


def _visible_text(html: str) -> str:
    """The text a browser shows: without tags, comments, scripts and styles; one layer of entities decoded."""
    html = _ESCAPED_AGAIN.sub("&", html)
    if "<![CDATA[" in html:  # of feeds in XML; for HTML all of it would be a comment
        html = html.replace("<![CDATA[", " ").replace("]]>", " ")
    if len(html) > MAX_CHARS_OF_A_TAG:
        html = _ENDLESS_TAG.sub(r"\1>", html)
    if "<" not in html:
        return LexborHTMLParser(html, is_fragment=True).text()
    closed = html.rfind(">") + 1
    html = _CELL.sub(" <", html[:closed]) + _NOT_A_TAG.sub("< ", html[closed:])
    return "".join(_visible_text_of_piece(piece) for piece in _pieces(html))


def _visible_text_of_piece(html: str) -> str:
    tree = LexborHTMLParser(html, is_fragment=True)
    for node in tree.css(_UNSEEN):
        node.decompose()
    for node in tree.css(_SEPARATING):
        node.insert_before(" ")
        node.insert_after(" ")
    return tree.text()


def _pieces(html: str) -> Iterator[str]:
    """`html` cut before a `<` wherever the piece so far has MAX_TAGS_PER_PARSE of them or MAX_CHARS_PER_PARSE."""
    start, tags = 0, 0
    for tag in re.finditer("<", html):
        if tags == MAX_TAGS_PER_PARSE or (tags and tag.start() - start >= MAX_CHARS_PER_PARSE):
            yield html[start : tag.start()]
            start, tags = tag.start(), 0
        tags += 1
    yield html[start:]


def _repaired(text: str) -> str:
    """Non-ASCII text without mojibake and invisible characters, in NFC (NFKC would turn ½ into 1⁄2 and ™ into TM)."""
    if len(text) <= MAX_CHARS_TO_REPAIR and _MAYBE_MOJIBAKE.search(text):
        text = fix_encoding(text, _FTFY)
    if _MAYBE_INVISIBLE.search(text):
        text = _INVISIBLE.sub("", text)
    if len(text) > MAX_CHARS_TO_SORT:
        text = _LONG_RUN_OF_MARKS.sub(lambda run: _first_marks(run[0]), text)
    return unicodedata.normalize("NFC", text)


def _first_marks(run: str) -> str:
    """`run` without the combining marks that follow MAX_MARKS others."""
    groups = groupby(run, lambda character: unicodedata.combining(character) > 0)
    return "".join(c for are_marks, group in groups for c in islice(group, MAX_MARKS if are_marks else None))


def _spaced(text: str) -> str:
    """Words separated by one space, none before punctuation; ASCII controls dropped. Idempotent by itself."""
    text = " ".join(text.split())
    if not text.isprintable():
        text = " ".join(_ASCII_CONTROL.sub("", text).split())
    return _SPACE_BEFORE_PUNCTUATION.sub("", text)
