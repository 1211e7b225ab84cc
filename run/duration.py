"""How long a run takes, said before its first step.

    a step            measured on real records: forward and backward grow with the tokens, the rest does not
    a validation      measured, forward alone, on a step's records; it grows with the tokens
    an answer         measured on a few tokens; before training it is as long as it may be, after it as the catalogue's
    a checkpoint      by its bytes

All times are seconds. What is measured leaves no trace: the optimizer steps at a learning rate of 0 and forgets, and no
random number is drawn that a run does not seed anew (run/checkpoint.py: restore).
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.loss import mean_loss
from model.sample import Sampling
from run.cli import MOST
from run.config import TrainConfig
from run.micro_batch import MicroBatcher, with_less_when_full
from run.session import Session
from run.state import TrainState
from run.validation import Samples
from text.batch import FlatBatch, Row, flat_batches, step_batch

LEAST_STEPS, MOST_STEPS, ENOUGH = 2, 6, 1.0  # measured after one that is not: the fewest, the most, seconds
LONG = 10.0  # seconds: one step of that length says enough, the first too
AT_ONCE = 4  # micro-batches of a measured step at most; of the rest of a larger step more of the same
FEW_TOKENS = 16  # of the measured answers
SAVED_BYTES = 250e6  # a second, with checksums and flushing; twice that or half of it hardly shows in a run


@dataclass(frozen=True)
class TimePlan:
    """Seconds."""

    step: float
    validation: float
    checkpoint: float
    before: float  # the answers to the titles, before training
    after: float  # and after it, with the final model saved

    def left(self, config: TrainConfig, done: int, total_steps: int) -> float:
        """What a run of `total_steps` takes from step `done` on."""
        seconds = (total_steps - done) * self.step + self.after + (0 if done else self.before)
        for once, every in ((self.validation, config.eval_steps), (self.checkpoint, config.save_steps)):
            seconds += once * (-(-total_steps // every) - done // every)  # the last step is due too
        return seconds

    def steps_within(self, seconds: float, config: TrainConfig, done: int) -> int:
        """The most steps, the `done` ones included, that end within `seconds` from now; `done`: not even one."""
        return done + bisect_right(range(1, MOST), seconds, key=lambda more: self.left(config, done, done + more))


def measure_time(
    session: Session,
    model: PreTrainedModel,
    loss_fn: Callable,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    rows: list[Row],
    val_records: int,
    micro_batch_tokens: int,
    checkpoint_bytes: int,
) -> TimePlan:
    """Collective. `rows`: records of the training split, which say how long records are; rank 0's times count."""
    ranks, device = session.ranks, session.machine.device
    tokens = sum(len(row.ids) for row in rows) / len(rows)  # of a record
    most = max(1, int(AT_ONCE * micro_batch_tokens / tokens)) * ranks.size
    records = min(session.records_per_step, most)
    state = TrainState.new(device, micro_batch_tokens)
    computed, rest = _measured_steps(session, model.train(), loss_fn, optimizer, state, rows, records)

    model.eval()
    some = rows[:records]
    start = seconds_now(device)
    with session.machine.autocast():
        with_less_when_full(
            lambda at_once: mean_loss(model, flat_batches(some, at_once), loss_fn),
            state.micro_batch_tokens,
            max(len(row.ids) for row in some),
            ranks.sharded,
        )
    forward = (seconds_now(device) - start) / sum(len(row.ids) for row in some)
    samples.answers(max_new_tokens=1)  # the first is not measured
    start = seconds_now(device)
    samples.answers(max_new_tokens=FEW_TOKENS)
    token = (seconds_now(device) - start) / FEW_TOKENS
    model.train()
    torch.cuda.empty_cache()  # the largest micro-batch comes first (run/micro_batch.py: warm_up)
    validated = tokens * val_records / (1 if ranks.sharded else ranks.size)
    answer = sum(len(row.ids) - row.first_supervised for row in rows) / len(rows)
    saving = checkpoint_bytes / SAVED_BYTES
    times = TimePlan(
        step=computed * tokens * session.records_per_step + rest,
        validation=forward * validated,
        checkpoint=saving,
        before=token * Sampling.max_new_tokens,
        after=token * answer + saving / 3,
    )
    return ranks.from_main(lambda: times)


def _measured_steps(
    session: Session,
    model: PreTrainedModel,
    loss_fn: Callable,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    rows: list[Row],
    records: int,
) -> tuple[float, float]:
    """Collective. Seconds of forward and backward for each token of a step, and of the rest of a step."""
    ranks, machine, max_grad_norm = session.ranks, session.machine, session.config.max_grad_norm
    micro_batcher = MicroBatcher(state, optimizer, machine.device, ranks)

    def forward_backward(micro_batches: list[FlatBatch], supervised: int) -> Tensor:
        """The page's, without a loss scale."""
        for micro_batch in micro_batches:
            with machine.autocast():
                loss = loss_fn(model, micro_batch.to(machine.device))
            (loss / supervised).backward()
        return torch.zeros((), dtype=torch.float64, device=machine.device)

    all_reduce_gradients = ranks.gradient_all_reduce(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # weights - 0 x update: what they were
    steps, tokens, computed, rest = 0, 0, 0.0, 0.0
    for number in range(MOST_STEPS + 1):
        mine = [rows[(number * records + i) % len(rows)] for i in range(records)]
        batch = step_batch(mine, state.micro_batch_tokens, ranks.rank, ranks.size)
        begin = seconds_now(machine.device)
        loss_sum = micro_batcher.run(forward_backward, batch)
        middle = seconds_now(machine.device)
        all_reduce_gradients(loss_sum)
        grad_norm = ranks.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.found_inf = (~grad_norm.isfinite()).float()  # type: ignore[attr-defined]  # 0 x nan is nan
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = seconds_now(machine.device)
        is_long = ranks.any(end - begin > LONG)
        if number == 0 and not is_long:  # it loads kernels and takes memory that the others find
            continue
        steps, tokens = steps + 1, tokens + sum(len(row.ids) for row in mine)
        computed, rest = computed + middle - begin, rest + end - middle
        if is_long or (steps >= LEAST_STEPS and ranks.any(computed + rest > ENOUGH)):
            break
    del optimizer.found_inf  # type: ignore[attr-defined]
    optimizer.state.clear()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return computed / tokens, rest / steps


def seconds_now(device: torch.device) -> float:
    """Of a clock, once the device has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
