"""14. Shuffled answers

Do: give every title of the training data the content of another one, and train 150 steps on it and on the right data.

Predict: does the loss fall on the shuffled data? How far? What do the answers look like?

See: the mean training losses of the last ten steps are {right:.2f} and {shuffled:.2f}, and both began at {first:.2f}.
On held-out products the losses are {right_val:.2f} and {shuffled_val:.2f}, and the answers hold {right_facts:.0%} and
{shuffled_facts:.0%} of the facts of their titles.

Why: most of a description is language, and that can be learned without ever looking at the title. So the loss falls
by several nats on nonsense, the text is fluent, and a curve that goes down proves only that something is learned.
What the task is about, here the facts, is in the last part of the loss, and in a number of its own. Whoever measures
only the loss would have sold this model.
"""

import json
import random

from lesson import ROOT, mean, teach


def experiment(lab):
    records = lab.records("train", 4000)
    contents = [record["content"] for record in records]
    random.Random(1).shuffle(contents)
    mixed = [record | {"content": content} for record, content in zip(records, contents, strict=True)]
    val, test = lab.records("val", 64), lab.records("test", 64)
    runs, facts = [], []
    for name, train in (("right", records), ("shuffled", mixed)):
        data = lab.data(f"{name}-data", train, val, test)
        runs.append(lab.train(name, "--max_steps", 150, "--optim", "muon", "--lr", 4e-3, data=data))
        options = ("--max_samples", 64, "--max_new_tokens", 80, "--candidates", 1)
        lab.command("evaluate.py", "--run", runs[-1], *options)
        facts.append(json.loads((ROOT / runs[-1] / "metrics.json").read_text(encoding="utf-8"))["after"]["fact_rate"])
    lab.curves(*runs)
    last, val = ([mean(lab.losses(run, key)[-10:]) for run in runs] for key in ("loss", "val_loss"))
    numbers = {"right": last[0], "shuffled": last[1], "right_val": val[0], "shuffled_val": val[1]}
    lab.see(first=lab.losses(runs[1])[0], right_facts=facts[0], shuffled_facts=facts[1], **numbers)
    assert last[1] < 4
    assert val[1] > val[0] + 0.2
    assert facts[1] < facts[0] / 2


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
