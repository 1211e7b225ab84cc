"""Keys and values of answers that are being written: allocated once, written in place.

An answer has a row, a token of it a column: `keys[layer][row, :, column]`. Every answer begins in column 0, so it
reads the same numbers whoever shares its batch, and a finished one leaves its row to the next. As with flat attention,
transformers calls the function of this file in every layer through its public registry; for a name that its registry of
masks does not know it makes none.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

STEP = 64  # columns: what attention looks at grows by so many, so that shapes, and with them last digits, are few


class KeysValues:
    """Of `rows` answers at once.

    Either one prompt is read (`read`), or every row writes one token (`step`): the model is called in between.
    """

    def __init__(self, rows: int, device: torch.device):
        self.rows, self.device, self.columns = rows, device, 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # each (rows, kv_heads, columns, head_dim)
        self._every_row = torch.arange(rows, device=device)
        self._reading: int | None = None  # the row of the prompt that is read; None: all rows write a token
        self._seen = 0  # columns that attention looks at
        self._position: Tensor | None = None
        self._mask: Tensor | None = None

    def read(self, row: int, columns: int) -> None:
        """The next call of the model reads a prompt into `row`, whose answer will take up to `columns`."""
        self._reading = row
        if columns > self.columns:
            self.columns = -(-columns // STEP) * STEP
            self._layers = {layer: (self._grown(k), self._grown(v)) for layer, (k, v) in self._layers.items()}

    def step(self, position: Tensor, longest: int) -> None:
        """The next call of the model writes a token in each row, at `position` (rows,) of which `longest` is the
        largest."""
        self._reading, self._position = None, position
        # A row alone sees what it has and needs no mask.
        self._seen = longest + 1 if self.rows == 1 else min(-(-(longest + 1) // STEP) * STEP, self.columns)
        column = torch.arange(self._seen, device=self.device)
        self._mask = None if self.rows == 1 else (column <= position[:, None])[:, None, None]  # (rows, 1, 1, seen)

    def copy(self, source: int, target: int, columns: int) -> None:
        """The first `columns` of a row into another: a prompt that is asked several times is read once."""
        for both in self._layers.values():
            for x in both:
                x[target, :, :columns] = x[source, :, :columns]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Write `key` and `value`, (n, kv_heads, tokens, head_dim), and return what `query` (n, heads, tokens,
        head_dim) reads, in the shape of it."""
        # Rotary positions leave fp32 even where the kernel computes in half precision.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if layer not in self._layers:
            shape = self.rows, key.shape[1], self.columns, key.shape[3]
            self._layers[layer] = key.new_zeros(shape), key.new_zeros(shape)  # zeros: nan times 0 would be nan
        keys, values = self._layers[layer]
        heads, kv_heads, length = query.shape[1], key.shape[1], key.shape[2]
        if self._reading is not None:
            keys[self._reading, :, :length], values[self._reading, :, :length] = key[0], value[0]
            shared = heads // kv_heads
            key, value = (x.repeat_interleave(shared, dim=1) if shared > 1 else x for x in (key, value))
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        if self.rows == 1:  # its last column, whose number the host knows
            keys.select(2, self._seen - 1).copy_(key.select(2, 0))
            values.select(2, self._seen - 1).copy_(value.select(2, 0))
        else:
            where = self._every_row, slice(None), self._position
            keys[where], values[where] = key[:, :, 0], value[:, :, 0]
        # Heads that share keys are so many queries of them: no key is copied.
        grouped = query.reshape(self.rows, kv_heads, heads // kv_heads, -1)
        seen = keys.narrow(2, 0, self._seen), values.narrow(2, 0, self._seen)
        found = scaled_dot_product_attention(grouped, *seen, attn_mask=self._mask, scale=scaling)
        return found.reshape(query.shape)

    def _grown(self, x: Tensor) -> Tensor:
        grown = x.new_zeros(*x.shape[:2], self.columns, x.shape[3])
        grown[:, :, : x.shape[2]] = x
        return grown


def keys_values_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    keys_values: KeysValues,
    scaling: float | None = None,
    **_unused,
) -> tuple[Tensor, None]:
    """Attention over what was written. Returns `(n, tokens, heads, head_dim)`, as transformers expects it."""
    layer: int = module.layer_idx  # type: ignore[assignment]  # as transformers numbers them
    return keys_values.attend(layer, query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register("keys_values", keys_values_attention)


def use_keys_values(model: PreTrainedModel) -> None:
    """From here on the model takes `keys_values=...`: for writing answers."""
    model.set_attn_implementation("keys_values")
