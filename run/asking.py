"""A model that is asked and not trained: in the precision of its training, planned before it is loaded, and with less
where memory is short."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from model.adapter import adapter_base, is_adapter
from model.half import cast_norms_once, halve, norms_in_fp32
from model.linear import pack, packing_helps
from model.load import context_length, shape_of, stored_precision
from run.device import EnvironmentFault, Machine, pick_machine
from run.folders import read_run
from run.loading import load
from run.memory import HEADROOM, OutOfMemory, free_memory, stay_on_the_card
from run.units import size
from text.batch import Encoder
from text.template import Template

LONGEST_PROMPT = 256  # tokens, as in training; a longer one that runs out of memory is written in smaller batches
FOUR_BIT = 0.55  # bytes: half of one, and its share of the scales


def machine_for(run: Path | None, device: str, base: str | Path) -> Machine:
    """The device, in the half precision that `run` was trained in where it is to be had; where it was in none, in that
    of its `base`. Raises `EnvironmentFault`.
    """
    saved = read_run(run) if run else {"options": {}}
    named = saved["options"].get("precision", "auto")
    try:
        machine = pick_machine(device, named)
    except EnvironmentFault:
        machine = pick_machine(device)  # trained on another card
    if machine.device.type == "cpu" or named != "auto":
        return machine
    trained_in = {"fp16": "float16", "bf16": "bfloat16"}.get(saved.get("precision"))
    return pick_machine(device, stored=trained_in or stored_precision(base))


@dataclass(frozen=True)
class Need:
    """Bytes that it takes to ask a model."""

    weights: int
    for_each_answer: int  # keys and values of as many tokens as it can have, and four copies of its logits

    def answers(self, free: float) -> int:
        """How many can be written at once."""
        return int((free - self.weights) // self.for_each_answer)


def need_of(config, parameters: int, itemsize: int, four_bit: bool, tokens: int) -> Need:
    """Of a model of `parameters` that lie in `itemsize` bytes each, by its `config`, when a prompt and its answer have
    `tokens` at most."""
    config = config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // all_heads)
    weights = parameters * itemsize
    if four_bit:  # all but embeddings and head
        outside = min(parameters, config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2))
        weights = outside * itemsize + (parameters - outside) * FOUR_BIT
    cache = 2 * config.num_hidden_layers * width * itemsize * tokens
    return Need(int(weights), cache + 4 * 4 * config.vocab_size)


def load_to_ask(
    source: str | Path,
    template: Template,
    machine: Machine,
    four_bit: bool = False,
    base: str | None = None,
    answers: int = 1,
    new_tokens: int = 220,
    max_length: int = 0,
) -> tuple[PreTrainedModel, Encoder, Machine, int]:
    """The model, its encoder, the machine in the precision that fits, and how many of `answers` fit at once.

    What will be taken is said on standard error. Where memory is short fewer answers are written at once, then the
    weights lie in half precision. Raises `OutOfMemory` before anything is loaded, and what `load` raises.
    """
    stay_on_the_card(machine.device)
    config, parameters = shape_of(base or (adapter_base(source) if is_adapter(source) else source))
    free, half = free_memory(machine.device) * HEADROOM, "fp16" if machine.device.type == "cuda" else "bf16"
    tokens = min(LONGEST_PROMPT + new_tokens, context_length(config))
    for precision in dict.fromkeys((machine.precision, half)):
        machine = replace(machine, precision=precision)
        need = need_of(config, parameters, machine.dtype.itemsize, four_bit, tokens)
        if (at_once := min(answers, need.answers(free))) >= 1:
            break
    else:
        least = size(need.weights + need.for_each_answer)
        raise OutOfMemory(f"{source} takes {least} in {half}, and {size(free)} can be used. Close other programs.")
    # A second copy of the weights, from which answers are written two to three times as fast, where there is room.
    packs = (
        packing_helps(machine.device, machine.dtype)
        and replace(need, weights=2 * need.weights).answers(free) >= at_once
    )
    takes = (
        f"{size(need.weights * (1 + packs))} of weights, {size(need.for_each_answer * at_once)} for {at_once} at a time"
    )
    how = f"{precision}, 4-bit" if four_bit else precision
    print(f"{source}: {machine.name}, {how}, {takes}; {size(free)} can be used", file=sys.stderr)
    # On the host in fp32; where that does not fit, as it will lie on the device. 4-bit weights come there at once.
    fits = parameters * 4 < free_memory(torch.device("cpu")) * HEADROOM
    dtype = torch.float32 if fits and not (four_bit and machine.device.type == "cuda") else machine.dtype
    options = {"four_bit": four_bit, "compute_dtype": machine.dtype, "dtype": dtype}
    model, encoder = load(source, template, max_length, base, **options)
    halve(model, machine.dtype, trained_too=True)
    norms_in_fp32(model)
    cast_norms_once(model, machine.dtype)
    model = model.to(machine.device)
    if packs:
        pack(model)
    return model, encoder, machine, at_once
