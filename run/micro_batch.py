"""A step in pieces that fit: begun again with half as much at once when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from run.cli import FULL
from run.memory import WAYS_OUT, OutOfMemory
from run.ranks import Ranks
from run.state import TrainState
from text.batch import FlatBatch, Row, StepBatch, idle_batch, step_batch

T = TypeVar("T")


class MicroBatcher:
    """The records of a step in micro-batches of at most `state.micro_batch_tokens`, fewer after an out-of-memory error.

    The idea of accelerate's `find_executable_batch_size`, for the micro-batch: the step keeps its records.
    """

    def __init__(self, state: TrainState, optimizer: torch.optim.Optimizer, device: torch.device, ranks: Ranks):
        self.state, self.optimizer, self.device, self.ranks = state, optimizer, device, ranks

    def warm_up(self, forward_backward: Callable, records: int, longest: int) -> None:
        """On a GPU: one micro-batch of the planned size, of at most `records` that have `longest` tokens; taken back.

        What does not fit is found now, and the allocator holds blocks of the largest size before smaller ones come.
        """
        if self.device.type != "cuda" or self.ranks.sharded:
            return
        random_state, tokens = get_random_state(self.device), self.state.micro_batch_tokens
        rows = [Row("", [0] * longest, 1)] * max(1, min(records, tokens // longest))
        self.run(forward_backward, step_batch(rows, tokens))
        self.optimizer.zero_grad(set_to_none=True)
        set_random_state(random_state, self.device)

    def run(self, forward_backward: Callable[[list[FlatBatch], int], Tensor], batch: StepBatch) -> Tensor:
        """Collective if the model is sharded. `forward_backward(micro_batches, supervised tokens)`, begun again in
        smaller pieces while memory runs out.

        Before another attempt the gradients go and the random state is put back. Without dropout the step is then the
        same one, up to the order of its sums; with dropout it has other masks, for a mask has the shape of its
        micro-batch. Raises `OutOfMemory` (exit code 4) when the micro-batches hold one record each, or the model is
        sharded.
        """
        random_state = get_random_state(self.device)
        while True:
            micro_batches = self.ranks.as_many(batch.micro_batches(self.state.micro_batch_tokens), idle_batch())
            try:
                return forward_backward(micro_batches, max(1, batch.supervised))
            except RuntimeError as error:
                tokens, records_each = self.state.micro_batch_tokens, len(batch.rows) / len(micro_batches)
                self.state.micro_batch_tokens = smaller_micro_batch(error, tokens, records_each, self.ranks.sharded)
            # Below the `except` on purpose: until it ends, the error's traceback holds every tensor of the attempt.
            tokens = self.state.micro_batch_tokens
            tqdm.write(f"Out of memory: from here on {tokens} tokens at a time.")
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()  # blocks of the failed attempt's sizes are of no use to smaller pieces
            set_random_state(random_state, self.device)


def with_less_when_full(
    compute: Callable[[int], T], tokens: int, smallest: int, sharded: bool = False, ways_out: str = WAYS_OUT
) -> T:
    """`compute(tokens)`, and after an out-of-memory error with half as many, down to `smallest`.

    Raises `OutOfMemory` when not even those fit, or at once if the model is `sharded`. For what has no state to take
    back: a validation, answers.
    """
    while True:
        try:
            return compute(tokens)
        except RuntimeError as error:
            tokens = smaller_micro_batch(error, tokens, max(1.0, tokens / smallest), sharded, ways_out)
        torch.cuda.empty_cache()


def smaller_micro_batch(
    error: RuntimeError, tokens: int, records_each: float, sharded: bool = False, ways_out: str = WAYS_OUT
) -> int:
    """Half of `tokens` after an out-of-memory error; any other error is raised again.

    Raises `OutOfMemory` when the micro-batches could not be any smaller: they hold one record each. And when the model
    is `sharded`: the other ranks wait in the middle of the same micro-batch, and it cannot be begun again.
    """
    if not is_out_of_memory(error):
        raise error
    if sharded:
        raise OutOfMemory(f"Out of memory. Go on with --resume --micro_batch_tokens {tokens // 2}, or more processes.")
    if records_each == 1:
        raise OutOfMemory(f"Out of memory with one record at a time. What was saved is whole. {ways_out}")
    return tokens // 2


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of the device, or of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FULL)


def get_random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of torch on the CPU and, if it is one, on the GPU: what dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
