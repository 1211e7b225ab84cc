"""Questions instead of titles: people ask "Fale sobre a caneca azul", and a model learns from what it is asked."""

import hashlib
import re
from collections.abc import Iterable, Iterator

from text.stream import Record

Forms = dict[str, tuple[str, ...]]  # by language; {title} stands in each

# How people ask for a product, besides by its bare title. The held-out form is never trained on: evaluate.py asks it,
# to see whether the model answers a question or knows a phrase.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "en": (
        "What is {title}?",
        "What kind of product is {title}?",
        "Tell me about {title}.",
        "Describe {title}",
        "What is a {title}?",
        "Tell me about the {title}",
    ),
    "pt": (
        "O que é {title}?",
        "Que tipo de produto é {title}?",
        "Fale sobre {title}.",
        "Descreva {title}",
        "Fale sobre a {title}",
        "Fale sobre o {title}",
    ),
}
HELD_OUT_QUESTION = {"en": "Could you explain to me what {title} is?", "pt": "Você pode me explicar o que é {title}?"}
COMMON_WORDS = {
    "en": re.compile(r"\b(the|and|of|with|for|is|to|in|it|this|that|a|an|your|you|from)\b", re.IGNORECASE),
    "pt": re.compile(r"\b(de|que|e|com|para|uma|um|os|as|é|não|do|da|em|no|na|ao|o|a|seu|sua)\b", re.IGNORECASE),
}


def language_of(text: str) -> str:
    """ "pt" or "en", whichever has more of its common words in `text`; "en" when that says nothing."""
    counts = {language: len(words.findall(text)) for language, words in COMMON_WORDS.items()}
    return "pt" if counts["pt"] > counts["en"] else "en"


def with_questions(
    steps: Iterable[list[Record]], forms: Forms, share: float, seed: int, first_step: int = 0
) -> Iterator[list[Record]]:
    """The same records, a `share` of them asked for by a question in their language instead of by the bare title.

    The draw is keyed by (seed, step, uid): what a record is asked does not depend on where a run was interrupted, or
    on which process computes it, and changes from epoch to epoch.
    """
    for step, records in enumerate(steps, start=first_step):
        yield [record | {"title": question_for(record, forms, share, f"{seed}:{step}")} for record in records]


def question_for(record: Record, forms: Forms, share: float, key: str) -> str:
    """The title of `record`, or a question about it in the language that it seems to be written in.

    In one question of two the title is in lower case: a catalogue writes "Caneca Azul", people type "a caneca azul".
    """
    digest = hashlib.blake2b(f"{key}:{record['uid']}".encode(), digest_size=16).digest()
    if int.from_bytes(digest[:8], "little") >= share * 2**64:
        return record["title"]
    known = of_its_language(record, forms, ("{title}",))
    form = known[int.from_bytes(digest[8:12], "little") % len(known)]
    return form.replace("{title}", record["title"] if digest[12] % 2 else record["title"].lower())


def of_its_language(record: Record, forms: dict, none):
    """What of `forms` is in the language of `record`; else what comes first, and `none` when nothing is there."""
    return forms.get(language_of(f"{record['title']} {record['content']}")) or next(iter(forms.values()), none)


def held_out_questions(records: list[Record], held_out: dict[str, str]) -> list[Record]:
    """The records, each asked for in the form of its language that is never trained on."""
    forms = (of_its_language(record, held_out, "{title}") for record in records)
    return [r | {"title": form.replace("{title}", r["title"])} for r, form in zip(records, forms, strict=True)]
