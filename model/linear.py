"""Matrix products on a CPU by oneDNN, where MKL, to which torch hands them, is slow. In fp32.

Of many rows, in training, on a CPU that Intel did not make: MKL leaves AVX-512 aside, and oneDNN, to which convolutions
go, uses it: twice the FLOP/s on a Zen 5. So the linear layers of a model and the head in the loss compute their three
products, forward and backward, as convolutions with a 1 x 1 kernel over the tokens.

Of a few rows, when answers are written: weights that do not change any more can be laid out once in the blocks in which
oneDNN reads them, as torch's own compiler does when it freezes a model. A product of one row then takes as long as
reading the weights, and one of sixteen half as long again; MKL takes three and five times as long (docs/LOG.md).
"""

import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight
from transformers.pytorch_utils import Conv1D

FEWEST_ROWS = 256  # below, oneDNN has too little to share out among the threads, and MKL is as fast
# Of a matrix; below, the kernel that oneDNN compiles for each new shape costs what it saves. Those kernels, half a
# megabyte each, also come to lie among blocks that a step frees, which then no longer join: the process grows.
FEWEST_WEIGHTS = 2**19
# Of packed weights: up to MOST_ROWS at once, above SHAPES_APART in multiples of it, since each new number of rows takes
# 7 ms and 0.7 MB for a kernel of its own.
MOST_ROWS, SHAPES_APART = 256, 32
SUMMED_ROWS = 16  # its kernel for a product that sums over the rows is four times slower when they are no multiple


@cache
def is_amd() -> bool:
    """Told by its name and not by a stopwatch: a resumed run must get the same."""
    vendor = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else platform.processor()
    return "AuthenticAMD" in vendor


@cache
def onednn_is_faster() -> bool:
    """On an AMD processor with AVX-512."""
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return is_amd() and has_avx512 and torch.backends.mkldnn.is_available()


def by_onednn(a: Tensor, columns: int) -> bool:
    """Whether a product of `a` (rows, k) with `columns` others goes to oneDNN; not those of a few rows or of a small
    matrix, (k, columns), nor half precision, nor on a GPU."""
    is_large = len(a) >= FEWEST_ROWS and a.shape[1] * columns >= FEWEST_WEIGHTS
    return is_large and a.device.type == "cpu" and a.dtype == torch.float32 and onednn_is_faster()


def as_image(rows: Tensor) -> Tensor:
    """`(T, c)` -> `(1, c, T, 1)` in channels-last order, the order that it has: nothing is copied."""
    return rows.contiguous().view(1, len(rows), 1, -1).permute(0, 3, 1, 2)


def times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """`a` (m, k) times the transpose of `b` (n, k), plus `bias` (n,) -> (m, n)."""
    if not by_onednn(a, len(b)):
        return F.linear(a, b, bias)
    return F.conv2d(as_image(a), b[:, :, None, None], bias).permute(0, 2, 3, 1).view(len(a), -1)


def transposed_times(a: Tensor, b: Tensor) -> Tensor:
    """The transpose of `a` (m, k) times `b` (m, n) -> (k, n)."""
    if not by_onednn(a, b.shape[1]):
        return a.T @ b
    most = len(a) // SUMMED_ROWS * SUMMED_ROWS
    kernel = (a.shape[1], b.shape[1], 1, 1)
    product = conv2d_weight(as_image(b[:most]), kernel, as_image(a[:most]))[:, :, 0, 0]
    return product.addmm_(a[most:].T, b[most:])  # the last few by MKL


class OneDnnProduct(torch.autograd.Function):
    """`x` (T, in), `weight` (out, in), `bias` (out,) or None -> (T, out), and the gradients of all three."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)  # W is frozen under LoRA
        ctx.is_transposed = not weight.is_contiguous()  # Conv1D keeps it the other way round
        return times_transposed(x, weight, bias)

    @staticmethod
    def backward(ctx, d_y: Tensor):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_y = d_y.contiguous()
        d_x = times_transposed(d_y, weight.T) if wants_x else None
        d_weight = None
        if wants_weight:
            d_weight = transposed_times(x, d_y).T if ctx.is_transposed else transposed_times(d_y, x)
        return d_x, d_weight, d_y.sum(dim=0) if wants_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (..., in), `weight` (out, in) -> (..., out), as `torch.nn.functional.linear`."""
    rows = x.reshape(-1, x.shape[-1])
    if not by_onednn(rows, len(weight)) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return OneDnnProduct.apply(rows, weight, bias).view(*x.shape[:-1], -1)


class OneDnnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class OneDnnConv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Every `nn.Linear` and `Conv1D` of `model` computes by `linear` from here on, if that is faster here.

    Names, weights and what is saved stay as they are. To be called before the first step.
    """
    if not onednn_is_faster():
        return
    # oneDNN keeps a compiled kernel of some megabytes for each shape. Flat batches have a new shape in every step, and
    # all that can be used again is used again within a micro-batch.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "48")
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
        elif type(module) is Conv1D:
            module.__class__ = OneDnnConv1D


def packing_helps(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()


def laid_out(weight: Tensor) -> Tensor | None:
    """A second copy of `weight` (out, in), laid out in the blocks in which oneDNN reads it; None where it has none."""
    fits = packing_helps(weight.device, weight.dtype)
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), MOST_ROWS) if fits else None


def by_packed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """`x` (..., in) times the transpose of a weight that is `laid_out`, plus `bias` -> (..., out), without gradients;
    None where that is not the way: of many rows, in half precision, and without such a weight."""
    if weight is None or torch.is_grad_enabled() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    count = x.numel() // x.shape[-1]
    if count > MOST_ROWS:
        return None
    if count <= SHAPES_APART:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    rows = F.pad(x.reshape(count, -1), (0, 0, 0, -count % SHAPES_APART))
    y = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return y[:count].view(*x.shape[:-1], -1)


class PackedLinear(nn.Linear):
    packed: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        y = by_packed(x, self.packed, self.bias)
        return super().forward(x) if y is None else y


class PackedConv1D(Conv1D):
    packed: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        y = by_packed(x, self.packed, self.bias)
        return super().forward(x) if y is None else y


def pack(model: nn.Module) -> None:
    """For a model on a CPU that writes answers and is not trained any more: every `nn.Linear` and `Conv1D` keeps its
    weights a second time, `laid_out`. Names, weights and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__, module.packed = PackedLinear, laid_out(module.weight)
        elif type(module) is Conv1D:
            module.__class__, module.packed = PackedConv1D, laid_out(module.weight.T)  # type: ignore[arg-type]  # a Tensor
