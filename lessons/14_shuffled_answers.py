"""14. Shuffled answers

Do: give every title of the training data the content of another one, and train 160 steps on it and on the right data.
Then measure both models on held-out products, with their own titles and with each other's.

Predict: does the loss fall on the shuffled data? How far behind the other is it? What does a wrong title cost each of
the models?

See: the training losses began at {first:.2f} and end at {right_end:.2f} and {shuffled_end:.2f}. On held-out products
the model of the right data has {right:.2f}, and {right_swapped:.2f} with wrong titles: they cost it {right_cost:.2f}.
The model of the shuffled data has {shuffled:.2f} and {shuffled_swapped:.2f}: they cost it {shuffled_cost:.2f}.

Why: most of a description is language, and that is learned without ever looking at the title. So the loss falls by
several nats on nonsense, the text becomes fluent, and the curve goes down nearly as far as the right one: it proves
only that something is learned. What the task is about is in the last tenths of a nat. It needs a number of its own:
here what a wrong title costs, in `evaluate.py` the facts that an answer repeats. Whoever had looked at the curve alone
would have sold the wrong model.
"""

import random

from lesson import mean, teach


def experiment(lab):
    records, val, test = lab.records("train", 4000), lab.records("val", 64), lab.records("test", 64)
    contents = [record["content"] for record in records]
    random.Random(1).shuffle(contents)
    mixed = [record | {"content": content} for record, content in zip(records, contents, strict=True)]
    swapped = [other | {"content": r["content"]} for r, other in zip(test, test[1:] + test[:1], strict=True)]
    runs, loss = {}, {}
    for name, train in (("right", records), ("shuffled", mixed)):
        data = lab.data(f"{name}-data", train, val, test)
        runs[name] = lab.train(name, "--max_steps", 160, "--optim", "muon", "--lr", 4e-3, data=data)
        loss[name], loss[f"{name}_swapped"] = (lab.answer_loss(runs[name], some) for some in (test, swapped))
    lab.curves(*runs.values())
    cost = {name: loss[f"{name}_swapped"] - loss[name] for name in runs}
    end = {f"{name}_end": mean(lab.losses(run)[-10:]) for name, run in runs.items()}
    costs = {f"{name}_cost": value for name, value in cost.items()}
    lab.see(first=lab.losses(runs["right"])[0], **end, **loss, **costs)
    assert end["shuffled_end"] < lab.losses(runs["shuffled"])[0] - 3
    assert abs(end["shuffled_end"] - end["right_end"]) < 1
    assert abs(cost["shuffled"]) < 0.1
    assert cost["right"] > cost["shuffled"] + 0.1


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
