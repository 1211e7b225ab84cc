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
    changed nothing. In fp16 the scaler finds overflows itself, skips in the same way and halves its scale. That is how
    it finds the largest scale that a model bears, so such steps are counted apart, as `overflows`, and end nothing, as
    long as the loss is finite and there is a scale left to halve.
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
        overflow, bad = ~grad_norm.isfinite(), ~loss_sum.isfinite()
        if self.scaler.is_enabled():
            bad |= overflow & (self.scaler._get_scale_async() <= 1)  # get_scale() would wait for the device
        else:
            bad |= overflow
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as GradScaler sets it
        self.settle()
        flags, copied = torch.stack([bad, overflow]), None
        if flags.is_cuda:
            flags = torch.empty(2, dtype=torch.bool, pin_memory=True).copy_(flags, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._pending = self.state.step + 1, uids, flags, copied

    def settle(self) -> None:
        """Count the step that `check` saw last. Raises `NonFiniteLoss`."""
        if self._pending is None:
            return
        (step, uids, flags, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        state, (bad, overflow) = self.state, flags.tolist()
        if not bad:
            state.overflows += overflow
            state.skipped_in_a_row = 0
            return
        state.skipped_steps, state.skipped_in_a_row = state.skipped_steps + 1, state.skipped_in_a_row + 1
        if state.skipped_in_a_row >= self.limit:
            newest = next(reversed(checkpoints_of(self.run)), None)  # from before: none is saved among skipped steps
            back = f": --model {newest}" if newest else "; there is no checkpoint yet"
            raise NonFiniteLoss(
                f"The loss or its gradient was not finite in {state.skipped_in_a_row} steps in a row, up to step "
                f"{step} (records {', '.join(uids[:16])}{', ...' if len(uids) > 16 else ''}). None of them changed the "
                "weights. Take such records out of the data, begin a new run with a lower --learning_rate, or, if it "
                f"was in fp16, with --precision fp32, or bf16 on a newer card{back}"
            )
