"""LoRA by hand: the weights stay as they are, and each linear layer learns a correction of low rank beside them.

    y = W x + b + s B A x        A (r, in), B (out, r), s = alpha / r, or alpha / sqrt(r) for rsLoRA

B starts at zero, so training starts from the base model itself. Only A and B have gradients and optimizer state:
for r = 8 about 0.7 % of DistilGPT-2. Hu et al., "LoRA", 2021; Kalajdzievski, "rsLoRA", 2023.

`wrap` puts the layers in, `merge` adds s B A to W and takes them out, `unwrap` takes them out and leaves W alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from model.errors import UnsupportedModel


@dataclass(frozen=True)
class Lora:
    """`targets` are module names or the ends of them ("q_proj", "mlp.c_fc"); none: every linear layer of the blocks."""

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ()

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)


class LoraLinear(nn.Module):
    """A frozen linear layer (`nn.Linear`, GPT-2's `Conv1D`, a 4-bit one) with its correction; A and B are fp32."""

    def __init__(self, base: nn.Linear | Conv1D, lora: Lora):
        super().__init__()
        self.base, self.lora = base, lora
        inputs, outputs = (base.nx, base.nf) if isinstance(base, Conv1D) else (base.in_features, base.out_features)
        self.lora_A = nn.Parameter(torch.empty(lora.r, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, lora.r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear, and peft, draw it

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        # W is frozen, so x is kept for the backward pass once, for A; W x itself and s B A x are kept nowhere.
        y = self.base(x)
        low = linear(dropout(x, self.lora.dropout, self.training), self.lora_A)  # (..., r)
        flat = torch.addmm(
            y.reshape(-1, y.shape[-1]), low.reshape(-1, self.lora.r).to(y.dtype), self.lora_B.T.to(y.dtype),
            alpha=self.lora.scaling,
        )  # fmt: skip
        return flat.view(y.shape)


def wrap(model: PreTrainedModel, lora: Lora, seed: int = 0) -> list[str]:
    """Freeze `model` and put a `LoraLinear` around each targeted layer; returns their names. `seed` draws A.

    Raises `UnsupportedModel` when nothing matches, or when the head would.
    """
    if lora_layers(model):
        raise UnsupportedModel("The model has an adapter already: merge it or take it out first.")
    if not lora.targets:  # ("attn.c_attn", "mlp.c_fc", ...) for GPT-2
        in_blocks = dict.fromkeys(name for block in blocks_of(model) for name in linear_layers(block))
        lora = replace(lora, targets=tuple(in_blocks))
    names, head = matching(model, lora.targets), model.get_output_embeddings()
    choice = sorted({n.rpartition(".")[2] for n in linear_layers(model) if model.get_submodule(n) is not head})
    if heads := [name for name in names if model.get_submodule(name) is head]:
        raise UnsupportedModel(
            f"The head ({heads[0]}) takes no adapter: it is tied to the embeddings or belongs to the chunked loss. "
            f"Choose among {', '.join(choice)}."
        )
    if missing := [target for target in lora.targets if not matching(model, (target,))]:
        raise UnsupportedModel(f"No linear layer is called {', '.join(missing)}. The names are {', '.join(choice)}.")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            base = model.get_submodule(name)
            model.set_submodule(name, LoraLinear(base, lora).train(base.training).to(base.weight.device))
    return names


def unwrap(model: PreTrainedModel) -> None:
    """Take the adapter out: the base model is back as it was."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base)


@torch.no_grad()
def merge(model: PreTrainedModel) -> None:
    """W <- W + s B A for every adapted layer, summed in fp32, then take the adapter out.

    Raises `UnsupportedModel` for 4-bit layers: a merged weight would have to be rounded to 4 bits again.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        if not layer.base.weight.is_floating_point():
            raise UnsupportedModel(f"{name} has 4-bit weights: merge the adapter into the full-precision base instead.")
    for layer in layers.values():
        weight, change = layer.base.weight, layer.lora.scaling * (layer.lora_B @ layer.lora_A)  # (out, in)
        if isinstance(layer.base, Conv1D):
            change = change.T  # its weight is (in, out)
        weight.copy_(weight.float() + change)
    unwrap(model)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by the names that they have in the base model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def linear_layers(model: nn.Module) -> list[str]:
    """The names of all layers that could be adapted, the head included."""
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def matching(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """The linear layers that are called so, or whose names end so at a dot: as peft matches them."""
    ends = tuple(f".{target}" for target in targets)
    return [name for name in linear_layers(model) if f".{name}".endswith(ends)]


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks, one after the other. Raises `UnsupportedModel` when there are none."""
    blocks = next((m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)), None)
    if blocks is None:
        raise UnsupportedModel(f"{type(model).__name__} has no blocks that could be adapted or divided.")
    return blocks
