"""What the memory plan says of each recipe that names a model on cards of 6, 8 and 12 GB.

    python benchmarks/recipes.py             a minute on two CPU cores; no GPU, no download

The plan is that of train.py, in half precision, made on the CPU with random weights of the real shape. Each part of it
is a straight line in the number of blocks, so two shallow models say it of the deep one.
"""

import sys
from dataclasses import astuple
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
from shapes import SHAPES, build

from model.lora import Lora
from run.config import TrainConfig, read_recipe
from run.device import Machine, pick_machine
from run.memory import MemoryPlan, OutOfMemory, plan_memory

GB = 2**30
CARDS = (6, 8, 12)
TAKEN = 0.7 * GB  # assumed: by CUDA itself and by the screen
OF_RECIPE = {
    "distilgpt2": "DistilGPT-2",
    "bert-decoder": "BERT",
    "qwen2.5-0.5b-lora": "Qwen2.5-0.5B",
    "tinyllama-4bit-lora": "TinyLlama-1.1B",
    "mistral-7b-4bit-lora": "Mistral-7B",
    "mistral-7b-prequantised-lora": "Mistral-7B",
}


def main() -> None:
    print("| recipe | weights | " + " | ".join(f"{card} GB" for card in CARDS) + " |")
    print("|---|---:|" + "---|" * len(CARDS))
    for name, shape in OF_RECIPE.items():
        config = TrainConfig(**read_recipe(ROOT / "recipes" / f"{name}.toml"))
        plan = plan_of(config, shape)
        cells = [on_card(plan, config, card * GB) for card in CARDS]
        print(f"| {name} | {plan.weights / GB:.2f} GB | {' | '.join(cells)} |", flush=True)


def plan_of(config: TrainConfig, shape: str) -> MemoryPlan:
    few, many = astuple(shallow_plan(config, shape, 2)), astuple(shallow_plan(config, shape, 4))
    blocks = SHAPES[shape]().num_hidden_layers
    return MemoryPlan(*(a + (b - a) / 2 * (blocks - 2) for a, b in zip(few, many, strict=True)))


def shallow_plan(config: TrainConfig, shape: str, blocks: int) -> MemoryPlan:
    host, card = pick_machine("cpu", "bf16"), Machine(torch.device("cuda"), "bf16", "a card that is not here")
    lora = Lora(config.lora_r, config.lora_alpha) if config.lora else None
    model = build(shape, host, {"num_hidden_layers": blocks}, lora, config.load_in_4bit)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return plan_memory(model, card)


def on_card(plan: MemoryPlan, config: TrainConfig, card: float) -> str:
    """What train.py would choose there, and the most that a step then takes."""
    step_tokens = config.records_per_step * config.max_length
    free = card - TAKEN - plan.weights
    try:
        tokens = plan.largest_micro_batch(free, config.max_length, at_most=step_tokens)
    except OutOfMemory:
        return f"does not fit: {plan.peak(config.max_length, True) / GB:.1f} of {plan.room(free) / GB:.1f} GB"
    return f"{plan.peak(tokens, tokens < step_tokens) / GB:.1f} GB, {tokens:,} tokens at a time"


if __name__ == "__main__":
    main()
