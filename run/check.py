"""While an answer is written: a word that nothing supports is taken back, and another one takes its place.

A word is judged as soon as two more stand behind it, since "350" and "ml" are one claim. Where it may not stand, the
answer goes on from before it without the token that began it (`model/sample.py: take_back`); the keys and values of
what stands already stay, so that a word taken back costs no more than its own tokens.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from catalogue.claims import Claims
from model.sample import PATIENCE, Answer
from text.answer import decode

MOST = 12  # words of one answer that are taken back; what else it invents is marked
LOOKED_AT = 32  # tokens at the end, which hold the words that were written last
UNFINISHED = 2  # words at the end that are not judged yet


@dataclass(frozen=True)
class Check:
    """Tells where an answer states what nothing supports."""

    claims: Claims
    tokenizer: PreTrainedTokenizerBase
    stop: tuple[str, ...] = ()  # strings that end an answer

    def first_unsupported(self, answer: Answer, texts: list[str]) -> int | None:
        """The place of the token with which the first unsupported claim begins, of those that end among the last
        tokens; None without any. `texts` support claims, the title first of all."""
        if answer.taken_back >= MOST:
            return None
        begin = max(0, len(answer.ids) - LOOKED_AT)
        text = self._decode(answer.ids[begin:])
        whole = text.find(" ") + 1 if begin else 0  # where the first whole word begins
        seen, judged = text, text
        if not answer.stopped:  # the last word may still grow; the one before it may be a unit, or have one behind it
            seen, judged = without_last_words(text, 1), without_last_words(text, UNFINISHED)
        found = self.claims.unsupported(seen[whole:], texts)
        if not found or (start := whole + found[0].start) >= len(judged):
            return None
        return next(i for i in range(begin, len(answer.ids)) if len(self._decode(answer.ids[begin : i + 1])) > start)

    def settled(self, answer: Answer) -> int:
        """How many of the tokens stay whatever comes: a claim that is taken back may take a token before it along,
        once for each PATIENCE words."""
        if answer.stopped:
            return len(answer.ids)
        kept = len(without_last_words(self._decode(answer.ids), UNFINISHED + MOST // PATIENCE))
        return next((i for i in range(len(answer.ids)) if len(self._decode(answer.ids[: i + 1])) > kept), 0)

    def _decode(self, ids: list[int]) -> str:
        return decode(self.tokenizer, ids, self.stop)


def without_last_words(text: str, count: int) -> str:
    """`text` without its last words, however they are set apart; "" if it has no more."""
    words = text.rsplit(maxsplit=count)
    return words[0] if len(words) > count else ""
