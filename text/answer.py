"""From tokens back to text: a whole answer, or one that is still being written."""

from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of an answer, without the space that joined it to the prompt."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


class StableText:
    """Text to print while tokens arrive: only what no later token can change.

    A character like "ã" may be split over two tokens; decoding the first alone gives U+FFFD, so text that ends so is
    held back until the rest is there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer, self._ids, self._printed = tokenizer, [], ""

    def feed(self, token: int) -> str:
        """Take one token; returns what can be printed now."""
        self._ids.append(token)
        text = self._text()
        return "" if text.endswith("\ufffd") else self._advance(text)

    def rest(self) -> str:
        """What was still held back when the tokens ended."""
        return self._advance(self._text())

    def _text(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.lstrip()

    def _advance(self, text: str) -> str:
        fresh, self._printed = text[len(self._printed) :], text
        return fresh


def shortened(answer: str, limit: int = 300) -> str:
    """One line of at most `limit` characters for the screen."""
    line = " ".join(answer.split())
    return line if len(line) <= limit else line[:limit] + " ..."
