"""Several answers to each title, and of them the one that claims the least that nothing supports."""

from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from catalogue.claims import Claim, Claims
from model.sample import Answer, Sampling, generate
from run.micro_batch import with_less_when_full
from text.answer import decode, stop_rule
from text.batch import Encoder

WAYS_OUT = "Close other programs, or take --device cpu."
MANY = 2**32  # titles: the streams of further candidates lie beyond those of any file


@dataclass(frozen=True)
class Written:
    """An answer as it is shown."""

    text: str
    stopped: bool  # by itself
    unsupported: list[Claim]  # [] where there is no catalogue to tell


@dataclass(frozen=True)
class Writer:
    """Writes answers with `candidates` tries at each; without `claims` with a single one."""

    model: PreTrainedModel
    encoder: Encoder
    sampling: Sampling
    claims: Claims | None
    candidates: int = 1
    at_once: int = 32

    def write(self, prompts: list[list[int]], texts: list[list[str]], numbers: list[int]) -> list[Written]:
        """An answer to each prompt. `texts`: what supports it, its title first; `numbers`: of the answers, which decide
        what is drawn.

        The first candidate is the answer that there is without others. Among several it is the greedy one.
        """
        tries = self.candidates if self.claims else 1
        end, rule = self.encoder.end_token, stop_rule(self.encoder.tokenizer, self.encoder.template.stop)
        asked = [prompt for prompt in prompts for _ in range(tries)]
        streams = [number + MANY * k for number in numbers for k in range(tries)]
        sampling = replace(self.sampling, greedy=False) if tries > 1 else self.sampling
        greedy = [k == 0 for _ in prompts for k in range(tries)] if tries > 1 else None

        def compute(at_once: int) -> list[Answer]:
            return generate(self.model, asked, end, sampling, at_once, rule, streams, greedy)

        answers = with_less_when_full(compute, self.at_once, 1, ways_out=WAYS_OUT)
        return [self._truest(answers[i * tries : (i + 1) * tries], texts[i]) for i in range(len(prompts))]

    def _truest(self, answers: list[Answer], texts: list[str]) -> Written:
        """The fewest unsupported claims, then the most facts of the title, then the likeliest."""
        best, key = None, None
        for answer in answers:
            text = decode(self.encoder.tokenizer, answer.ids, self.encoder.template.stop)
            unsupported = self.claims.unsupported(text, texts) if self.claims else []
            facts = self.claims.facts(texts[0], text) if self.claims and len(answers) > 1 else 0
            this = (len(unsupported), -facts, not answer.stopped, -answer.log_p)
            if key is None or this < key:
                best, key = Written(text, answer.stopped, unsupported), this
        return best
