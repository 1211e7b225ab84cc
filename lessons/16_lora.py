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

from lesson import ROOT, teach

from text.question import language_of


def experiment(lab):
    data, test = {}, {}
    for language in ("en", "pt"):
        own = {split: in_language(lab.records(split, 3000), language) for split in ("train", "val", "test")}
        data[language], test[language] = lab.data(language, **own), own["test"][:64]
    base = lab.train("base", "--max_steps", 80, "--optim", "muon", "--lr", 4e-3, data=data["en"])
    tune = ("--model", base / "final", "--max_steps", 40)
    full = lab.train("full", *tune, "--lr", 1e-3, data=data["pt"])
    lora = lab.train("lora", *tune, "--lora", "--lr", 4e-3, data=data["pt"])
    lab.curves(full, lora)

    runs = {"base": base, "full": full, "lora": lora}
    loss = {f"{name}_{lang}": lab.answer_loss(run, test[lang]) for name, run in runs.items() for lang in test}
    full_mb = (ROOT / full / "final" / "model.safetensors").stat().st_size / 1e6
    lora_mb = (ROOT / lora / "final" / "adapter_model.safetensors").stat().st_size / 1e6
    lab.see(full_mb=full_mb, lora_mb=lora_mb, **loss)
    assert lora_mb < full_mb / 10
    assert loss["full_pt"] < loss["lora_pt"] - 0.3 and loss["lora_pt"] < loss["base_pt"] - 0.3
    assert loss["full_en"] > loss["base_en"] + 0.3


def in_language(records, language):
    return [record for record in records if language_of(f"{record['title']} {record['content']}") == language]


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
