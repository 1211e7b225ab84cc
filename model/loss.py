"""The loss: cross entropy of the supervised tokens, without ever holding the logits of a whole batch.

The head of a small model is its largest matrix: 4,096 tokens of DistilGPT-2 have 4,096 x 50,257 logits, 820 MB in
fp32, and as much again for their gradient. Here only the rows that predict a supervised token reach the head, a chunk
of them at a time, and each chunk's gradients are made while its logits are still at hand.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from model.attention import segments_of, use_flat_attention
from model.errors import UnsupportedModel
from model.linear import times_transposed, transposed_times

CHUNK_ROWS = 512  # 512 x 50,257 fp32 logits are 103 MB; larger chunks were not faster
CPU_TILE = 2048  # of the vocabulary: 512 x 2,048 logits are 4 MB, which stay in a CPU's cache from kernel to kernel


def plain_loss(model: PreTrainedModel, batch) -> Tensor:
    """What `summed_loss` computes, as it is usually written: one record after the other, with all their logits.

    Takes the same `batch`, and returns the same sum of -ln p(token) over the supervised tokens, (), fp64, in nats.
    Expects a model whose attention is the ordinary one ("sdpa"), as it is loaded and after `use_padded_attention`.
    """
    labels = torch.full_like(batch.ids, -100)  # (T,): for each place the token to predict; -100: not supervised
    labels[batch.rows] = batch.targets
    loss = torch.zeros((), dtype=torch.float64, device=batch.ids.device)
    for ids, targets in zip(batch.ids.split(batch.lengths), labels.split(batch.lengths), strict=True):
        logits = model(ids[None], use_cache=False).logits[0]  # (length, V)
        loss = loss + cross_entropy(logits, targets, reduction="sum")
    return loss


def summed_loss(model: PreTrainedModel, batch) -> Tensor:
    """Sum over the supervised tokens of a flat micro-batch of -ln p(token); a 0-dim fp64 tensor, in nats.

    `batch` has `ids` and `position_ids` (T,), `lengths` (n,), `rows` (S,): the places whose next token is supervised,
    and `targets` (S,): those tokens. `use_cache` stays off: with a cache the segments would see one another, which
    hardly moves the loss but turns the gradients.
    """
    hidden = flat_hidden(model, batch)
    return linear_cross_entropy(*head_of(model, hidden[batch.rows]), batch.targets)


def flat_hidden(model: PreTrainedModel, batch) -> Tensor:
    """The last hidden states of a flat micro-batch, (T, d)."""
    segments = segments_of(batch.lengths, batch.position_ids)
    output = model.base_model(
        input_ids=batch.ids[None], position_ids=batch.position_ids[None], segments=segments, use_cache=False
    )
    return output.last_hidden_state[0]


@torch.no_grad()
def check_flat_loss(model: PreTrainedModel, batch, name: str) -> None:
    """Compute a few records both ways, and refuse the model when the flat batch does not give what they give alone.

    Says for any architecture what no list of names could: a head with a bias, sinks in the attention, recurrent state
    that runs over the border of two records. Raises `UnsupportedModel`.
    """
    alone = plain_loss(model, batch)
    if not alone.isfinite():
        raise UnsupportedModel(f"{name}: with these weights the loss is not finite. Choose another checkpoint.")
    first, *others = batch.ids.split(batch.lengths)
    with_another_first = replace(batch, ids=torch.cat([first.flip(0), *others]))
    right, before = False, model.config._attn_implementation
    # Whatever such a model raises, it has not computed the loss.
    with suppress(TypeError, ValueError, RuntimeError, AttributeError):
        use_flat_attention(model)
        if model.config._attn_implementation == "flat":  # some architectures only warn that they cannot
            same = flat_hidden(model, batch)[len(first) :]
            separate = torch.equal(same, flat_hidden(model, with_another_first)[len(first) :])
            right = separate and torch.isclose(summed_loss(model, batch), alone, rtol=1e-3).item()
    model.set_attn_implementation(before)
    if not right:
        raise UnsupportedModel(
            f"{name} ({model.config.model_type}) does not compute the same on a flat batch as on each record alone, "
            "so it would be trained wrongly. GPT-2, Llama, Qwen2 and Mistral work, and many models like them."
        )


def head_of(model: PreTrainedModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """`hidden` (S, d) -> what the head multiplies: rows (S, d) and its weight (V, d). A bias is one more column."""
    head = model.get_output_embeddings()
    if model.config.model_type == "bert":
        hidden = model.cls.predictions.transform(hidden)
    if head.bias is None:
        return hidden, head.weight
    return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1), torch.cat([head.weight, head.bias[:, None]], 1)


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: list, loss_of: Callable = summed_loss) -> float:
    """Nats per supervised token over flat batches: sums and counts, so that every token weighs the same."""
    total = sum(loss_of(model, batch.to(model.device)) for batch in batches)
    return float(total) / max(1, sum(len(batch.targets) for batch in batches))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int = CHUNK_ROWS) -> Tensor:
    """Sum of `cross_entropy(hidden @ weight.T, targets)`: `hidden` (S, d), `weight` (V, d), `targets` (S,) -> ()."""
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_rows, torch.is_grad_enabled())


def place_in(tile: slice, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a tile of the vocabulary where `targets` (S,) stand, (1, S), and which of them do stand in it, (S,).

    Those that do not have some row of the tile: to pick them out by a mask would make a GPU wait.
    """
    here = (targets >= tile.start) & (targets < tile.stop)
    return (targets - tile.start).clamp(0, tile.stop - tile.start - 1)[None], here


class _LinearCrossEntropy(torch.autograd.Function):
    """d loss / d logits = softmax(logits) - onehot(target), so the gradients are known as soon as the logits are.

    They are kept unscaled: entries of softmax - onehot are at most 1, while the same numbers divided by thousands of
    tokens would vanish in fp16. The scale (loss scale / tokens) arrives with backward and is applied in fp32.

    A chunk's logits lie as (V, chunk) and are made tile by tile of the vocabulary, each with its own maximum; their
    sum over all tiles then turns each into probabilities (Milakov and Gimelshein, "Online normalizer calculation for
    softmax", 2018). On a GPU one tile is the whole vocabulary.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int, with_grad: bool) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wants_hidden, wants_weight = (with_grad and needed for needed in ctx.needs_input_grad[:2])
        loss = hidden.new_zeros((), dtype=torch.float64)  # thousands of terms: fp32 would lose the seventh digit
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        tile_rows = CPU_TILE if device == "cpu" else len(weight)
        tiles = [slice(start, min(start + tile_rows, len(weight))) for start in range(0, len(weight), tile_rows)]

        with torch.autocast(device, enabled=False):
            head = weight.to(dtype)
            buffer = hidden.new_empty(len(weight) * min(chunk_rows, len(hidden)), dtype=torch.float32)
            for start in range(0, len(hidden), chunk_rows):
                chunk = slice(start, start + chunk_rows)
                rows, target = hidden[chunk].to(dtype), targets[chunk]
                logits = buffer[: len(weight) * len(rows)].view(-1, len(rows))  # (V, chunk)
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
        return d_hidden, d_weight, None, None, None
