"""From records to flat micro-batches: tokens end to end, no padding, no packing, no mask."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from text.stream import Record
from text.template import Template, context_for, opening_of, special_tokens

# An end of sentence: its mark, closing quotes or brackets, then white space or the end of the text.
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*(?=\s|$)")


@dataclass(frozen=True)
class Row:
    """One record as tokens: the prompt, the answer and, unless the record was cut, the end token."""

    uid: str
    ids: list[int]
    first_supervised: int  # tokens from here on are supervised
    characters: int = 0  # of the answer's own text, as far as it is in here: the same unit for every tokenizer


@dataclass(frozen=True)
class FlatBatch:
    """The rows of one micro-batch, end to end."""

    ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64, restarting at 0 with each record
    slot: Tensor  # (T,) int64: the place of each token where the records stand one below the other
    lengths: list[int]  # n, summing to T
    rows: Tensor  # (S,) int64: the places whose next token is supervised
    targets: Tensor  # (S,) int64: those tokens

    def to(self, device: torch.device) -> "FlatBatch":
        """Copied while the host goes on, if it is `pinned`."""
        return self if device.type == "cpu" else self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> "FlatBatch":
        """In memory of the host that a GPU can copy from by itself. It takes a while, so it is done ahead."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "FlatBatch":
        tensors = {name: change(value) for name, value in vars(self).items() if name != "lengths"}
        return replace(self, **tensors)  # type: ignore[arg-type]  # `lengths` is not among them


@dataclass(frozen=True)
class StepBatch:
    """All that one optimizer step consumes, laid out for micro-batches of `token_budget` tokens."""

    rows: list[Row]  # of this rank
    token_budget: int
    prepared: list[FlatBatch]
    uids: list[str]  # of all ranks
    supervised: int  # of all ranks: what the summed loss is divided by

    def micro_batches(self, token_budget: int) -> list[FlatBatch]:
        """As prepared, or laid out again when the budget has become smaller since."""
        return self.prepared if token_budget == self.token_budget else flat_batches(self.rows, token_budget)


class Encoder:
    """Records and titles to tokens, with one tokenizer and one template."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int, loss_on: str = "answer"
    ):
        """`max_length` in tokens; `loss_on`: "answer", or "all" to supervise the prompt too."""
        self.tokenizer, self.template, self.max_length, self.loss_on = tokenizer, template, max_length, loss_on
        self._opening = opening_of(tokenizer)  # a tokenizer that opens every text with a BOS token gets exactly one
        self._special = special_tokens(tokenizer)
        self._marks = any(token in template.prompt for token in self._special)
        # A tokenizer of the Llama kind puts a space before every text. An answer goes on after a prompt, so it is
        # encoded behind a line break whose tokens are then taken off.
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids[0])
        self._guard = "\n" if first.startswith("\u2581") else ""
        self._guard_length = len(self._encode([self._guard]).input_ids[0]) if self._guard else 0

    @property
    def end_token(self) -> int:
        return self.tokenizer.eos_token_id

    def _encode(self, texts: list[str], **options):
        # Text from the data is never parsed for special tokens: "<|endoftext|>" in a title is plain characters.
        return self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, **options
        )

    def prompts(self, titles: list[str], contexts: list[str] | None = None, window: int = 0) -> list[list[int]]:
        """The tokens that stand before the answer: the same call serves training and generation.

        `contexts`: for each title a text to answer from, put before the prompt, or "". It is cut so that at least half
        of what the prompt leaves of the model's `window` (tokens) remains for the answer.
        """
        if not titles:
            return []
        if self._marks:
            prompts = [self._with_marks(title) for title in titles]
        else:
            prompts = self._encode([self.template.prompt_for(title) for title in titles]).input_ids
        if contexts and any(contexts):
            for i, context in enumerate(self._encode([context_for(text) for text in contexts]).input_ids):
                room = max(0, window - len(self._opening) - len(prompts[i])) // 2
                prompts[i] = self._opening + context[:room] + prompts[i]
        return [ids if ids[: len(self._opening)] == self._opening else self._opening + ids for ids in prompts]

    def _with_marks(self, title: str) -> list[int]:
        """A prompt with special tokens in its template: ids where the template has them, text where the title has."""
        if not any(token in title for token in self._special):
            return self.tokenizer(self.template.prompt_for(title), add_special_tokens=False).input_ids
        ids, mark = [], re.compile("(" + "|".join(map(re.escape, self._special)) + ")")
        before, after = self.template.prompt.split("{title}")
        *left, before = mark.split(before)
        after, *right = mark.split(after)
        for number, piece in enumerate((*left, before + title + after, *right)):
            if number % 2:  # split() puts what matched at the odd places
                ids.append(self.tokenizer.convert_tokens_to_ids(piece))
            elif piece:
                ids += self._encode([piece]).input_ids[0]
        return ids

    def _answers(self, texts: list[str], **options):
        """What `_encode` returns, each text as it is encoded in the middle of another."""
        encoded = self._encode([self._guard + text for text in texts], **options)
        return {key: [row[self._guard_length :] for row in rows] for key, rows in encoded.items()}

    def rows(self, records: list[Record]) -> list[Row]:
        """One `Row` a record, in order, none longer than `max_length`."""
        if not records:
            return []
        contexts = [record.get("context", "") for record in records]
        prompts = self.prompts([self.template.asked(record) for record in records], contexts, self.max_length)
        texts = [self.template.answer_for(record["content"]) for record in records]
        answers, rows = self._answers(texts)["input_ids"], []
        for record, prompt, text, answer in zip(records, prompts, texts, answers, strict=True):
            room = self.max_length - len(prompt)
            if len(answer) + 1 <= room:
                ids, end = prompt + answer + [self.end_token], len(text)
            else:
                part, end = self._cut(text, room)
                ids = (prompt + part)[: self.max_length]
            first = len(prompt) if self.loss_on == "answer" else 0
            rows.append(Row(record["uid"], ids, first, len(text[:end].strip())))
        return rows

    def _cut(self, text: str, room: int) -> tuple[list[int], int]:
        """The first tokens of `text`, at most `room`, up to the last sentence end among them if there is one; and
        where in `text` they end.

        No end token follows: the text went on, and a model that saw one here would learn to stop in mid-story.
        """
        if room <= 0:
            return [], 0
        encoded = self._answers([text], return_offsets_mapping=True)
        ids, ends = encoded["input_ids"][0], [end - len(self._guard) for _, end in encoded["offset_mapping"][0]]
        fitting = [match.end() for match in SENTENCE_END.finditer(text, 0, ends[min(room, len(ids)) - 1])]
        count = sum(end <= fitting[-1] for end in ends[:room]) if fitting else min(room, len(ids))
        return ids[:count], ends[count - 1]


def flatten(rows: list[Row]) -> FlatBatch:
    """Rows to one flat batch. The first token of a record is predicted by nothing, so it is never a target."""
    lengths = [len(row.ids) for row in rows]
    ids, positions, slots, predicting = [], [], [], []
    for number, row in enumerate(rows):
        start, slot = len(ids), number * max(lengths)
        ids += row.ids
        positions += range(len(row.ids))
        slots += range(slot, slot + len(row.ids))
        predicting += range(start + max(row.first_supervised, 1) - 1, start + len(row.ids) - 1)
    ids, places = torch.tensor(ids), torch.tensor(predicting, dtype=torch.int64)
    return FlatBatch(ids, torch.tensor(positions), torch.tensor(slots), lengths, places, ids[places + 1])


def split_by_tokens(rows: list[Row], token_budget: int) -> list[list[Row]]:
    """Consecutive rows in groups whose attention grid (rows x longest) stays within `token_budget` tokens.

    A row longer than the budget gets a group to itself.
    """
    groups, longest = [], 0
    for row in rows:
        longest = max(longest, len(row.ids))
        if groups and (len(groups[-1]) + 1) * longest <= token_budget:
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = len(row.ids)
    return groups


def blank_batch(records: int, length: int) -> FlatBatch:
    """Records of `length` tokens, all but the first supervised: for measuring what a micro-batch of that size takes."""
    return flatten([Row("", [0] * length, 1)] * records)


def idle_batch() -> FlatBatch:
    """One token and nothing supervised: for a process that has to compute something while others compute."""
    return blank_batch(1, 1)


def sample_batch() -> FlatBatch:
    """Two records of a few small token ids, of unequal length, to try a model on."""
    return flatten([Row("", list(range(1, 18)), 1), Row("", list(range(48, 0, -1)), 1)])


def flat_batches(rows: list[Row], token_budget: int) -> list[FlatBatch]:
    """The rows in micro-batches, the longest first: those of about one length leave the grid almost without gaps."""
    return [flatten(group) for group in split_by_tokens(sorted(rows, key=lambda r: -len(r.ids)), token_budget)]


def share_of(rows: list[Row], rank: int, ranks: int) -> list[Row]:
    """The rows of a step that one rank computes, in order: about as many tokens for each rank.

    The longest first, each to the rank that has the fewest tokens so far (Graham, "Bounds on Multiprocessing Timing
    Anomalies", 1969). Every rank makes the same plan, so they need not tell one another.
    """
    loads, mine = [0] * ranks, []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].ids)):
        least = loads.index(min(loads))
        loads[least] += len(rows[i].ids)
        if least == rank:
            mine.append(i)
    return [rows[i] for i in sorted(mine)]


def step_batch(rows: list[Row], micro_batch_tokens: int, rank: int = 0, ranks: int = 1) -> StepBatch:
    mine = share_of(rows, rank, ranks)
    return StepBatch(
        mine,
        micro_batch_tokens,
        prepared=flat_batches(mine, micro_batch_tokens),
        uids=[row.uid for row in rows],
        supervised=sum(max(0, len(row.ids) - max(row.first_supervised, 1)) for row in rows),
    )


def step_batches(
    steps: Iterable[list[Record]],
    encoder: Encoder,
    micro_batch_tokens: int,
    rank: int = 0,
    ranks: int = 1,
    pin_memory: bool = False,
) -> Iterator[StepBatch]:
    """The batch of each step, made in one background thread, a few steps ahead of the loop; pinned for a GPU."""

    def made(records: list[Record]) -> StepBatch:
        batch = step_batch(encoder.rows(records), micro_batch_tokens, rank, ranks)
        return replace(batch, prepared=[b.pinned() for b in batch.prepared]) if pin_memory else batch

    return ahead(map(made, steps))


def ahead(items: Iterable, depth: int = 4) -> Iterator:
    """The items of an iterable, computed up to `depth` ahead in a thread; its exception is raised here.

    A thread and not a process: the tokenizer is compiled code that lets go of the interpreter while it works, and
    there is nothing to pickle, to fork or to leave behind.
    """
    items, done = iter(items), object()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
    try:
        coming = deque(thread.submit(next, items, done) for _ in range(depth))
        while (item := coming.popleft().result()) is not done:
            coming.append(thread.submit(next, items, done))
            yield item
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
