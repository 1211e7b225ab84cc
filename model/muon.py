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

MOMENTUM = (
    0.8  # 0.95 is for longer trainings: after 700 steps of pocket 93 % of the facts are right with it, with 0.8 96 %
)
# The root mean square of an update, of lr. AdamW's is about 0.2, and with it one learning rate would serve both; on
# matrices from scratch two and a half times as much learns faster.
UPDATE_RMS = 0.5
# Of the quintic a x + b x^3 + c x^5, whose fourth iterate takes singular values of 0.01 to 1 near to 1.
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 4
STACKED = 600_000  # numbers of X X' that are iterated on at once: one product of small matrices leaves a core idle


class Muon(torch.optim.AdamW):
    """AdamW over `groups`, except for the matrices among them that are `hidden`: those take Muon's step."""

    def __init__(self, groups: list[dict], hidden: list[Parameter], lr: float):
        super().__init__(groups, lr=lr, fused=True)
        self.hidden = set(hidden)
        self.stacks = [
            (group, stack)
            for group in self.param_groups
            for stack in stacked([weight for weight in group["params"] if weight in self.hidden])
        ]

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: a step's loss is computed once
        """Nothing changes where the guard or the scaler has set `found_inf`; nothing waits to see whether it did."""
        skipped = getattr(self, "found_inf", None)
        for group, stack in self.stacks:
            if with_gradient := [weight for weight in stack if weight.grad is not None]:
                self._orthogonal_step(with_gradient, group, skipped)
        super().step()  # which passes by what has no gradient left

    def _orthogonal_step(self, stack: list[Parameter], group: dict, skipped: Tensor | None) -> None:
        before = [self.state[weight].get("momentum", torch.zeros_like(weight)) for weight in stack]
        after = [old.lerp(weight.grad, 1 - MOMENTUM) for old, weight in zip(before, stack, strict=True)]
        # Nesterov's: a step ahead
        ahead = [weight.grad.lerp(momentum, MOMENTUM) for weight, momentum in zip(stack, after, strict=True)]
        for weight, old, momentum, update in zip(stack, before, after, orthogonal(ahead), strict=True):
            # An orthogonal matrix of m x n has a root mean square of 1 / sqrt(max(m, n)).
            length = UPDATE_RMS * max(weight.shape) ** 0.5
            new = weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * length * update
            if skipped is not None:
                momentum, new = torch.where(skipped > 0, old, momentum), torch.where(skipped > 0, weight, new)
            self.state[weight]["momentum"] = momentum
            weight.copy_(new)
            weight.grad = None


def hidden_matrices(model: PreTrainedModel) -> list[Parameter]:
    """The trained matrices of the blocks; with adapters theirs."""
    return [p for block in blocks_of(model) for p in block.parameters() if p.ndim == 2 and p.requires_grad]


def stacked(matrices: list[Parameter]) -> list[list[Parameter]]:
    """The matrices in groups whose shorter sides are the same, small ones together: all twelve of pocket's."""
    by_side: dict[int, list[Parameter]] = {}
    for matrix in matrices:
        by_side.setdefault(min(matrix.shape), []).append(matrix)
    stacks = []
    for side, same in by_side.items():
        count = max(1, STACKED // side**2)
        stacks += [same[i : i + count] for i in range(0, len(same), count)]
    return stacks


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """About U V' of each matrix (m, n) = U S V', with singular values between 0.7 and 1.2, by Newton and Schulz.

    Each iteration multiplies X by a polynomial of X X', whose side is the shorter of m and n. So it is enough to
    iterate on that, for all matrices at once where that side is the same, and to multiply X at the end.
    """
    a, b, c = QUINTIC
    wide = [matrix.T if matrix.size(0) > matrix.size(1) else matrix for matrix in matrices]
    wide = [x / x.norm().clamp(min=1e-7) for x in wide]
    gram, product = torch.stack([x @ x.T for x in wide]), None  # (matrices, shorter side, shorter side)
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if iteration < ITERATIONS - 1:
            gram = factor @ gram @ factor
    found = [p @ x for p, x in zip(product, wide, strict=True)]
    return [x.T if m.size(0) > m.size(1) else x for x, m in zip(found, matrices, strict=True)]
