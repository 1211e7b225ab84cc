"""Facts that an answer states and nothing gave it, where the facts of the products are known by name.

For the bundled catalogue `examples/facts.json.gz` says them. Words and quantities are read as in `claims.py`, but
nothing here knows its index or its threshold, so the one can be measured by the other.
"""

from collections.abc import Iterable

from catalogue.claims import TOKEN, folded, is_telling, measures_of, support_of
from catalogue.index import EMPTY_WORDS
from text.metrics import contains, normal
from text.stream import Record, given


class KnownFacts:
    """What a title of these products can hold."""

    def __init__(self, facts: dict[str, dict], records: Iterable[Record]):
        """`facts`: uid -> {"title", "facts": {name: value}}; `records`: those that were trained on, of which those that
        have facts are read."""
        self.facts = facts
        self.values = {
            value for known in facts.values() for name, value in known["facts"].items() if name not in ("brand", "kind")
        }
        self.brands = {folded(known["facts"]["brand"]) for known in facts.values() if "brand" in known["facts"]}
        self.not_a_name: set[str] = set()  # begins with a capital, or is a word of the language
        said_otherwise: set[str] = set()
        for record in records:
            if record["uid"] not in facts:
                continue
            brand = {folded(word) for word in facts[record["uid"]]["facts"].get("brand", "").split()}
            words = {folded(match["word"]) for match in TOKEN.finditer(record["content"]) if match["word"]}
            here = support_of([given(record)])
            self.not_a_name |= words - brand
            said_otherwise |= {word for word in words if not here.has_word(word)}
        # "Cobre" is copper, and "it covers": a value that a description says where it is no fact cannot be counted.
        # Of "size M" one word is said anywhere, and the other tells.
        self.values = {value for value in self.values if not set(map(folded, value.split())) <= said_otherwise}
        self.not_a_name -= self.brands

    def knows(self, record: Record) -> bool:
        known = self.facts.get(record["uid"])
        return known is not None and normal(known["title"]) == normal(record["title"])

    def facts_said(self, record: Record, answer: str) -> list[bool]:
        """Of each known fact of the product whether the answer says it."""
        return [contains(answer, value) for value in self.facts[record["uid"]]["facts"].values()]

    def cut_down(self, records: list[Record]) -> list[Record]:
        """The title is the kind alone, and all other facts are attributes."""
        cut = []
        for record in filter(self.knows, records):
            others = dict(self.facts[record["uid"]]["facts"])
            if kind := others.pop("kind", None):
                cut.append(record | {"title": kind, "attributes": others})
        return cut

    def short_titles(self, records: list[Record]) -> list[Record]:
        """As somebody in a hurry writes them, each once: kind; kind and colour; all but the brand. The uid
        is that of the first product that it may be."""
        short: dict[str, str] = {}
        for record in filter(self.knows, records):
            title = record["title"]
            known = {k: v for k, v in self.facts[record["uid"]]["facts"].items() if contains(title, v)}
            in_order = sorted(known, key=lambda name: title.casefold().find(known[name].casefold().split()[0]))
            for names in ({"kind"}, {"kind", "colour"}, known.keys() - {"brand"}):
                short.setdefault(" ".join(known[name] for name in in_order if name in names), record["uid"])
        titles = {record["title"] for record in records}
        return [{"uid": uid, "title": title} for title, uid in short.items() if title not in titles]

    def inventions(self, record: Record, answer: str) -> list[str]:
        """Colours, materials, sizes, quantities and brands of `answer` that neither title nor attributes have."""
        here, said, found = support_of([given(record)]), support_of([answer]), []
        for value in self.values:
            parts = list(TOKEN.finditer(value))
            measures = [measure for part in parts if part["number"] for measure in measures_of(part)]
            stated = said.measures.issuperset(measures) if measures else contains(answer, value)
            words = {folded(part["word"]) for part in parts if part["word"]} - EMPTY_WORDS
            if stated and not (here.has_quantity(measures) if measures else all(map(here.has_word, words))):
                found.append(value)
        for token in TOKEN.finditer(answer):
            word = token["word"]
            if not word or not word[0].isupper() or not is_telling(token) or here.has_word(folded(word)):
                continue
            if folded(word) in self.brands or folded(word) not in self.not_a_name:
                found.append(word)
        return found
