"""Facts that an answer states and its title does not hold, where the facts of the products are known by name.

For the bundled catalogue `examples/facts.json.gz` says them. Words and quantities are read as in `claims.py`, but
nothing here knows its index or its threshold, so the one can be measured by the other.
"""

from collections.abc import Iterable

from catalogue.claims import SHORTEST, TOKEN, folded, quantity_of, support_of
from text.metrics import contains, normal


class KnownFacts:
    """What a title of these products can hold."""

    def __init__(self, facts: dict[str, dict], records: Iterable[dict[str, str]]):
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
            title = support_of([record["title"]])
            self.not_a_name |= words - brand
            said_otherwise |= {word for word in words if not title.has_word(word)}
        # "Cobre" is copper, and "it covers": a value that a description says where it is no fact cannot be counted.
        self.values = {value for value in self.values if not set(map(folded, value.split())) & said_otherwise}
        self.not_a_name -= self.brands

    def knows(self, record: dict[str, str]) -> bool:
        known = self.facts.get(record["uid"])
        return known is not None and normal(known["title"]) == normal(record["title"])

    def short_titles(self, records: list[dict[str, str]]) -> list[str]:
        """Titles as somebody in a hurry writes them, each once: kind; kind and colour; all but the brand."""
        short = {}
        for record in filter(self.knows, records):
            title, known = record["title"].casefold(), self.facts[record["uid"]]["facts"]
            in_order = sorted(known, key=lambda name: title.find(known[name].casefold().split()[0]))
            for names in ({"kind"}, {"kind", "colour"}, known.keys() - {"brand"}):
                short[" ".join(known[name] for name in in_order if name in names)] = None
        return [title for title in short if title not in {record["title"] for record in records}]

    def inventions(self, title: str, answer: str) -> list[str]:
        """Colours, materials, sizes, quantities and brands of `answer` that `title` has not."""
        here, said, found = support_of([title]), support_of([answer]), []
        for value in self.values:
            parts = list(TOKEN.finditer(value))
            numbers = [quantity_of(part) for part in parts if part["number"]]
            stated = all(n in said.quantities for n in numbers) if numbers else contains(answer, value)
            words = [folded(part["word"]) for part in parts if part["word"] and len(part["word"]) >= SHORTEST]
            held = all(here.has_quantity(n) for n in numbers) and (bool(numbers) or all(map(here.has_word, words)))
            if stated and not held:
                found.append(value)
        for match in TOKEN.finditer(answer):
            word = match["word"]
            if not word or not word[0].isupper() or len(word) < SHORTEST or here.has_word(folded(word)):
                continue
            if folded(word) in self.brands or folded(word) not in self.not_a_name:
                found.append(word)
        return found
