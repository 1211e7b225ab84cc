"""Where a run stands between two steps: the one mutable thing that the objects of the loop share, saved as it is."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(eq=False)
class TrainState:
    """Each rank has its own; they differ in `micro_batch_tokens` alone."""

    loss_sum: Tensor  # () fp64 on the device: nats since the last entry of the log
    supervised: Tensor  # () fp64 on the device: the tokens that `loss_sum` is the loss of
    step: int = 0  # optimizer steps that are done
    skipped_steps: int = 0  # of them, those of bad numbers, that changed nothing (run/guard.py)
    skipped_in_a_row: int = 0
    overflows: int = 0  # steps that changed nothing because fp16's loss scale was too large, and was halved
    micro_batch_tokens: int = 0  # at once; fewer after an out-of-memory error (run/micro_batch.py)

    @classmethod
    def new(cls, device: torch.device, micro_batch_tokens: int = 0) -> "TrainState":
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero, zero.clone(), micro_batch_tokens=micro_batch_tokens)

    def count(self, loss_sum: Tensor, supervised: int) -> None:
        """One more step. A loss that is not finite is left out of the sums; nothing waits for the device."""
        counts = loss_sum.isfinite()
        self.step += 1
        self.loss_sum += torch.where(counts, loss_sum, 0.0)
        self.supervised += counts * supervised

    def clear_sums(self) -> None:
        self.loss_sum.zero_()
        self.supervised.zero_()

    def to_json(self) -> dict[str, int | float]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value.item() if isinstance(value, Tensor) else value for name, value in values.items()}

    def load_json(self, values: dict) -> None:
        """Take every field from `values`. Raises `KeyError`, `TypeError` or `ValueError` when one is not a number."""
        values = {"overflows": 0} | values  # checkpoints before 2026-11-27 counted them among `skipped_steps`
        for f in fields(self):
            if f.type is Tensor:
                getattr(self, f.name).fill_(float(values[f.name]))
            else:
                setattr(self, f.name, int(values[f.name]))
