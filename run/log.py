"""What is said while a run trains: metrics.jsonl, the progress bar and its lines."""

import math
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from run.device import give_back_freed_memory, peak_memory
from run.metrics import MetricsFile
from run.state import TrainState
from run.trackers import open_tracker
from run.units import clock, eta_seconds, short, size

MOST_OVER_PLAN = 1.25  # of the process, before what was freed is given back, which costs speed


def progress_line(entry: dict, total_steps: int, width: int | None = None) -> str:
    """One entry of metrics.jsonl for the eye; what does not fit into `width` columns is left out from the right."""
    step = entry["step"]
    parts = [
        f"step {step:{len(str(total_steps))}}/{total_steps} {100 * step / total_steps:3.0f}%",
        f"loss {entry['loss']:.4f}",
        f"val {entry['val_loss']:.4f}" if "val_loss" in entry else "",
        f"lr {entry['learning_rate']:.1e}",
        f"{short(entry['answer_tokens_per_second'])} answer tokens/s",
        f"ETA {clock(entry['eta_seconds'])}",
        f"peak {size(entry['peak_memory_bytes'])}, {size(entry['memory_before_training_bytes'])} before training",
    ]
    width = width or shutil.get_terminal_size((120, 24)).columns
    line = parts[0]
    for part in filter(None, parts[1:]):
        if len(line) + 2 + len(part) > width:
            break
        line += "  " + part
    return line


class Stopwatch:
    """Seconds of training, without those spent on validation and saving."""

    def __init__(self):
        self.start()

    def start(self) -> None:
        """From here on, as if nothing had been before."""
        self.total = self._lap = self._waited = 0.0
        self._since = time.perf_counter()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last lap, and how many of them went by waiting for data."""
        self._take()
        lap, self._lap = (self._lap, self._waited), 0.0
        self._waited = 0.0
        return lap

    def waiting_for(self, items: Iterable) -> Iterator:
        """The same items; the time until each is there counts as waiting."""
        items = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._take()
        yield
        self._since = time.perf_counter()

    def _take(self) -> None:
        now = time.perf_counter()
        self.total, self._lap, self._since = self.total + now - self._since, self._lap + now - self._since, now


class MetricLogger:
    """metrics.jsonl, the progress bar and the line on the screen. Every rank makes the entries, rank 0 writes them."""

    def __init__(
        self,
        state: TrainState,
        plan,
        run: Path,
        device: torch.device,
        stopwatch: Stopwatch,
        ranks,
        report_to: str = "none",
    ):
        """`plan`: with `total_steps`, `epoch_steps`, `held_before`, `adds` and `learning_rate_at(step)`; `report_to`:
        what else shows the log. Raises `MissingPackage`."""
        self.state, self.plan, self.device, self.stopwatch = state, plan, device, stopwatch
        self.begun_at, self.is_main = state.step, ranks.is_main
        self.file = MetricsFile(run / "metrics.jsonl", resumed_at=state.step) if ranks.is_main else None
        self.carried = state.supervised.item()  # tokens of the session before, which no lap of this one has timed
        self.show = open_tracker(report_to if ranks.is_main else "none", run)

    def progress_bar(self, train_loader: Iterable) -> Iterator:
        """The same batches; the time until each is there counts as waiting. The stopwatch starts here."""
        self.stopwatch.start()  # not before: three titles have been answered since it was made
        disable = None if self.is_main else True  # None: shown only where there is a terminal
        waited = self.stopwatch.waiting_for(train_loader)
        total, done = self.plan.total_steps, self.state.step
        return iter(tqdm(waited, desc="training", total=total, initial=done, leave=False, disable=disable))

    def entry(self, grad_norm: Tensor) -> dict:
        """The numbers since the last entry. Reads the device, so it waits for it; ends a lap of the stopwatch."""
        state, plan = self.state, self.plan
        loss_sum, supervised = state.loss_sum.item(), state.supervised.item()
        seconds, waited = self.stopwatch.lap()
        peak = peak_memory(self.device)
        if peak > MOST_OVER_PLAN * (plan.held_before + plan.adds):
            give_back_freed_memory(self.device)
        entry = {
            "step": state.step,
            "epoch": state.step / plan.epoch_steps,
            "loss": loss_sum / supervised if supervised else math.nan,  # nats per supervised token since the last entry
            "grad_norm": grad_norm.item(),  # of this step, before clipping
            "learning_rate": plan.learning_rate_at(state.step - 1),
            "skipped_steps": state.skipped_steps,  # since the start
            "overflows": state.overflows,  # likewise
            "seconds": seconds,  # of training since the last entry, or since this session began
            "answer_tokens": supervised,  # since the last entry
            "answer_tokens_per_second": (supervised - self.carried) / seconds,
            "data_wait": waited / seconds,  # share of the time in which the loop waited for records
            "eta_seconds": eta_seconds(
                state.step - self.begun_at, plan.total_steps - self.begun_at, self.stopwatch.total
            ),
            # On a CPU of the whole process, on CUDA of tensors.
            "memory_before_training_bytes": self.plan.held_before,
            "peak_memory_bytes": peak,
            "training_adds_bytes": peak - self.plan.held_before,
            "planned_adds_bytes": plan.adds,
        }
        if self.device.type == "cuda":  # what the allocator holds for them, gaps included: as task managers show it
            entry["reserved_memory_bytes"] = torch.cuda.max_memory_reserved(self.device)
        return entry

    def write(self, entry: dict) -> None:
        """The sums begin anew here, so that a checkpoint of the same step is saved without them."""
        if self.is_main:
            self.file.write(entry)
            self.show(entry)
            tqdm.write(progress_line(entry, self.plan.total_steps))
        self.state.clear_sums()
        self.carried = 0
