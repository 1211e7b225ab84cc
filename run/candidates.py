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
from run.micro_batch import smaller_micro_batch
from text.answer import decode, stop_rule
from text.batch import Encoder

WAYS_OUT = "Close other programs, or take --device cpu."
ROUNDS = 8
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
    turn: int = 0  # of ROUNDS
    missing: int = 0  # tries of this turn that are not finished
    best: tuple[tuple, Written] | None = None  # with its place in the order of `_judged`
    is_done: bool = False


@dataclass
class _Try(Answer):
    work: _Work | None = None


@dataclass(frozen=True)
class Writer:
    """Writes answers with `candidates` tries at each; without `claims` with a single one."""

    model: PreTrainedModel
    encoder: Encoder
    sampling: Sampling
    claims: Claims | None
    candidates: int = 1
    rows: int = 32  # tries that are written at once

    @property
    def tries(self) -> int:
        """At each answer."""
        return self.candidates if self.claims else 1

    @property
    def window(self) -> int:
        """Tokens that the model sees."""
        return context_length(self.model.config)

    def write(self, prompts: Iterable[Prompt]) -> Iterator[Written]:
        """The answers, in the order of `prompts`, which are taken as rows become free. A prompt that the model cannot
        see whole has none: `NOTHING`.

        The first candidate is the answer that there is without others; among several it is the greedy one. Where all of
        them state what nothing supports, as many are drawn again, `ROUNDS` times in all.
        """
        prompts, order, waiting = iter(prompts), deque[_Work](), deque[_Try]()

        def next_try() -> _Try | None:
            while not waiting:
                if (prompt := next(prompts, None)) is None:
                    return None
                order.append(_Work(prompt))
                if len(prompt.ids) < self.window:
                    waiting.extend(self._tries(order[-1]))
                else:
                    order[-1].best, order[-1].is_done = ((), NOTHING), True
            return waiting.popleft()

        for finished in self._finished(next_try, waiting):
            for answer in finished:
                if self._takes(answer):
                    waiting.extendleft(self._tries(answer.work))
            while order and order[0].is_done:
                yield order.popleft().best[1]
        yield from (work.best[1] for work in order)

    def _tries(self, work: _Work) -> list[_Try]:
        """Those of its next turn, empty."""
        ks = range(work.turn * self.tries, (work.turn + 1) * self.tries)
        work.turn, work.missing = work.turn + 1, self.tries
        number, greedy = work.prompt.number, self.tries > 1 and not work.prompt.drawn
        return [_Try(work.prompt.ids, number + APART * k, greedy and k == 0, work=work) for k in ks]

    def _finished(self, next_try, waiting: deque[_Try]) -> Iterator[list[_Try]]:
        """The tries as they end; where memory runs out, those in work begin again, half as many at once."""
        sampling = replace(self.sampling, greedy=False) if self.tries > 1 else self.sampling
        rule, rows = stop_rule(self.encoder.tokenizer, self.encoder.template.stop), self.rows
        while True:
            in_work: dict[int, _Try] = {}

            def take() -> _Try | None:
                if answer := next_try():
                    in_work[id(answer)] = answer  # noqa: B023  they are one and the same
                return answer

            try:
                for answers in write(self.model, take, self.encoder.end_token, sampling, rows, rule):
                    finished = [answer for answer, ended in answers if ended]
                    for answer in finished:
                        del in_work[id(answer)]
                    yield finished
                return
            except RuntimeError as error:
                rows = smaller_micro_batch(error, rows, rows, ways_out=WAYS_OUT)
            torch.cuda.empty_cache()
            waiting.extendleft(_Try(a.prompt, a.number, a.greedy, work=a.work) for a in reversed(in_work.values()))

    def _takes(self, answer: _Try) -> bool:
        """Judge a try that has ended. Returns whether its prompt needs another turn."""
        work, judged = answer.work, self._judged(answer, answer.work.prompt.texts)
        work.missing -= 1
        if work.best is None or judged[0] < work.best[0]:
            work.best = judged
        again = not work.missing and self.tries > 1 and work.best[1].unsupported and work.turn < ROUNDS
        work.is_done = not work.missing and not again
        return bool(again)

    def _judged(self, answer: Answer, texts: list[str]) -> tuple[tuple, Written]:
        """First in order: the fewest unsupported claims, then the most facts of the title, then the likeliest."""
        text = decode(self.encoder.tokenizer, answer.ids, self.encoder.template.stop)
        unsupported = self.claims.unsupported(text, texts) if self.claims else []
        facts = len(repeated(text, texts[0])) if self.tries > 1 else 0  # of the title
        order = len(unsupported), -facts, not answer.stopped, -answer.log_p, answer.number
        return order, Written(text, answer.stopped, unsupported)
