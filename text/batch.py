"""From records to flat micro-batches: tokens end to end, no padding, no packing, no mask."""

import queue
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from text.template import Template, opening_of, special_tokens

# An end of sentence: its mark, closing quotes or brackets, then white space or the end of the text.
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*(?=\s|$)")


@dataclass(frozen=True)
class Row:
    """One record as tokens: the prompt, the answer and, unless the record was cut, the end token."""

    uid: str
    ids: list[int]
    first_supervised: int  # tokens from here on are supervised


@dataclass(frozen=True)
class FlatBatch:
    """The rows of one micro-batch, end to end."""

    ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64, restarting at 0 with each record
    lengths: list[int]  # n, summing to T
    rows: Tensor  # (S,) int64: the places whose next token is supervised
    targets: Tensor  # (S,) int64: those tokens

    def to(self, device: torch.device) -> "FlatBatch":
        if device.type == "cpu":
            return self
        names = ("ids", "position_ids", "rows", "targets")
        return replace(self, **{n: getattr(self, n).pin_memory().to(device, non_blocking=True) for n in names})


@dataclass(frozen=True)
class StepBatch:
    """All that one optimizer step consumes."""

    micro_batches: list[FlatBatch]
    uids: list[str]
    tokens: int  # of all micro-batches
    supervised: int  # of all micro-batches: what the summed loss is divided by


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

    def prompts(self, titles: list[str]) -> list[list[int]]:
        """The tokens that stand before the answer: the same call serves training and generation."""
        if not self._marks:
            encoded = self._encode([self.template.prompt_for(title) for title in titles]).input_ids
        else:
            encoded = [self._with_marks(title) for title in titles]
        return [ids if ids[: len(self._opening)] == self._opening else self._opening + ids for ids in encoded]

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

    def rows(self, records: list[dict[str, str]]) -> list[Row]:
        """One `Row` a record, in order, none longer than `max_length`."""
        prompts = self.prompts([record["title"] for record in records])
        answers = [self.template.answer_for(record["content"]) for record in records]
        rows = []
        for record, prompt, text, answer in zip(
            records, prompts, answers, self._answers(answers)["input_ids"], strict=True
        ):
            room = self.max_length - len(prompt)
            if len(answer) + 1 <= room:
                ids = prompt + answer + [self.end_token]
            else:
                ids = (prompt + self._cut(text, room))[: self.max_length]
            rows.append(Row(record["uid"], ids, len(prompt) if self.loss_on == "answer" else 0))
        return rows

    def _cut(self, text: str, room: int) -> list[int]:
        """The first tokens of `text`, at most `room`, up to the last sentence end among them if there is one.

        No end token follows: the text went on, and a model that saw one here would learn to stop in mid-story.
        """
        if room <= 0:
            return []
        encoded = self._answers([text], return_offsets_mapping=True)
        ids, ends = encoded["input_ids"][0], [end - len(self._guard) for _, end in encoded["offset_mapping"][0]]
        fitting = [match.end() for match in SENTENCE_END.finditer(text, 0, ends[min(room, len(ids)) - 1])]
        if not fitting:
            return ids[:room]
        return ids[: sum(end <= fitting[-1] for end in ends[:room])]


def flatten(rows: list[Row]) -> FlatBatch:
    """Rows to one flat batch. The first token of a record is predicted by nothing, so it is never a target."""
    ids, positions, predicting = [], [], []
    for row in rows:
        start = len(ids)
        ids += row.ids
        positions += range(len(row.ids))
        predicting += range(start + max(row.first_supervised, 1) - 1, start + len(row.ids) - 1)
    ids, places = torch.tensor(ids), torch.tensor(predicting, dtype=torch.int64)
    return FlatBatch(ids, torch.tensor(positions), [len(row.ids) for row in rows], places, ids[places + 1])


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


def flat_batches(rows: list[Row], token_budget: int) -> list[FlatBatch]:
    return [flatten(group) for group in split_by_tokens(rows, token_budget)]


def step_batch(rows: list[Row], micro_batch_tokens: int) -> StepBatch:
    micro_batches = flat_batches(rows, micro_batch_tokens)
    return StepBatch(
        micro_batches,
        uids=[row.uid for row in rows],
        tokens=sum(len(row.ids) for row in rows),
        supervised=sum(len(batch.targets) for batch in micro_batches),
    )


def step_batches(
    steps: Iterable[list[dict[str, str]]], encoder: Encoder, micro_batch_tokens: int
) -> Iterator[StepBatch]:
    """The batch of each step, made in one background thread, a few steps ahead of the loop."""
    return ahead(step_batch(encoder.rows(records), micro_batch_tokens) for records in steps)


def ahead(items: Iterable, depth: int = 4) -> Iterator:
    """The items of an iterable, computed up to `depth` ahead in a thread; its exception is raised here.

    A thread and not a process: the tokenizer is compiled code that lets go of the interpreter while it works, and
    there is nothing to pickle, to fork or to leave behind.
    """
    done = object()
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((done, None))
        except BaseException as error:
            put((done, error))

    threading.Thread(target=work, daemon=True, name="tokenizer").start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is done:
                return
            yield item
    finally:
        stop.set()
