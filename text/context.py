"""A text before the prompt: what `generate.py --grounded` gives a model, given to it in training too."""

import hashlib
import random
from collections.abc import Iterable, Iterator
from itertools import pairwise

from text.batch import SENTENCE_END
from text.stream import Record, Records


def with_contexts(
    steps: Iterable[list[Record]], others: Records, share: float, seed: int, first_step: int = 0
) -> Iterator[list[Record]]:
    """The same records, a `share` of them with a text before the prompt, as `"context"`: to one of two its own
    description, shortened, to the others that of another product of `others`. So a model learns to take from the text
    what belongs to the title, and nothing else.

    The draw is keyed by (seed, step, uid), as for questions.
    """
    for step, records in enumerate(steps, start=first_step):
        yield [with_context(record, others, share, f"context:{seed}:{step}") for record in records]


def with_context(record: Record, others: Records, share: float, key: str) -> Record:
    """`record`, perhaps with a context. What its own description says already is not given as an attribute too."""
    digest = hashlib.blake2b(f"{key}:{record['uid']}".encode(), digest_size=8).digest()
    draw = random.Random(int.from_bytes(digest, "little"))
    if draw.random() >= share:
        return record
    if draw.random() < 0.5:
        return record | {"context": others[draw.randrange(len(others))]["content"]}
    text = shortened(record["content"], draw)
    attributes = {name: value for name, value in record.get("attributes", {}).items() if value not in text}
    return record | {"context": text, "attributes": attributes}


def shortened(text: str, draw: random.Random) -> str:
    """`text` without one of its sentences, if it has several."""
    ends = [match.end() for match in SENTENCE_END.finditer(text.rstrip())]
    sentences = [text[start:end] for start, end in pairwise(sorted({0, *ends, len(text.rstrip())}))]
    if len(sentences) > 1:
        del sentences[draw.randrange(len(sentences))]
    return "".join(sentences).strip()
