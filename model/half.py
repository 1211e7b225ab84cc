"""Half precision under autocast: weights that are not trained take two bytes each, and nothing is cast twice.

Autocast multiplies in fp16 or bf16 what lies in fp32, and casts it at every use. What is frozen can lie in half
precision from the beginning, and what several layers read can be cast once. The residual stream stays fp32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from model.lora import blocks_of

# What feeds nothing but linear layers, in GPT-2 and in Llama, Qwen2 and Mistral. Other architectures have norms whose
# output joins the residual stream, which must not be rounded, some of them by the same names beside others.
NORMS_BEFORE_LAYERS = ({"ln_1", "ln_2"}, {"input_layernorm", "post_attention_layernorm"})


def halve(model: PreTrainedModel, dtype: torch.dtype, trained_too: bool = False) -> None:
    """Keep the matrices that need no gradient, embeddings and head among them, in `dtype`, the one of autocast.

    Without autocast such a model cannot compute. fp32 changes nothing. `trained_too`: for a model that is only asked.
    """
    if dtype == torch.float32:
        return
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            continue
        if module.weight.requires_grad and not trained_too:
            continue
        if module.weight.is_floating_point():  # 4-bit weights are bytes
            module.to(dtype)
    embeddings_in_fp32(model)


def embeddings_in_fp32(model: PreTrainedModel) -> None:
    """Whatever the embeddings lie in, the residual stream begins in fp32."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda module, inputs, output: output.float())


class LayerNormInFp32(nn.LayerNorm):
    """For weights that arrive in half precision, which a CPU does not combine with an fp32 input."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


def norms_in_fp32(model: PreTrainedModel) -> None:
    """Whatever their weights arrive in, they compute in fp32. Other norms than this class cast as they multiply."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = LayerNormInFp32


def cast_norms_once(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let the norms before linear layers return what autocast multiplies in, unless that is fp32. The layers after
    them, three after one norm in Llama, would each cast the same fp32 numbers and keep a copy of their own. The loss is
    the same to the last bit; the gradients that come back from several layers are added in half precision."""
    if dtype == torch.float32:
        return
    for block in blocks_of(model):
        norms = {name: child for name, child in block.named_children() if "Norm" in type(child).__name__}
        for norm in norms.values() if set(norms) in NORMS_BEFORE_LAYERS else ():
            norm.register_forward_hook(_as_autocast_wants)


def _as_autocast_wants(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    # Not `dtype`: a model that is measured on the host meets another one there.
    kind = output.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output


@contextmanager
def computable_on(device: torch.device, model: PreTrainedModel) -> Iterator[None]:
    """On a CPU weights in fp16 are bf16 meanwhile: as many bytes, and it has products of them that come to an end."""
    halves = [p for p in model.parameters() if device.type == "cpu" and p.dtype == torch.float16]
    kept = [p.data for p in halves]
    for parameter in halves:
        parameter.data = parameter.data.bfloat16()
    try:
        yield
    finally:
        for parameter, data in zip(halves, kept, strict=True):
            parameter.data = data
