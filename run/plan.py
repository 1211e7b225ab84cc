"""What a run will do, said before its first step: steps, learning rate, micro-batch, memory, disk, time."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.muon import hidden_matrices
from run.cli import UsageError
from run.config import TrainConfig
from run.data import Data, asked_records
from run.device import begin_peak, held_memory
from run.duration import TimePlan, measure_time
from run.files import check_free_space
from run.folders import step_of
from run.memory import MemoryPlan, free_memory, load_kernels, plan_memory, stay_on_the_card
from run.session import Session
from run.shard import divided
from run.units import duration, short, size, table
from run.validation import Samples
from text.batch import Encoder
from text.stream import WithReplay, steps_per_epoch

OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon for the matrices of the blocks, AdamW for the rest"}
SOME_STEPS, MOST_EPOCHS = 1030, 6.0  # of a model from scratch, if nobody says more: minutes on a CPU
SAMPLE = 500  # records that say how long records are
# Tokens times width at once on a CPU, where more take more memory and no less time: 1,024 tokens of DistilGPT-2, 4,096
# of pocket.
CPU_NUMBERS = 1024 * 768


class Due(NamedTuple):
    """What follows a step."""

    log: bool
    validate: bool
    save: bool
    leave: bool  # the last step, or somebody asked to stop: saved among skipped steps too
    interrupted: bool


@dataclass(frozen=True)
class TrainPlan:
    config: TrainConfig
    total_steps: int
    epoch_steps: int
    warmup_steps: int
    micro_batch_tokens: int
    val_records: int
    rows: list[tuple[str, str]]  # for the screen
    held_before: int  # bytes before training: on a CPU by the whole process, on CUDA by tensors
    adds: int  # bytes that training takes beside them, at most

    def learning_rate_at(self, step: int) -> float:
        """Of optimizer step `step`, counted from 0."""
        peak, schedule = self.config.learning_rate, self.config.lr_scheduler_type
        return learning_rate_at(step, self.total_steps, self.warmup_steps, peak, schedule)

    def due(self, step: int, stopping: bool) -> Due:
        """What follows when `step` steps are done; the same on every rank, for much of it is collective."""
        config, last = self.config, step == self.total_steps
        validate = step % config.eval_steps == 0 or last
        return Due(
            log=step % config.logging_steps == 0 or step in (1, 10) or validate,
            validate=validate and self.val_records > 0,
            save=step % config.save_steps == 0 or last or stopping,
            leave=last or stopping,
            interrupted=stopping and not last,
        )

    def table(self) -> str:
        return table(self.rows)


def learning_rate_at(step: int, total_steps: int, warmup_steps: int, peak: float, schedule: str) -> float:
    """The learning rate of optimizer step `step`, counted from 0: warm-up, then linear or cosine decay to 0.

    The same numbers as transformers' `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup`.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress)


def measure_memory(session: Session, model: PreTrainedModel) -> MemoryPlan:
    """Collective. What a step takes on one rank. Draws random numbers when dropout is on."""
    ranks, machine = session.ranks, session.machine
    memory = plan_memory(model.train(), machine)
    if session.config.optim == "muon":  # one moment of a matrix instead of two
        memory = replace(memory, optimizer=memory.optimizer - 4 * numbers_in(hidden_matrices(model)))
    if ranks.size > 1:
        ranks.sum(torch.zeros((), device=machine.device))  # NCCL takes what it needs at the first collective operation
    if ranks.sharded:
        return divided(memory, model, ranks.size, machine.dtype)
    if machine.device.type == "cuda":
        load_kernels(model, machine)
    if ranks.size > 1:  # DistributedDataParallel sums in buckets, a copy of all gradients
        buckets = memory.gradients
        memory = replace(memory, kept=memory.kept + buckets, embedding_gradient=memory.embedding_gradient + buckets)
    return memory


def make_plan(
    session: Session,
    data: Data,
    model: PreTrainedModel,
    encoder: Encoder,
    memory: MemoryPlan,
    loss_fn: Callable,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
) -> TrainPlan:
    """Collective. Reads the free memory and the free disk, and measures a few steps, which leave no trace. The peak of
    memory counts from here. `--minutes` become `--max_steps` in the options of the session, which the run will save.

    Raises `OutOfMemory` or `DiskFull` when they do not suffice, `UsageError` when nothing could be learned: the run is
    past its last step already, no step ends within `--minutes`, or no answer has room in `--max_length`.
    """
    config, device, train = session.config, session.machine.device, data.train
    available, held = free_memory(device), held_memory(device)
    stay_on_the_card(device)
    step_tokens = config.records_per_step * config.max_length
    fitting = memory.largest_micro_batch(available, config.max_length, at_most=step_tokens)
    if device.type != "cuda":
        fitting = min(fitting, max(config.max_length, CPU_NUMBERS // model.config.hidden_size))
    micro_batch_tokens = config.micro_batch_tokens or fitting

    epoch_steps = steps_per_epoch(len(train), session.records_per_step)
    epochs = config.num_train_epochs or min(MOST_EPOCHS, max(1.0, SOME_STEPS / epoch_steps))
    total_steps = config.max_steps or math.ceil(epochs * epoch_steps)
    done = step_of(session.checkpoint) if session.checkpoint else 0
    if done > total_steps and not config.minutes:
        raise UsageError(f"{session.checkpoint} is past step {total_steps} already: name more --max_steps or --epochs.")
    if session.command.explain and total_steps < 2:
        raise UsageError("--explain looks into two steps, and this run has one: name more --max_steps or --epochs.")

    first_steps = asked_records(session, data, encoder, 0, math.ceil(SAMPLE / session.records_per_step))
    sample = encoder.rows(list(itertools.islice(itertools.chain.from_iterable(first_steps), min(len(train), SAMPLE))))
    if not any(len(row.ids) > row.first_supervised for row in sample):
        raise UsageError(f"In {config.max_length} tokens there is no room for any answer: raise --max_length.")
    trainable = numbers_in(p for p in model.parameters() if p.requires_grad)
    val_records = min(len(data.val), config.max_eval_samples)
    disk = 12 * trainable  # fp32 weights and the two moments of AdamW; Muon has one
    disk -= 4 * numbers_in(hidden_matrices(model)) if config.optim == "muon" else 0
    free_disk = check_free_space(Path(config.output_dir), disk_needed(disk, config))
    times = measure_time(
        session, model, loss_fn, optimizer, samples, sample, val_records, micro_batch_tokens, checkpoint_bytes=disk
    )
    begin_peak(device)  # what the log calls peak is that of training, not of what loading took
    fitting = f", what fits into {config.minutes:g} minutes" if config.minutes else ""
    if config.minutes:
        total_steps = session.ranks.from_main(lambda: steps_in_time(session, times, done))
        config = session.config = replace(config, minutes=None, max_steps=total_steps)
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    tokens = sum(len(row.ids) for row in sample) / len(sample) * session.records_per_step * total_steps
    epochs, seconds = total_steps / epoch_steps, times.left(config, done, total_steps)
    parameters = f"{short(model.num_parameters())} parameters, {short(trainable)} trained"
    rise = "up from 0 to " if warmup_steps else ""  # so the first step of all changes nothing
    rows = [
        ("model", f"{config.model_name_or_path} ({session.why_this_model}), {parameters}"),
        ("device", f"{session.machine.name}, {session.machine.precision}"),
        ("records", f"{records_said(data)}, {val_records:,} to validate on"),
        ("steps", f"{total_steps:,} of {session.records_per_step} records ({epochs:.3g} epochs){fitting}"),
        ("tokens", f"about {short(tokens)} in all"),
        ("time", f"about {duration(seconds)}{' more' if done else ''}, as fast as this machine is now"),
        ("optimizer", OPTIMIZERS[config.optim]),
        ("learning rate", f"{rise}{config.learning_rate:.1e} at step {warmup_steps + 1:,}, then down to 0"),
        *memory.rows(micro_batch_tokens, step_tokens, available),
        *([memory.process_row(held, micro_batch_tokens, step_tokens)] if device.type == "cpu" else []),
        ("checkpoint", f"{size(disk)}, {size(free_disk)} free on the disk"),
    ]
    if session.weights is None:
        vocabulary = len(encoder.tokenizer)
        rows.append(("first loss", f"about {math.log(vocabulary):.2f} = ln {vocabulary:,}: every token as likely"))
    if session.records_per_step > len(train):
        rows.append(("note", f"a step takes {session.records_per_step:,} records, and there are {len(train):,}"))
    if session.machine.hint:
        rows.append(("note", session.machine.hint))
    adds = memory.adds(micro_batch_tokens, step_tokens)
    return TrainPlan(config, total_steps, epoch_steps, warmup_steps, micro_batch_tokens, val_records, rows, held, adds)


def steps_in_time(session: Session, times: TimePlan, done: int) -> int:
    """The last step of a run that ends `--minutes` after it was begun, or, where it goes on, after that. Raises
    `UsageError` when there is time for none."""
    minutes, config = session.config.minutes, session.config
    spent = session.seconds
    steps = times.steps_within(60 * minutes - spent, config, done)
    if steps == done:
        least = spent + times.left(config, done, done + 1)
        raise UsageError(f"In {minutes:g} minutes there is no time for a step; for one it takes {duration(least)}.")
    return steps


def records_said(data: Data) -> str:
    train = data.train
    if isinstance(train, WithReplay):
        return f"{len(train.new):,} in {train.path}, {train.replayed:,} again of {train.old.path}"
    return f"{len(train):,} in {train.path}"


def numbers_in(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def disk_needed(checkpoint: int, config: TrainConfig) -> int:
    """The most bytes that a run has on the disk at once: while the newest checkpoint is written, the one before is
    still whole; the others, `final` and `base` are weights alone, a third of a checkpoint."""
    kept = config.save_total_limit + config.load_best_model_at_end
    return 2 * checkpoint + (kept + 1) * checkpoint // 3
