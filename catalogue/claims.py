"""What an answer claims, and whether anything supports it, learned from the catalogue that the model was trained on.

Of each word of the training descriptions the index tells how often the title of the same product held it too. A word
that stands in a description nearly always only together with its title ("ceramic", "350 ml", a brand) states a fact: it
is a claim. "Coffee" stands in many descriptions of mugs whose titles are silent of it: it is none. Numbers and names
that no description holds are claims as well. A claim that neither the title nor another text at hand supports is
unsupported: nothing says that it is true.

Nothing is learned ahead: the index of `catalogue/index.py` counts when it is asked, a word at a time.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from catalogue.fields import unaccented
from catalogue.index import EMPTY_WORDS, Catalogue

# Of the descriptions that hold a word, the share whose titles hold it too from which on it is a claim.
CLAIM = 0.95
FEWEST = 3  # descriptions, to tell it of a word in small letters
SAMPLE = 2000  # descriptions that are looked at for a word; a common word stands in a million
SHORTEST = 3  # letters; shorter words are articles and prepositions
# What an inflected word of English, Portuguese or Spanish ends in where another form of it ends otherwise:
# mug/mugs, scarf/scarves, wood/wooden, preto/pretas, azul/azuis, marrom/marrons, algodão/algodões, cortês/corteses.
_ENDINGS = "s es a as o os e en f fe ves y ies l is m ns ao oes aes"
ENDINGS = {"", *_ENDINGS.split()}
LONGEST_ENDING = max(map(len, ENDINGS))

NUMBER = r"\d+(?:[.,]\d+)*"
UNITS = {  # how many of the base unit one of them is
    "mm": ("mm", 1), "cm": ("mm", 10), "m": ("mm", 1000), "in": ("mm", 25.4), "inch": ("mm", 25.4), '"': ("mm", 25.4),
    "polegadas": ("mm", 25.4), "ft": ("mm", 304.8), "ml": ("ml", 1), "cl": ("ml", 10), "l": ("ml", 1000),
    "litre": ("ml", 1000), "liter": ("ml", 1000), "litro": ("ml", 1000), "mg": ("mg", 1), "g": ("mg", 1000),
    "kg": ("mg", 1e6), "oz": ("oz", 1), "lb": ("oz", 16), "w": ("w", 1), "kw": ("w", 1000), "v": ("v", 1),
    "mah": ("mah", 1), "mb": ("mb", 1), "gb": ("mb", 1000), "tb": ("mb", 1e6), "hz": ("hz", 1),
}  # fmt: skip
_UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
# A number, or several as in 40 x 30 cm, with the unit after it, or a word.
TOKEN = re.compile(
    rf"(?P<number>(?<![\w]){NUMBER}(?:\s?[x×]\s?{NUMBER})*)(?:\s?(?P<unit>{_UNIT})s?(?!\w))?|(?P<word>[^\W\d_][^\W_]*)",
    re.IGNORECASE,
)


class Claim(NamedTuple):
    text: str  # as it stands in the answer
    start: int


class Quantity(NamedTuple):
    """What a number with its unit comes to: `0,35 l` and `350 ml` are the same one."""

    values: tuple[float, ...]
    unit: str  # "" for a number alone


class Support(NamedTuple):
    """What the texts say that an answer may repeat."""

    words: frozenset[str]
    quantities: frozenset[Quantity]
    numbers: frozenset[float]  # each by itself, whatever its unit

    def has_word(self, word: str) -> bool:
        return any(same_word(word, other) for other in self.words)

    def has_quantity(self, quantity: Quantity) -> bool:
        if quantity in self.quantities:
            return True
        alone = [value for value in quantity.values if value in self.numbers]
        return not quantity.unit and len(alone) == len(quantity.values)


def support_of(texts: Iterable[str]) -> Support:
    words, quantities, numbers = set(), set(), set()
    for text in texts:
        for match in TOKEN.finditer(text):
            if match["number"]:
                quantities.add(quantity_of(match))
                numbers |= set(numbers_of(match["number"]))
            else:
                words.add(folded(match["word"]))
    return Support(frozenset(words), frozenset(quantities), frozenset(numbers))


def quantity_of(match: re.Match) -> Quantity:
    base, factor = UNITS.get(unaccented((match["unit"] or "").lower()), ("", 1))
    return Quantity(tuple(round(number * factor, 6) for number in numbers_of(match["number"])), base)


def numbers_of(text: str) -> list[float]:
    """`1.5`, `1,5` -> 1.5; `1.000`, `1,000` -> 1000: three digits behind a single mark are thousands."""
    found = []
    for number in re.findall(NUMBER, text):
        digits = re.split("[.,]", number)
        thousands = len(digits) > 1 and all(len(part) == 3 for part in digits[1:]) and digits[0] != "0"
        whole = "".join(digits) if thousands or len(digits) > 2 else ".".join(digits)
        found.append(float(whole))
    return found


def folded(word: str) -> str:
    """As the index sees a word: no capitals, no accents."""
    return unaccented(word.lower())


@lru_cache(maxsize=2**16)
def same_word(one: str, other: str) -> bool:
    """Whether two folded words are forms of one: they differ in an ending alone."""
    if one == other:
        return True
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    for begun in range(common, max(SHORTEST, common - LONGEST_ENDING) - 1, -1):
        if one[begun:] in ENDINGS and other[begun:] in ENDINGS:
            return True
    return False


class Claims:
    """The claims of answers, by the descriptions of a catalogue."""

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        self._counts: dict[str, tuple[int, int]] = {}

    def unsupported(self, answer: str, texts: Iterable[str]) -> list[Claim]:
        """The claims of `answer` that none of `texts`, the title first of all, supports; in their order."""
        support, found = support_of(texts), []
        for match in TOKEN.finditer(answer):
            if match["number"]:
                supported = support.has_quantity(quantity_of(match)) or not self._is_claim(match["number"], True)
            else:
                word = match["word"]
                names = word[0].isupper()
                supported = (
                    len(word) < SHORTEST or support.has_word(folded(word)) or not self._is_claim(folded(word), names)
                )
            if not supported:
                found.append(Claim(match[0], match.start()))
        return found

    def _is_claim(self, word: str, names: bool) -> bool:
        """`names`: it is a number or begins with a capital, and then needs no other descriptions to tell."""
        if word not in self._counts:
            self._counts[word] = self._catalogue.contents_and_titles(word, forms_of(word), SAMPLE)
        contents, titles = self._counts[word]
        return names if not contents else titles >= CLAIM * contents and (names or contents >= FEWEST)


def forms_of(word: str) -> list[str]:
    """A folded word in all its endings, whether they exist or not; of a number itself."""
    if not word.isalpha():
        return [word]
    longest = max(
        (e for e in ENDINGS if e and word.endswith(e) and len(word) - len(e) >= SHORTEST), key=len, default=""
    )
    return sorted({word, *(word[: len(word) - len(longest)] + ending for ending in ENDINGS)})


def repeated(title: str, answer: str) -> list[Claim]:
    """What `answer` says that `title` does too: quantities, and words but articles and prepositions; as it stands in
    `answer`."""
    support, found = support_of([title]), []
    for match in TOKEN.finditer(answer):
        if match["number"]:
            said = support.has_quantity(quantity_of(match))
        else:
            word = folded(match["word"])
            said = len(word) >= SHORTEST and word not in EMPTY_WORDS and support.has_word(word)
        if said:
            found.append(Claim(match[0], match.start()))
    return found


def marked(
    text: str, claims: Iterable[Claim], escaped: Callable[[str], str], tags: tuple[str, str] = ("<mark>", "</mark>")
) -> str:
    """`text`, `escaped` for the page that it goes on, with each of `claims` within `tags`. They do not overlap."""
    parts, done = [], 0
    for claim in claims:
        end = claim.start + len(claim.text)
        parts += [escaped(text[done : claim.start]), tags[0], escaped(text[claim.start : end]), tags[1]]
        done = end
    return "".join([*parts, escaped(text[done:])])
