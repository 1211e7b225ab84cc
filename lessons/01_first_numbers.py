"""1. The first two numbers

Do: train for three steps, keep a checkpoint of each, and look at the first loss and at the weights.

Predict: the model knows nothing of its V pieces of text. What is the first loss? Which weights does step 1 change? By
how much does step 2, at a learning rate of 1e-3, move a weight at most?

See: the first loss is {first:.4f}, and ln {pieces:,} = {ln:.4f}. Step 1 moved no weight: {step_1:.1g} at most. Step 2
moved one by {step_2:.1e} at most, and half of them by more than {median:.1e}.

Why: a model that finds every token as likely gives each p = 1/V, and -ln(1/V) = ln V. A first loss far above it
says that the weights begin too large, one far below that a place can see what it has to predict, or that the model was
trained before. The warm-up begins at a learning rate of 0, so step 1 only starts AdamW's averages. AdamW divides the
average gradient by the root of the average of its square. What comes out is about 1, however small the gradient is,
so every weight moves by about the learning rate: not the gradient but the learning rate says how far.
"""

import json
import math

import torch
from lesson import ROOT, teach
from safetensors.torch import load_file


def experiment(lab):
    run = lab.train(
        "three", "--max_steps", 3, "--warmup_ratio", 1, "--lr", 3e-3, "--save_steps", 1, "--save_total_limit", 3
    )
    pieces = json.loads((ROOT / run / "base" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    weights = [load_file(ROOT / run / name / "model.safetensors") for name in ("base", "checkpoint-1", "checkpoint-2")]
    zero, one, two = (torch.cat([w[name].flatten() for name in sorted(w)]) for w in weights)
    step_1, step_2 = (one - zero).abs(), (two - one).abs()
    first = lab.losses(run)[0]
    moved = {"step_1": step_1.max(), "step_2": step_2.max(), "median": step_2.median()}
    lab.see(first=first, pieces=pieces, ln=math.log(pieces), **moved)
    assert abs(first - math.log(pieces)) < 0.3
    assert step_1.max() == 0
    assert 0.5e-3 < step_2.max() < 2e-3


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
