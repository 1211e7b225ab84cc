"""The head and the cross entropy as one function of the last hidden states, which never holds all of the logits.

The head of a small model is its largest matrix: 4,096 tokens of DistilGPT-2 have 4,096 x 50,257 logits, 820 MB in
fp32, and as much again for their gradient. Here a chunk of rows at a time reaches the head, and since

    d loss / d logits = softmax(logits) - onehot(target)

each chunk's gradients are made while its logits are still at hand. They are kept unscaled: entries of
softmax - onehot are at most 1, while the same numbers divided by thousands of tokens would vanish in fp16. The scale
(loss scale / tokens) arrives with backward and is applied in fp32.

A CPU and a GPU want the logits in other shapes, so there are two ways to the same numbers: `by_tiles` and `by_rows`.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from model.linear import times_transposed, transposed_times

# 512 x 50,257 fp32 logits are 103 MB. On a CPU more rows were not faster; a GPU reads and writes the head's gradient
# once for each chunk.
CHUNK_ROWS = {"cpu": 512, "cuda": 1024}
CPU_TILE = 2048  # of the vocabulary: 512 x 2,048 logits are 4 MB, which stay in a CPU's cache from kernel to kernel
ALIGNED = 64  # half-precision matrices whose sides are no multiple of it get the slow kernels of a GPU


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int = 0, device_type: str = ""
) -> Tensor:
    """Sum of `cross_entropy(hidden @ weight.T, targets)`: `hidden` (S, d), `weight` (V, d), `targets` (S,) -> ().

    fp64, in nats. `device_type`: computed as on a "cpu" or on "cuda"; by default as on the device where it is.
    """
    device_type = device_type or hidden.device.type
    chunk_rows = chunk_rows or CHUNK_ROWS[device_type]
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_rows, device_type, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, device_type: str, with_grad: bool
    ) -> Tensor:
        here = hidden.device.type
        dtype = torch.get_autocast_dtype(here) if torch.is_autocast_enabled(here) else weight.dtype
        wanted = [with_grad and needed for needed in ctx.needs_input_grad[:2]]
        compute = by_rows if device_type == "cuda" else by_tiles
        with torch.autocast(here, enabled=False):
            loss, d_hidden, d_weight = compute(hidden, weight, dtype, targets, chunk_rows, *wanted)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.hidden_dtype = hidden.dtype
        return loss

    @staticmethod
    def backward(ctx, d_loss: Tensor):
        d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = (d_hidden * d_loss).to(ctx.hidden_dtype)
        if d_weight is not None:
            d_weight *= d_loss  # in place: the largest gradient of the model exists once
        return d_hidden, d_weight, None, None, None, None


def by_tiles(
    hidden: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    targets: Tensor,
    chunk_rows: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """For a CPU. Products in `dtype` -> the loss, and its gradients by `hidden` and `weight` in fp32, or None where
    they are not wanted.

    A chunk's logits lie as (V, chunk) and are made tile by tile of the vocabulary, each with its own maximum; their
    sum over all tiles then turns each into probabilities (Milakov and Gimelshein, "Online normalizer calculation for
    softmax", 2018).
    """
    loss = hidden.new_zeros((), dtype=torch.float64)  # thousands of terms: fp32 would lose the seventh digit
    d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
    d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
    head = weight.to(dtype)
    tiles = [slice(start, min(start + CPU_TILE, len(head))) for start in range(0, len(head), CPU_TILE)]
    buffer = hidden.new_empty(len(head) * min(chunk_rows, len(hidden)), dtype=torch.float32)
    for start in range(0, len(hidden), chunk_rows):
        chunk = slice(start, start + chunk_rows)
        rows, target = hidden[chunk].to(dtype), targets[chunk]
        logits = buffer[: len(head) * len(rows)].view(-1, len(rows))  # (V, chunk)
        highest, sums, target_logit = [], [], torch.zeros_like(target, dtype=torch.float32)
        for tile in tiles:
            part = logits[tile].copy_(times_transposed(head[tile], rows))
            place, here = place_in(tile, target)
            target_logit += torch.where(here, part.gather(0, place)[0], 0.0)
            highest.append(part.amax(dim=0))
            part -= highest[-1]
            sums.append(part.exp_().sum(dim=0))
        log_total = torch.logsumexp(torch.stack(highest) + torch.stack(sums).log(), dim=0)
        loss += (log_total - target_logit).sum(dtype=torch.float64)
        if not (wants_hidden or wants_weight):
            continue
        columns = rows.T.contiguous()
        for tile, tile_highest in zip(tiles, highest, strict=True):
            p = logits[tile].mul_((tile_highest - log_total).exp_())  # exp(logit - highest) -> softmax
            place, here = place_in(tile, target)
            p.scatter_add_(0, place, -here[None].float())
            d_logits = p.to(dtype)
            if wants_hidden:
                d_hidden[chunk] += transposed_times(d_logits, head[tile])
            if wants_weight:
                d_weight[tile] += times_transposed(d_logits, columns)
    return loss, d_hidden, d_weight


def place_in(tile: slice, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a tile of the vocabulary where `targets` (S,) stand, (1, S), and which of them do stand in it, (S,).

    Those that do not have some row of the tile.
    """
    here = (targets >= tile.start) & (targets < tile.stop)
    return (targets - tile.start).clamp(0, tile.stop - tile.start - 1)[None], here


def by_rows(
    hidden: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    targets: Tensor,
    chunk_rows: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """For a GPU, which is kept waiting by every pass over the logits: one product, one maximum, one softmax. Arguments
    and results are those of `by_tiles`.

    Vocabulary and rows are filled up to multiples of 64, the first by logits of -inf, the rows by zeros, which add
    nothing to the head's gradient. Nothing here waits for the device.
    """
    vocabulary, head = len(weight), aligned(weight, dtype)  # (V', d)
    loss = hidden.new_zeros((), dtype=torch.float64)
    d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
    d_head = torch.zeros_like(head, dtype=torch.float32) if wants_weight else None
    for start in range(0, len(hidden), chunk_rows):
        chunk = slice(start, min(start + chunk_rows, len(hidden)))
        count, rows = chunk.stop - start, aligned(hidden[chunk], dtype)  # (n', d)
        target = pad(targets[chunk], (0, len(rows) - count))[:, None]
        logits = product(rows, head.T)  # (n', V')
        logits[:, vocabulary:] = -torch.inf
        highest, place = logits.max(dim=1, keepdim=True)
        p = logits.softmax(dim=1)
        log_total = highest - p.gather(1, place).log()  # p is at least 1 / V there
        loss += (log_total - logits.gather(1, target))[:count].sum(dtype=torch.float64)
        del logits
        if not (wants_hidden or wants_weight):
            continue
        p.scatter_add_(1, target, torch.full_like(highest, -1.0))
        d_logits = p.to(dtype)
        del p
        if wants_hidden:
            d_hidden[chunk] = product(d_logits, head)[:count]
        if wants_weight:
            d_head += product(d_logits.T, rows)
        del d_logits  # before the logits of the next chunk come
    return loss, d_hidden, d_head[:vocabulary] if wants_weight else None


def aligned(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """(m, d) in `dtype`, with zero rows below up to a multiple of 64; one copy, or none where nothing changes."""
    missing = -len(matrix) % ALIGNED
    if not missing:
        return matrix.to(dtype)
    filled = matrix.new_zeros(len(matrix) + missing, matrix.shape[1], dtype=dtype)
    filled[: len(matrix)] = matrix
    return filled


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a` (m, k) times `b` (k, n) -> (m, n) in fp32, as the kernels of a GPU sum it up. Rounded to half precision,
    logits of -100 would be 0.06 apart, and a sum over a chunk could overflow where no loss scale can help."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()
