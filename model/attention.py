"""Flat attention: the records of a micro-batch lie end to end, and only attention sees where each one stops.

Everything outside attention (embeddings, linear layers, norms, loss) works on `(T, d)` rows of real tokens. Inside
attention the segments are laid out on a grid as wide as the longest one,

    ids        a b c | d e | f g h i          T = 9, lengths = [3, 2, 4]
    grid       a b c .                         n = 3, L = 4
               d e . .
               f g h i

and go through the ordinary causal kernel. The empty places are to the right of every real token, where a causal query
never looks, so no mask exists, and the kernel that needs no mask is the one that older cards have too.

transformers calls this function in every layer through its public registry of attention functions.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel


class Segments(NamedTuple):
    """Where each token of a flat micro-batch stands on the attention grid."""

    slot: Tensor  # (T,) int64: row * longest + position; made with the batch, on the host (text/batch.py)
    records: int  # n
    longest: int  # L, the width of the grid


def flat_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, T, head_dim)
    key: Tensor,  # (1, kv_heads, T, head_dim)
    value: Tensor,  # (1, kv_heads, T, head_dim)
    attention_mask: None,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    s_aux: None = None,
    softcap: None = None,
    **_unused,
) -> tuple[Tensor, None]:
    """Causal attention within each segment. Returns `(1, T, heads, head_dim)`, as transformers expects it.

    Raises `ValueError` for attention sinks and capped scores, which the kernel does not know.
    """
    if s_aux is not None or softcap is not None:
        raise ValueError("flat attention has neither sinks nor capped scores")
    heads, kv_heads = query.shape[1], key.shape[1]
    # Rotary positions leave fp32 even where the kernel computes in half precision: cast before the copies, not after.
    query, key = query.to(value.dtype), key.to(value.dtype)
    key, value = (x.repeat_interleave(heads // kv_heads, dim=1) if kv_heads < heads else x for x in (key, value))
    query, key, value = (to_grid(x, segments) for x in (query, key, value))
    on_grid = scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scaling,
        dropout_p=dropout if module.training else 0.0,
    )
    rows = on_grid.transpose(1, 2).flatten(0, 1)  # (n * L, heads, head_dim)
    return (rows if segments.records == 1 else rows.index_select(0, segments.slot))[None], None


def to_grid(x: Tensor, segments: Segments) -> Tensor:
    """`(1, heads, T, head_dim)` -> `(n, heads, L, head_dim)`, zeros to the right of each segment."""
    slot, count, longest = segments
    if count == 1:
        return x
    rows = x.squeeze(0).transpose(0, 1)  # (T, heads, head_dim); the gradient of x[0] would be a zeroed copy
    grid = rows.new_zeros(count * longest, *rows.shape[1:]).index_copy_(0, slot, rows)
    return grid.view(count, longest, *rows.shape[1:]).transpose(1, 2)


# In the registry of attention functions alone: for a name that its registry of masks does not know, transformers makes
# none. For one it does know it first looks for packed sequences, and a GPU is waited for.
AttentionInterface.register("flat", flat_attention)


def use_flat_attention(model: PreTrainedModel) -> None:
    """From here on `model.base_model(..., segments=...)` takes flat batches."""
    model.set_attn_implementation("flat")
