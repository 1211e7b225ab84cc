"""Numbers that are not finite: they never reach the weights, they are counted, and N steps in a row of them end it."""

from pathlib import Path

import torch
from torch import Tensor

from run.folders import checkpoints_of
from run.state import TrainState


class NonFiniteLoss(RuntimeError):
    """Too many steps in a row whose loss or gradient is not finite. The message names the last of them."""

    exit_code = 5


class NonFiniteGuard:
    """Decides on the device whether a step is skipped, and looks at the answer one step later.

    AdamW's fused kernel reads a flag in the device's own memory (`found_inf`, made for fp16) and then leaves weights,
    moments and step count as they are: nothing waits. The count may come a step late because a skipped step has
    changed nothing. In fp16 the scaler finds overflows itself, skips in the same way and lowers its scale; here they
    are only counted.
    """

    def __init__(
        self,
        state: TrainState,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        run: Path,
        max_skipped_steps: int,
    ):
        self.state, self.optimizer, self.scaler, self.run, self.limit = state, optimizer, scaler, run, max_skipped_steps
        self._pending: tuple | None = None

    def check(self, loss_sum: Tensor, grad_norm: Tensor, uids: list[str]) -> None:
        """Call between clipping and `scaler.step`; both tensors are 0-dim. Raises `NonFiniteLoss` for a step before."""
        bad = ~(loss_sum.isfinite() & grad_norm.isfinite())
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = bad.float()
        self.settle()
        flag, copied = bad, None
        if bad.is_cuda:
            flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending = self.state.step + 1, uids, flag, copied

    def settle(self) -> None:
        """Count the step that `check` saw last. Raises `NonFiniteLoss`."""
        if self._pending is None:
            return
        (step, uids, flag, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        state = self.state
        if not flag:
            state.skipped_in_a_row = 0
            return
        state.skipped_steps, state.skipped_in_a_row = state.skipped_steps + 1, state.skipped_in_a_row + 1
        if state.skipped_in_a_row >= self.limit:
            newest = next(reversed(checkpoints_of(self.run)), None)  # from before: none is saved among skipped steps
            back = f": --model {newest}" if newest else "; there is no checkpoint yet"
            raise NonFiniteLoss(
                f"The loss or its gradient was not finite in {state.skipped_in_a_row} steps in a row, up to step "
                f"{step} (records {', '.join(uids[:16])}{', ...' if len(uids) > 16 else ''}). None of them changed the "
                f"weights. Take such records out of the data, or begin a new run with a lower --learning_rate{back}"
            )
