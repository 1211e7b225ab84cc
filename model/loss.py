"""The loss of a flat micro-batch: cross entropy of its supervised tokens. Only rows that predict one reach the head.

`summed_loss` is what is trained with, `plain_loss` says what it computes, and `check_flat_loss` compares the two.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from model.attention import Segments, use_flat_attention
from model.cross_entropy import linear_cross_entropy
from model.errors import UnsupportedModel

ABOUT_PRECISION = (
    "Try --precision fp32, or bf16 on a card that has it (RTX 30 and newer); else choose another checkpoint."
)


def plain_loss(model: PreTrainedModel, batch) -> Tensor:
    """What `summed_loss` computes, as it is usually written: one record after the other, with all their logits.

    Takes the same `batch`, and returns the same sum of -ln p(token) over the supervised tokens, (), fp64, in nats.
    Expects a model whose attention is the ordinary one ("sdpa"), as it is loaded.
    """
    labels = torch.full_like(batch.ids, -100)  # (T,): for each place the token to predict; -100: not supervised
    labels[batch.rows] = batch.targets
    loss = torch.zeros((), dtype=torch.float64, device=batch.ids.device)
    for ids, targets in zip(batch.ids.split(batch.lengths), labels.split(batch.lengths), strict=True):
        logits = model(ids[None], use_cache=False).logits[0]  # (length, V)
        loss = loss + cross_entropy(logits, targets, reduction="sum")
    return loss


def summed_loss(model: PreTrainedModel, batch, device_type: str = "") -> Tensor:
    """Sum over the supervised tokens of a flat micro-batch of -ln p(token); a 0-dim fp64 tensor, in nats.

    `batch` has `ids`, `position_ids` and `slot` (T,), `lengths` (n,), `rows` (S,): the places whose next token is
    supervised, and `targets` (S,): those tokens. `use_cache` stays off: with a cache the segments would see one
    another, which hardly moves the loss but turns the gradients. `device_type`: as `linear_cross_entropy` takes it.
    """
    rows = flat_hidden(model, batch).index_select(0, batch.rows)  # its gradient adds; that of hidden[rows] sorts first
    return linear_cross_entropy(*head_of(model, rows), batch.targets, device_type=device_type)


def flat_hidden(model: PreTrainedModel, batch) -> Tensor:
    """The last hidden states of a flat micro-batch, (T, d)."""
    segments = Segments(batch.slot, len(batch.lengths), max(batch.lengths))
    output = model.base_model(
        input_ids=batch.ids[None], position_ids=batch.position_ids[None], segments=segments, use_cache=False
    )
    return output.last_hidden_state.squeeze(0)


@torch.no_grad()
def check_flat_loss(model: PreTrainedModel, batch, name: str) -> None:
    """Compute a few records both ways, and refuse the model when the flat batch does not give what they give alone.

    Says for any architecture what no list of names could: a head with a bias, sinks in the attention, recurrent state
    that runs over the border of two records. Raises `UnsupportedModel`.
    """
    alone = plain_loss(model, batch)
    exact = not torch.is_autocast_enabled(batch.ids.device.type)
    if not alone.isfinite():
        advice = "Choose another checkpoint." if exact else ABOUT_PRECISION
        raise UnsupportedModel(f"{name}: with these weights the loss is not finite. {advice}")
    first, *others = batch.ids.split(batch.lengths)
    with_another_first = replace(batch, ids=torch.cat([first.flip(0), *others]))
    right, before = False, model.config._attn_implementation
    # Whatever such a model raises, it has not computed the loss.
    with suppress(TypeError, ValueError, RuntimeError, AttributeError):
        use_flat_attention(model)
        if model.config._attn_implementation == "flat":  # some architectures only warn that they cannot
            same = flat_hidden(model, batch)[len(first) :]
            separate = torch.equal(same, flat_hidden(model, with_another_first)[len(first) :])
            right = separate and torch.isclose(summed_loss(model, batch), alone, rtol=1e-3 if exact else 1e-2).item()
    model.set_attn_implementation(before)
    if not right:
        raise UnsupportedModel(
            f"{name} ({model.config.model_type}) does not compute the same on a flat batch as on each record alone, "
            "so it would be trained wrongly. GPT-2, Llama, Qwen2 and Mistral work, and many models like them."
        )


@torch.no_grad()
def check_precision(model: PreTrainedModel, batches: list, name: str, precision: str) -> None:
    """Raises `UnsupportedModel` when the loss of flat `batches`, computed as they will be, is not finite."""
    if not all(summed_loss(model, batch).isfinite() for batch in batches):
        raise UnsupportedModel(f"{name} overflows in {precision}. {ABOUT_PRECISION}")


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
