"""Looking at the model during and after training: each rank does its share, and the loop goes on as if nothing were."""

from collections.abc import Callable

from transformers import PreTrainedModel

from model.attention import use_flat_attention
from model.load import context_length
from model.loss import mean_loss
from model.sample import Sampling, generate
from run.files import read_json
from run.log import Stopwatch
from run.micro_batch import with_less_when_full
from run.session import Session
from text.answer import before_and_after, decode, stop_rule
from text.batch import Encoder, flat_batches
from text.stream import RecordFile

TITLES = 3


class Validator:
    """The mean loss of the first `--max_eval_samples` held-out records."""

    def __init__(
        self,
        session: Session,
        model: PreTrainedModel,
        loss_fn: Callable,
        val_file: RecordFile,
        encoder: Encoder,
        stopwatch: Stopwatch,
    ):
        self.session, self.model, self.loss_fn, self.stopwatch = session, model, loss_fn, stopwatch
        records = [val_file[i] for i in range(min(len(val_file), session.config.max_eval_samples))]
        self.rows = session.ranks.share(encoder.rows(records))
        self.longest = max((len(row.ids) for row in self.rows), default=1)

    def loss(self, micro_batch_tokens: int) -> float:
        """Collective. In nats per supervised token; in smaller pieces where memory runs out."""
        ranks = self.session.ranks
        self.model.eval()
        with self.stopwatch.paused():
            mine = with_less_when_full(self._own_mean, micro_batch_tokens, self.longest, ranks.sharded)
            mean = ranks.mean(*mine)
        self.model.train()
        return mean

    def _own_mean(self, tokens: int) -> tuple[float, int]:
        """Of this rank's records, and the number of its tokens."""
        batches = flat_batches(self.rows, tokens)
        with self.session.machine.autocast():
            return mean_loss(self.model, batches, self.loss_fn), sum(len(batch.targets) for batch in batches)


class Samples:
    """The greedy answers to three held-out titles, before training and after it."""

    def __init__(self, session: Session, model: PreTrainedModel, encoder: Encoder, test_file: RecordFile):
        self.session, self.model, self.encoder = session, model, encoder
        shown = min(TITLES, len(test_file))
        titles = [encoder.template.asked(test_file[len(test_file) * i // shown]) for i in range(shown)]
        window = context_length(model.config)
        self.titles = [t for t, p in zip(titles, encoder.prompts(titles), strict=True) if len(p) < window]

    def answers(self, max_new_tokens: int = Sampling.max_new_tokens) -> dict[str, str]:
        """Collective. What the model answers now, by title; it is in eval mode afterwards."""
        ranks, tokenizer, stop = self.session.ranks, self.encoder.tokenizer, self.encoder.template.stop
        self.model.eval()
        prompts, rule = ranks.share(self.encoder.prompts(self.titles)), stop_rule(tokenizer, stop)
        with self.session.machine.autocast():
            sampling = Sampling(max_new_tokens, greedy=True)
            mine = generate(self.model, prompts, self.encoder.end_token, sampling, stop_rule=rule)
        use_flat_attention(self.model)
        texts = ranks.collect([decode(tokenizer, answer.ids, stop) for answer in mine])
        return dict(zip(self.titles, texts, strict=True))

    def before_and_after(self, after: dict[str, str]) -> str:
        """For the screen; "" without titles. The answers from before are the ones that the run's folder holds."""
        before = read_json(self.session.folder / "before.json")
        before = {title: str(text) for title, text in before.items()} if isinstance(before, dict) else {}
        heading = " Titles of the test split:\n" if self.titles else ""
        return heading + before_and_after(self.titles, before, after)
