"""16. Fine-tuning: all the weights, or two thin matrices

Do: train a model on the English records. Fine-tune it to the Portuguese ones for 40 steps: all of its weights, then
only adapters beside them (LoRA). Measure each on both languages.

Predict: how much smaller is an adapter? Which learns Portuguese better? Which knows more English afterwards?

See: {full_mb:.1f} MB of weights and {lora_mb:.2f} MB of adapter. Loss on Portuguese: {base_pt:.2f} before,
{full_pt:.2f} with all weights, {lora_pt:.2f} with the adapter. On English: {base_en:.2f}, {full_en:.2f} and
{lora_en:.2f}.

Why: LoRA adds to each matrix a product of two thin ones and trains only these, a few per cent of the numbers, so
there are hardly any moments to keep and the base serves many adapters. What it can change is less, so here it learns
the other language less well. What is trained on one thing forgets the other, and with all weights more of it; the
base beside an adapter is untouched, and is there again when the adapter is taken off. Adapters are for a model that
knows the language and has to learn a manner; a new language asks for all the weights.
"""

import json

from lesson import ROOT, teach

from text.question import language_of


def experiment(lab):
    data = {}
    for language in ("en", "pt"):
        some = {split: lab.records(split, 3000) for split in ("train", "val", "test")}
        own = {k: [r for r in v if language_of(f"{r['title']} {r['content']}") == language] for k, v in some.items()}
        data[language] = lab.data(language, **own)
    base = lab.train("base", "--max_steps", 80, "--optim", "muon", "--lr", 4e-3, data=data["en"])
    tune = ("--model", base / "final", "--max_steps", 40)
    full = lab.train("full", *tune, "--lr", 1e-3, data=data["pt"])
    lora = lab.train("lora", *tune, "--lora", "--lr", 4e-3, data=data["pt"])
    lab.curves(full, lora)
    numbers = {}
    for run in (base, full, lora):
        for language in data:
            numbers[f"{run.name[3:]}_{language}"] = loss_on(lab, run, data[language])
    sizes = {"full_mb": full / "final" / "model.safetensors", "lora_mb": lora / "final" / "adapter_model.safetensors"}
    numbers |= {name: (ROOT / file).stat().st_size / 1e6 for name, file in sizes.items()}
    lab.see(**numbers)
    assert numbers["lora_mb"] < numbers["full_mb"] / 10
    assert numbers["full_pt"] < numbers["base_pt"] - 1 and numbers["lora_pt"] < numbers["base_pt"] - 0.3
    assert numbers["full_en"] > numbers["base_en"] + 0.3


def loss_on(lab, run, data):
    options = ("--max_samples", 40, "--max_new_tokens", 1, "--candidates", 1)
    lab.command("evaluate.py", "--run", run, "--data", data, *options)
    return json.loads((ROOT / run / "metrics.json").read_text(encoding="utf-8"))["after"]["loss"]


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
