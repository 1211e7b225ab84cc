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
SHORTEST = 3  # letters of a word that is not all capitals; shorter ones are articles and prepositions
SHORTEST_STEM = 2  # pão/pães, bom/bons
# Endings that take each other's place: mug/mugs, glass/glasses, francês/francesa; preto/pretas; algodão/algodões;
# scarf/scarves; berry/berries; wood/wooden; azul/azuis; fácil/fáceis; marrom/marrons.
_ENDINGS = "- s es a as|o a os as|ao a oes aes aos as|f fe fs ves|y ies|- en|l is|il is eis|m ns"
ENDINGS = [tuple("" if ending == "-" else ending for ending in group.split()) for group in _ENDINGS.split("|")]
GENDER = ENDINGS[1]
# Stems whose -o and -a are two words: silver and plate, linen and line, wine and vine, pocket and bag, ...
TWO_WORDS = frozenset(["prat", "linh", "vinh", "bols", "cop", "mant", "banh"])

_UNITS: dict[str, dict[str, float]] = {  # base unit -> names of a unit, and how many of the base one is
    "mm": {
        "mm millimetre millimeter milímetro milimetro": 1, "cm centimetre centimeter centímetro centimetro": 10,
        "m metre meter metro": 1000, 'in inch inche " polegada': 25.4, "ft foot feet": 304.8,
    },
    "ml": {"ml millilitre milliliter mililitro": 1, "cl": 10, "l litre liter litro": 1000},
    "mg": {"mg": 1, "g gram gramme grama": 1000, "kg kilo kilogram quilo quilograma": 1e6},
    "oz": {"oz ounce": 1, "lb pound": 16},
    "mb": {"mb": 1, "gb": 1000, "tb": 1e6},
    "w": {"w watt": 1, "kw": 1000}, "v": {"v volt": 1}, "mah": {"mah": 1}, "hz": {"hz": 1},
}  # fmt: skip
UNITS = {
    name: (base, size) for base, units in _UNITS.items() for names, size in units.items() for name in names.split()
}
_COUNTS = {
    2: "two dois duas", 3: "three tres", 4: "four quatro", 5: "five cinco", 6: "six seis", 7: "seven sete",
    8: "eight oito", 9: "nine nove", 10: "ten dez", 12: "twelve doze",
}  # fmt: skip
COUNTS = {word: float(number) for number, words in _COUNTS.items() for word in words.split()}

NUMBER = r"\d+(?:[.,]\d+)*"
_UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
# A number, or several as in 40 x 30 cm, with the unit after it, or a word. "2 in 1" are no inches.
TOKEN = re.compile(
    rf"(?P<number>(?<!\w){NUMBER}(?:(?:\s?[x×]\s?|\s(?:by|por)\s){NUMBER})*)"
    rf"(?:[\s-]?(?P<unit>(?!in[\s-](?:a|an|one|the|\d))(?:{_UNIT}))s?(?!\w))?|(?P<word>[^\W\d_][^\W_]*)",
    re.IGNORECASE,
)


class Claim(NamedTuple):
    text: str  # as it stands in the answer
    start: int


class Measure(NamedTuple):
    """`0,35 l` and `350 ml` are the same one."""

    value: float
    unit: str  # the base unit; "" for a number alone


class Support(NamedTuple):
    """What texts say that an answer may repeat."""

    stems: frozenset[tuple[str, tuple[str, ...]]]
    measures: frozenset[Measure]
    numbers: frozenset[float]  # each as it is written, whatever its unit

    def has_word(self, word: str) -> bool:
        """Whether a folded word, or another form of it, is there."""
        return not self.stems.isdisjoint(stems_of(word)) or COUNTS.get(word) in self.numbers

    def has_quantity(self, measures: Iterable[Measure]) -> bool:
        """Of 40 x 30 cm each side counts by itself, in whatever order."""
        return all(m in self.measures or (not m.unit and m.value in self.numbers) for m in measures)

    def has(self, token: re.Match) -> bool:
        return self.has_quantity(measures_of(token)) if token["number"] else self.has_word(folded(token["word"]))


def support_of(texts: Iterable[str]) -> Support:
    return _support_of("\n".join(texts))


@lru_cache(maxsize=2**8)  # the answers that are in work are judged after every word
def _support_of(text: str) -> Support:
    stems, measures, numbers = set(), set(), set()
    for token in TOKEN.finditer(text):
        if token["number"]:
            measures.update(measures_of(token))
            numbers.update(numbers_of(token["number"]))
        else:
            word = folded(token["word"])
            stems.update(stems_of(word))
            numbers.update({COUNTS[word]} if word in COUNTS else ())
    return Support(frozenset(stems), frozenset(measures), frozenset(numbers))


def measures_of(token: re.Match) -> list[Measure]:
    base, size = UNITS.get((token["unit"] or "").lower(), ("", 1))
    return [Measure(round(number * size, 6), base) for number in numbers_of(token["number"])]


def numbers_of(text: str) -> list[float]:
    """`1.5`, `1,5` -> 1.5; `1.000`, `1,000` -> 1000; `1.299,90`, `1,299.90` -> 1299.9: three digits behind one kind of
    mark are thousands."""
    found = []
    for number in re.findall(NUMBER, text):
        *whole, last = re.split("[.,]", number)
        mixed = "." in number and "," in number
        decimal = mixed or (len(whole) == 1 and (len(last) != 3 or whole[0] == "0"))
        found.append(float("".join(whole) + (f".{last}" if decimal else last)))
    return found


def spellings(token: re.Match) -> list[str]:
    """How a quantity is written in the catalogue, by the words of its index: 350 ml, 350ml, 0.35 l, 0.35 litre ..."""
    numbers, found = numbers_of(token["number"]), [token[0]]
    base, size = UNITS.get((token["unit"] or "").lower(), ("", 1))
    units = {name: other for name, (its_base, other) in UNITS.items() if its_base == base and name.isalpha()}
    for name, other in units.items() if base else [("", 1)]:
        values = [round(number * size / other, 6) for number in numbers]
        if values != [round(value, 3) for value in values]:
            continue  # nobody writes 30 cm as 11.811024 inches, and each spelling is looked for
        for form in (".10g", ",.10g") if max(values) >= 1000 else (".10g",):
            for joined in {between.join(format(value, form) for value in values) for between in ("x", " x ")}:
                found += [f"{joined} {name}s", f"{joined} {name}", f"{joined}{name}"]
    return found + [word for word, number in COUNTS.items() if [number] == numbers and not base]


def is_telling(token: re.Match) -> bool:
    """Whether it can state something: articles and prepositions cannot; size M can."""
    word = token["word"]
    return not word or len(word) >= SHORTEST or (word.isupper() and folded(word) not in EMPTY_WORDS)


def folded(word: str) -> str:
    """As the index sees a word: no capitals, no accents."""
    return unaccented(word.lower())


@lru_cache(maxsize=2**16)
def stems_of(word: str) -> frozenset[tuple[str, tuple[str, ...]]]:
    """A folded word without each ending that it may have, and the endings that may be there instead."""
    stems: set[tuple[str, tuple[str, ...]]] = {(word, ("",))}
    for endings in ENDINGS if word.isalpha() else ():
        for stem in (word[: len(word) - len(ending)] for ending in endings if word.endswith(ending)):
            if len(stem) >= SHORTEST_STEM and not (endings is GENDER and stem in TWO_WORDS):
                stems.add((stem, endings))
    return frozenset(stems)


def forms_of(word: str) -> list[str]:
    """A folded word in all its endings, whether they exist or not."""
    return sorted({stem + ending for stem, endings in stems_of(word) for ending in endings})


class Claims:
    """The claims of answers, by the descriptions of a catalogue."""

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        self._counts: dict[str, tuple[int, int]] = {}

    def unsupported(self, answer: str, texts: Iterable[str]) -> list[Claim]:
        """The claims of `answer` that none of `texts`, the title first of all, supports; in their order."""
        support = support_of(texts)
        tokens = (token for token in TOKEN.finditer(answer) if is_telling(token) and not support.has(token))
        return [Claim(token[0], token.start()) for token in tokens if self._is_claim(token)]

    def _is_claim(self, token: re.Match) -> bool:
        """A number, or a name, that no description holds is one; any other word has to stand in FEWEST of them."""
        word = folded(token[0])
        if word not in self._counts:
            said = spellings(token) if token["number"] else [word]
            forms = said if token["number"] else forms_of(word)
            self._counts[word] = self._catalogue.contents_and_titles(said, forms, SAMPLE)
        contents, titles = self._counts[word]
        names = bool(token["number"]) or token[0][0].isupper() or word in COUNTS
        return names if not contents else titles >= CLAIM * contents and (names or contents >= FEWEST)


def repeated(title: str, answer: str) -> list[Claim]:
    """What `answer` says that `title` does too: quantities, and words but articles and prepositions; as it stands in
    `answer`."""
    support = support_of([title])
    tokens = (token for token in TOKEN.finditer(answer) if is_telling(token) and support.has(token))
    return [Claim(token[0], token.start()) for token in tokens if folded(token[0]) not in EMPTY_WORDS]


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
