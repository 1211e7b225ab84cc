"""What is measured on answers: pure functions over texts."""

import gzip
import json
import random
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from text.errors import DataError
from text.stream import Record


def distinct_n(texts: list[str], n: int = 2) -> float:
    """Different word n-grams / all word n-grams, over all texts (Li et al., 2016): low when all sound alike."""
    grams = [gram for text in texts for gram in word_ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_rate(texts: list[str], n: int = 4) -> float:
    """Share of the word n-grams of a text that stood in the same text before; counted over all texts together."""
    grams = [word_ngrams(text, n) for text in texts]
    total, fresh = sum(map(len, grams)), sum(map(len, map(set, grams)))
    return (total - fresh) / total if total else 0.0


def bootstrap(
    values: Sequence[float], products: Iterable[Hashable] | None = None, seed: int = 0, rounds: int = 1000
) -> tuple[float, float]:
    """The interval of 95 % of the mean of `values`, by drawing them again with replacement (Efron, 1979).

    `products`: of which each of them is. What is known of one product is drawn as a whole: its facts, or its answers to
    several questions, stand and fall together, and drawn one by one they would make the interval too narrow.
    """
    together: dict[Hashable, list[float]] = {}
    for value, product in zip(values, range(len(values)) if products is None else products, strict=True):
        together.setdefault(product, []).append(value)
    sums, draw = [(sum(own), len(own)) for own in together.values()], random.Random(seed)
    drawn = (draw.choices(sums, k=len(sums)) for _ in range(rounds))
    means = sorted(sum(s for s, _ in some) / sum(n for _, n in some) for some in drawn)
    return means[int(0.025 * rounds)], means[int(0.975 * rounds) - 1]


def word_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def contains(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words, upper and lower case alike."""
    return re.search(rf"(?<!\w){re.escape(normal(phrase))}(?!\w)", normal(text)) is not None


def normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def load_facts(path: Path) -> dict[str, dict]:
    """uid -> {"title", "facts": {name: value}}, as `examples/make_catalogue.py` writes it. Raises `DataError`."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return json.load(file)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"The facts in {path} cannot be read ({error}): examples/facts.json.gz shows the form."
        ) from None


def fact_rates(
    records: list[Record], answers: list[str], facts: dict[str, dict], training_titles: Iterable[str]
) -> dict[str, float | int | tuple[float, float]]:
    """How many of the titles' facts their answers repeat, and how many of the brands that training never saw.

    Only records whose uid and title stand in `facts` count; without any the result is empty.
    """
    known = [
        (record["uid"], facts[record["uid"]]["facts"], answer)
        for record, answer in zip(records, answers, strict=True)
        if record["uid"] in facts and normal(facts[record["uid"]]["title"]) == normal(record["title"])
    ]
    if not known:
        return {}
    seen_words = {word for title in training_titles for word in re.findall(r"\w+", normal(title))}
    products, hits = zip(*((u, contains(text, v)) for u, values, text in known for v in values.values()), strict=True)
    new_brands = [
        contains(answer, values["brand"])
        for _, values, answer in known
        if "brand" in values and not set(re.findall(r"\w+", normal(values["brand"]))) <= seen_words
    ]
    return {
        "fact_titles": len(known),
        "fact_rate": sum(hits) / len(hits),
        "fact_rate_interval": bootstrap(hits, products),
        "unseen_brands": len(new_brands),
        "unseen_brand_rate": sum(new_brands) / len(new_brands) if new_brands else 0.0,
    }
