"""Several answers to each title, and of them the one that claims the least that nothing supports."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from catalogue.claims import Claim, Claims, repeated
from model.load import context_length
from model.sample import Answer, Sampling, write
from run.check import Check
from run.micro_batch import smaller_micro_batch
from text.answer import decode, stop_rule
from text.batch import Encoder

WAYS_OUT = "Close other programs, or take --device cpu."
APART = 100_000_007  # the streams of two candidates, so that no file of titles is as long; a seed has 32 bits


class Prompt(NamedTuple):
    """What an answer is written to."""

    ids: list[int]
    texts: list[str]  # that support the answer, the title first
    number: int  # of the answer: decides what is drawn
    drawn: bool = False  # no try at it is greedy: another answer is wanted than the one before


@dataclass(frozen=True)
class Written:
    """An answer as it is shown."""

    text: str
    stopped: bool  # by itself
    unsupported: list[Claim]  # [] where there is no catalogue to tell


NOTHING = Written("", False, [])


@dataclass
class _Work:
    """The tries at one prompt."""

    prompt: Prompt
    missing: int  # tries that are not finished
    best: tuple[tuple, Written] | None = None  # with its place in the order of `_judged`


@dataclass
class _Try(Answer):
    work: _Work | None = None


@dataclass(frozen=True)
class Writer:
    """Writes answers with `candidates` tries at each; without `claims` with a single one.

    With `claims` a word that nothing supports is taken back as soon as it stands there, unless it is `unchecked`.
    """

    model: PreTrainedModel
    encoder: Encoder
    sampling: Sampling
    claims: Claims | None
    candidates: int = 1
    rows: int = 32  # tries that are written at once
    unchecked: bool = False

    @property
    def tries(self) -> int:
        """At each answer."""
        return self.candidates if self.claims else 1

    @property
    def check(self) -> Check | None:
        template = self.encoder.template
        return Check(self.claims, self.encoder.tokenizer, template.stop) if self.claims and not self.unchecked else None

    @property
    def window(self) -> int:
        """Tokens that the model sees."""
        return context_length(self.model.config)

    def write(self, prompts: Iterable[Prompt]) -> Iterator[Written]:
        """The answers, in the order of `prompts`, which are taken as rows become free. A prompt that the model cannot
        see whole has none: `NOTHING`.

        The first candidate is the answer that there is without others; among several it is the greedy one.
        """
        prompts, order, waiting = iter(prompts), deque[_Work](), deque[_Try]()

        def next_try() -> _Try | None:
            while not waiting:
                if (prompt := next(prompts, None)) is None:
                    return None
                fits = len(prompt.ids) < self.window
                order.append(_Work(prompt, self.tries) if fits else _Work(prompt, 0, ((), NOTHING)))
                waiting.extend(self._tries(order[-1]) if fits else ())
            return waiting.popleft()

        for finished in self._finished(next_try, waiting):
            for answer in finished:
                self._take(answer)
            while order and not order[0].missing:
                yield order.popleft().best[1]
        yield from (work.best[1] for work in order)

    def _tries(self, work: _Work) -> list[_Try]:
        """Empty ones."""
        number, greedy = work.prompt.number, self.tries > 1 and not work.prompt.drawn
        return [_Try(work.prompt.ids, number + APART * k, greedy and k == 0, work=work) for k in range(self.tries)]

    def _finished(self, next_try, waiting: deque[_Try]) -> Iterator[list[_Try]]:
        """The tries as they end; where memory runs out, those in work begin again, half as many at once."""
        sampling = replace(self.sampling, greedy=False) if self.tries > 1 else self.sampling
        rule, rows = stop_rule(self.encoder.tokenizer, self.encoder.template.stop), self.rows
        check = self.check
        place = (lambda answer: check.first_unsupported(answer, answer.work.prompt.texts)) if check else None
        while True:
            in_work: dict[int, _Try] = {}

            def take() -> _Try | None:
                if answer := next_try():
                    in_work[id(answer)] = answer  # noqa: B023  they are one and the same
                return answer

            try:
                for answers in write(self.model, take, self.encoder.end_token, sampling, rows, rule, place):
                    finished = [answer for answer, ended in answers if ended]
                    for answer in finished:
                        del in_work[id(answer)]
                    yield finished
                return
            except RuntimeError as error:
                rows = smaller_micro_batch(error, rows, rows, ways_out=WAYS_OUT)
            torch.cuda.empty_cache()
            waiting.extendleft(_Try(a.prompt, a.number, a.greedy, work=a.work) for a in reversed(in_work.values()))

    def _take(self, answer: _Try) -> None:
        """Judge a try that has ended."""
        work, judged = answer.work, self._judged(answer, answer.work.prompt.texts)
        work.missing -= 1
        if work.best is None or judged[0] < work.best[0]:
            work.best = judged

    def _judged(self, answer: Answer, texts: list[str]) -> tuple[tuple, Written]:
        """First in order: the fewest unsupported claims, then the most facts of the title, then the likeliest."""
        text = decode(self.encoder.tokenizer, answer.ids, self.encoder.template.stop)
        unsupported = self.claims.unsupported(text, texts) if self.claims else []
        facts = len(repeated(text, texts[0])) if self.tries > 1 else 0  # of the title
        order = len(unsupported), -facts, not answer.stopped, -sum(answer.log_ps), answer.number
        return order, Written(text, answer.stopped, unsupported)
