"""Several answers to each title, and of them the one that claims the least that nothing supports."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from catalogue.claims import Claim, Claims
from model.load import context_length
from model.sample import Answer, Sampling, generate
from run.micro_batch import with_less_when_full
from text.answer import decode, stop_rule
from text.batch import Encoder

WAYS_OUT = "Close other programs, or take --device cpu."
ROUNDS = 8
APART = 100_000_007  # the streams of two candidates, so that no file of titles is as long; a seed has 32 bits


@dataclass(frozen=True)
class Written:
    """An answer as it is shown."""

    text: str
    stopped: bool  # by itself
    unsupported: list[Claim]  # [] where there is no catalogue to tell


NOTHING = Written("", False, [])


@dataclass(frozen=True)
class Writer:
    """Writes answers with `candidates` tries at each; without `claims` with a single one."""

    model: PreTrainedModel
    encoder: Encoder
    sampling: Sampling
    claims: Claims | None
    candidates: int = 1
    at_once: int = 32

    @property
    def tries(self) -> int:
        """At each answer."""
        return self.candidates if self.claims else 1

    @property
    def window(self) -> int:
        """Tokens that the model sees."""
        return context_length(self.model.config)

    def write(self, prompts: list[list[int]], texts: list[list[str]], numbers: list[int]) -> list[Written]:
        """An answer to each prompt. `texts`: what supports it, its title first; `numbers`: of the answers, which decide
        what is drawn. A prompt that the model cannot see whole has none: `NOTHING`.

        The first candidate is the answer that there is without others; among several it is the greedy one. Where all of
        them state what nothing supports, as many are drawn again, `ROUNDS` times in all.
        """
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < self.window]
        if len(fitting) < len(prompts):
            some = self.write([prompts[i] for i in fitting], [texts[i] for i in fitting], [numbers[i] for i in fitting])
            written = dict(zip(fitting, some, strict=True))
            return [written.get(i, NOTHING) for i in range(len(prompts))]
        best: list[tuple[tuple, Written] | None] = [None] * len(prompts)
        for turn in range(ROUNDS if self.tries > 1 else 1):
            again = [i for i, found in enumerate(best) if found is None or found[1].unsupported]
            drawn = self._draw([prompts[i] for i in again], [numbers[i] for i in again], turn)
            for i, answers in zip(again, drawn, strict=True):
                judged = [self._judged(answer, texts[i]) for answer in answers]
                best[i] = min([*judged, best[i]] if best[i] else judged, key=lambda pair: pair[0])
        return [written for _, written in best]

    def _draw(self, prompts: list[list[int]], numbers: list[int], turn: int) -> Iterator[list[Answer]]:
        """The candidates of each prompt, all in one batch."""
        tries, stop = self.tries, self.encoder.template.stop
        sampling = replace(self.sampling, greedy=False) if tries > 1 else self.sampling
        asked, turns = [prompt for prompt in prompts for _ in range(tries)], range(turn * tries, (turn + 1) * tries)
        streams = [(number + APART * k) for number in numbers for k in turns]
        greedy = [k == 0 for _ in prompts for k in turns] if tries > 1 else None
        end, rule = self.encoder.end_token, stop_rule(self.encoder.tokenizer, stop)

        def compute(at_once: int) -> list[Answer]:
            return generate(self.model, asked, end, sampling, at_once, rule, streams, greedy)

        answers = with_less_when_full(compute, self.at_once, 1, ways_out=WAYS_OUT)
        return (answers[first : first + tries] for first in range(0, len(answers), tries))

    def _judged(self, answer: Answer, texts: list[str]) -> tuple[tuple, Written]:
        """First in order: the fewest unsupported claims, then the most facts of the title, then the likeliest."""
        text = decode(self.encoder.tokenizer, answer.ids, self.encoder.template.stop)
        unsupported = self.claims.unsupported(text, texts) if self.claims else []
        facts = self.claims.facts(texts[0], text) if self.tries > 1 else 0
        order = len(unsupported), -facts, not answer.stopped, -answer.log_p
        return order, Written(text, answer.stopped, unsupported)
