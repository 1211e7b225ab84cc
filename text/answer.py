"""From tokens back to text: a whole answer, or one that is still being written."""

from collections.abc import Callable
from itertools import takewhile

from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()) -> str:
    """The text of an answer up to the first `stop` string, without the space that joined it to the prompt."""
    ends = stop_tokens(tokenizer, stop)
    return text_until(tokenizer, list(takewhile(lambda token: token not in ends, ids)), stop).strip()


def text_until(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


def stop_tokens(tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> set[int]:
    """The `stop` strings that this tokenizer has as special tokens: they never stand in decoded text."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content in stop}


def stop_rule(tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> Callable[[list[int]], bool] | None:
    """Tells from the tokens of an answer whether it has just come to a `stop` string; None without any."""
    if not stop:
        return None
    ends = stop_tokens(tokenizer, stop)
    tail = max(len(text.encode()) for text in stop) + 4  # a token is a byte at least

    def has_stopped(ids: list[int]) -> bool:
        text = tokenizer.decode(ids[-tail:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return ids[-1] in ends or any(mark in text for mark in stop)

    return has_stopped


class StableText:
    """Text to print while tokens arrive: only what no later token can change.

    A character like "ã" may be split over two tokens; decoding the first alone gives U+FFFD, so text that ends so is
    held back until the rest is there; so is what may become a `stop` string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()):
        self._tokenizer, self._stop, self._ids, self._printed = tokenizer, stop, [], 0

    def feed(self, token: int) -> str:
        """Take one token; returns what can be printed now."""
        self._ids.append(token)
        text = text_until(self._tokenizer, self._ids, self._stop).lstrip()
        if text.endswith("\ufffd"):
            return ""
        begun = max((n for stop in self._stop for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
        return self._after_printed(text[: len(text) - begun])

    def rest(self) -> str:
        """What was still held back when the tokens ended."""
        return self._after_printed(text_until(self._tokenizer, self._ids, self._stop).lstrip())

    def _after_printed(self, text: str) -> str:
        fresh = text[self._printed :]
        self._printed += len(fresh)
        return fresh


def before_and_after(titles: list[str], before: dict[str, str], after: dict[str, str]) -> str:
    """What the model answered to each title, before training and after it, for the screen."""
    return "".join(
        f"\n  {title}\n    before: {shortened(before.get(title, ''))}\n    after:  {shortened(after[title])}\n"
        for title in titles
    )


def shortened(answer: str, limit: int = 300) -> str:
    """One line of at most `limit` characters for the screen."""
    line = " ".join(answer.split())
    return line if len(line) <= limit else line[:limit] + " ..."
