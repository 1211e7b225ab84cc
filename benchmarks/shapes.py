"""The shapes of the models that the recipes name, with random weights: for what depends on shapes alone."""

import torch
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from model.attention import use_flat_attention
from model.half import cast_norms_once, halve
from model.load import set_dropout
from model.lora import Lora, wrap
from run.device import Machine

SHAPES = {
    "DistilGPT-2": lambda: GPT2Config(n_layer=6, activation_function="gelu_pytorch_tanh"),
    "BERT": lambda: BertConfig(vocab_size=28996, is_decoder=True),
    "Qwen2.5-0.5B": lambda: Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "TinyLlama-1.1B": lambda: LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4,
    ),
    "Mistral-7B": lambda: MistralConfig(vocab_size=32768, num_key_value_heads=8, sliding_window=None),
}  # fmt: skip
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY |= {"intermediate_size": 128, "vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4}


def build(shape: str, machine: Machine, changes: dict, lora: Lora | None = None, four_bit: bool = False):
    """A model in training mode with flat attention; `changes` to its configuration, as far as it has those keys."""
    config = SHAPES[shape]()
    for key in changes.keys() & {*config.to_dict(), *config.attribute_map}:
        setattr(config, key, changes[key])
    set_dropout(config, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16 if four_bit else torch.float32)
    if four_bit:
        in_four_bit(model, machine)
    if lora:
        wrap(model, lora)
    for parameter in model.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()
    use_flat_attention(model)
    halve(model, machine.dtype)
    cast_norms_once(model, machine.dtype)
    return model.to(machine.device).train()


def in_four_bit(model, machine: Machine) -> None:
    """The linear layers of the blocks in NF4 with double quantisation, as `load_model` would load them; rounded on the
    device, layer by layer, which on a CPU would take minutes for 7B."""
    import bitsandbytes as bnb

    for name, module in list(model.base_model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, module.bias is not None, compute_dtype=machine.dtype,
                compress_statistics=True, quant_type="nf4", device="meta",
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(
                module.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
            )
            layer.bias = module.bias
            model.base_model.set_submodule(name, layer.to(machine.device))
