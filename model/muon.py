"""Muon: momentum, made orthogonal, for the matrices of a model's blocks; AdamW for everything else.

A gradient of a matrix is dominated by a few directions. Muon gives all of them the same length: instead of the momentum
U S V' it takes U V', so directions that AdamW hardly moves are learned too. Keller Jordan and others, "Muon: An
optimizer for hidden layers in neural networks", 2024. Embeddings, norms and biases are no such maps and stay AdamW's.

`torch.optim.Muon` is the same for one group of matrices, but rounds to bfloat16, for which most CPUs have no
instructions: a step of pocket took ten times as long with it.
"""

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from model.lora import blocks_of

MOMENTUM = 0.95
# The root mean square of an update, of lr. AdamW's is about 0.2, and with it one learning rate would serve both; on
# matrices from scratch two and a half times as much learns faster.
UPDATE_RMS = 0.5
# Of the quintic a x + b x^3 + c x^5, whose fifth iterate takes singular values of 0.001 to 1 near to 1.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.AdamW):
    """AdamW over `groups`, except for the matrices among them that are `hidden`: those take Muon's step."""

    def __init__(self, groups: list[dict], hidden: list[Parameter], lr: float):
        super().__init__(groups, lr=lr, fused=True)
        self.hidden = set(hidden)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: a step's loss is computed once
        """Nothing changes where the guard or the scaler has set `found_inf`; nothing waits to see whether it did."""
        skipped = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight in self.hidden and weight.grad is not None:
                    self._orthogonal_step(weight, group, skipped)
                    weight.grad = None  # AdamW passes it by
        super().step()

    def _orthogonal_step(self, weight: Parameter, group: dict, skipped: Tensor | None) -> None:
        state = self.state[weight]
        before = state.get("momentum")
        before = torch.zeros_like(weight) if before is None else before
        momentum = before.lerp(weight.grad, 1 - MOMENTUM)
        update = orthogonal(weight.grad.lerp(momentum, MOMENTUM))  # Nesterov's: a step ahead
        # An orthogonal matrix of m x n has a root mean square of 1 / sqrt(max(m, n)).
        length = UPDATE_RMS * max(weight.shape) ** 0.5
        new = weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * length * update
        if skipped is not None:
            momentum, new = torch.where(skipped > 0, before, momentum), torch.where(skipped > 0, weight, new)
        state["momentum"] = momentum
        weight.copy_(new)


def hidden_matrices(model: PreTrainedModel) -> list[Parameter]:
    """The trained matrices of the blocks; with adapters theirs."""
    return [p for block in blocks_of(model) for p in block.parameters() if p.ndim == 2 and p.requires_grad]


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V' of `matrix` (m, n) = U S V', with singular values between 0.7 and 1.2, by Newton and Schulz.

    Each iteration multiplies X by a polynomial of X X', whose side is the shorter of m and n. So it is enough to
    iterate on that, and to multiply X at the end: a third less work on pocket's matrices, the same to four digits.
    """
    (a, b, c), tall = QUINTIC, matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    gram, product = x @ x.T, torch.eye(x.size(0), dtype=x.dtype, device=x.device)
    for _ in range(ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        factor.diagonal().add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    x = product @ x
    return x.T if tall else x
