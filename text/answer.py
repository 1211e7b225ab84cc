"""From tokens back to text: a whole answer, or one that is still being written."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: tuple[str, ...] = ()) -> str:
    """The text of an answer up to the first `stop` string, without the space that joined it to the prompt."""
    ends = stop_tokens(tokenizer, stop)
    ids = ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text[: stop_place(text, stop)].strip()


def stop_tokens(tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> set[int]:
    """The `stop` strings that this tokenizer has as special tokens: they never stand in decoded text."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {special[text] for text in stop if text in special}


def stop_place(text: str, stop: tuple[str, ...]) -> int:
    """Where the first of the `stop` strings begins, else the length of `text`."""
    return min((place for place in map(text.find, stop) if place >= 0), default=len(text))


def stop_rule(tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> Callable[[list[int]], bool] | None:
    """Tells from the tokens of an answer whether it has just come to a `stop` string; None without any."""
    if not stop:
        return None
    ends = stop_tokens(tokenizer, stop)
    tail = max(len(text.encode()) for text in stop) + 4  # a token is a byte at least

    def has_stopped(ids: list[int]) -> bool:
        text = tokenizer.decode(ids[-tail:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return ids[-1] in ends or stop_place(text, stop) < len(text)

    return has_stopped


class StableText:
    """Text to print while tokens arrive: only what no later token can change.

    A character like "ã" may be split over two tokens; decoding the first alone gives U+FFFD, so text that ends so is
    held back until the rest is there; so is what may become a `stop` string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()):
        self._tokenizer, self._stop, self._ids, self._printed = tokenizer, stop, [], ""

    def feed(self, token: int) -> str:
        """Take one token; returns what can be printed now."""
        self._ids.append(token)
        text = self._text()
        if text.endswith("\ufffd"):
            return ""
        begun = max((n for stop in self._stop for n in range(len(stop)) if text.endswith(stop[:n])), default=0)
        return self._advance(text[: len(text) - begun])

    def rest(self) -> str:
        """What was still held back when the tokens ended."""
        return self._advance(self._text())

    def _text(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text[: stop_place(text, self._stop)].lstrip()

    def _advance(self, text: str) -> str:
        if len(text) <= len(self._printed):
            return ""
        fresh, self._printed = text[len(self._printed) :], text
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
