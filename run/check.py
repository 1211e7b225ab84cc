"""While an answer is written: a word that nothing supports is taken back, and another one takes its place.

A word is judged as soon as two more stand behind it, since "350" and "ml" are one claim. Where it may not stand, the
answer goes on from before it without the token that began it (`model/sample.py: take_back`); the keys and values of
what stands already stay, so that a word taken back costs no more than its own tokens. What was judged once stays, and
so do the last two words of an answer that its length ended.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from catalogue.claims import Claims
from model.sample import PATIENCE, Answer
from text.answer import decode

MOST = 12  # words of one answer that are taken back; what else it invents is marked
UNFINISHED = 2  # words at the end that are not judged yet
RECENT = 8  # words at the end, in which a claim of up to six begins when it is judged: "40 x 30 x 20 cm"


@dataclass(frozen=True)
class Check:
    """Tells where an answer states what nothing supports."""

    claims: Claims
    tokenizer: PreTrainedTokenizerBase
    stop: tuple[str, ...] = ()  # strings that end an answer

    def first_unsupported(self, answer: Answer, texts: list[str]) -> int | None:
        """The place of the token with which the first unsupported claim begins, of those that begin in the last
        words; None without any. `texts` support claims, the title first of all."""
        if answer.taken_back >= MOST:
            return None
        text = self._decode(answer.ids)
        seen, judged = text, text
        if not answer.stopped:  # the last word may still grow; the one before it may be a unit, or have one behind it
            seen, judged = without_last_words(text, 1), without_last_words(text, UNFINISHED)
        begin = len(without_last_words(text, 2 * RECENT))  # words before the recent ones say what these mean
        found = (begin + claim.start for claim in self.claims.unsupported(seen[begin:], texts))
        recent = range(len(without_last_words(text, RECENT)), len(judged))
        start = next((start for start in found if start in recent), None)
        return None if start is None else self._token_at(answer.ids, start)

    def settled(self, answer: Answer) -> int:
        """How many of the tokens stay whatever comes: a claim that is taken back may take a token before it along,
        once for each PATIENCE words."""
        if answer.stopped:
            return len(answer.ids)
        kept = without_last_words(self._decode(answer.ids), RECENT + MOST // PATIENCE)
        return self._token_at(answer.ids, len(kept)) if kept else 0

    def _token_at(self, ids: list[int], character: int) -> int:
        """The place of the token that writes this character of the text. Looked for from the end, where it is near."""
        place = len(ids) - 1
        while place and len(self._decode(ids[:place])) > character:
            place -= 1
        return place

    def _decode(self, ids: list[int]) -> str:
        return decode(self.tokenizer, ids, self.stop)


def without_last_words(text: str, count: int) -> str:
    """`text` without its last words, however they are set apart; "" if it has no more."""
    words = text.rsplit(maxsplit=count)
    return words[0] if len(words) > count else ""
