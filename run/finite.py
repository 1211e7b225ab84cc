"""Numbers that are not finite: they never reach the weights, they are counted, and N steps in a row of them end it."""

from pathlib import Path

import torch
from torch import Tensor

from run.checkpoint import checkpoints_of


class NonFiniteLoss(RuntimeError):
    """Too many steps in a row whose loss or gradient is not finite. The message names the last of them."""

    exit_code = 5


class FiniteCheck:
    """Decides on the device whether a step is skipped, and looks at the answer one step later.

    AdamW's fused kernel reads a flag in the device's own memory (`found_inf`, made for fp16) and then leaves weights,
    moments and step count as they are: nothing waits. The count may come a step late because a skipped step has
    changed nothing. fp16's overflows are found by the scaler, which skips in the same way and lowers its scale.
    """

    def __init__(self, run: Path, limit: int, skipped: int, in_a_row: int):
        """`skipped` and `in_a_row`: the counts so far, of a run that is resumed."""
        self.run, self.limit, self.skipped, self.in_a_row = run, limit, skipped, in_a_row
        self._pending: tuple | None = None

    def guard(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        loss_sum: Tensor,
        grad_norm: Tensor,
        step: int,
        uids: list[str],
    ) -> None:
        """Call between clipping and `scaler.step`; both tensors are 0-dim. Raises `NonFiniteLoss`."""
        bad = ~(loss_sum.isfinite() & grad_norm.isfinite())
        if not scaler.is_enabled():
            optimizer.found_inf = bad.float()
        self.settle()
        flag, copied = bad, None
        if bad.is_cuda:
            flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending = step, uids, flag, copied

    def settle(self) -> None:
        """Count the step that `guard` saw last. Raises `NonFiniteLoss`."""
        if self._pending is None:
            return
        (step, uids, flag, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        if not flag:
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= self.limit:
            newest = next(reversed(checkpoints_of(self.run)), None)  # from before: none is saved among skipped steps
            back = f": --model {newest}" if newest else "; there is no checkpoint yet"
            raise NonFiniteLoss(
                f"The loss or its gradient was not finite in {self.in_a_row} steps in a row, up to step {step} "
                f"(records {', '.join(uids[:16])}{', ...' if len(uids) > 16 else ''}). None of them changed the "
                f"weights. Take such records out of the data, or begin a new run with a lower --learning_rate{back}"
            )
