"""2. Sixteen records by heart

Do: train on 16 records alone, all of them in each step, and ask for the first titles.

Predict: how low does the loss get, and what are the answers? Would it be a good sign or a bad one?

See: the loss went from {first:.2f} to {last:.3f}. {exact} of {asked} answers are the catalogue's, word for word.

Why: a model of millions of weights has room for 16 texts, so a loop that is right learns them by heart within a
minute. It is the first test of any loop: one that cannot do this has a fault, and no larger run will cure it. The
first loss is lower than in lesson 1, for 16 records give a vocabulary of about a thousand pieces. It says nothing of
products that the model has not seen: there the loss rises while this one falls (overfitting).
"""

import json

from lesson import ROOT, teach

OPTIONS = ("--max_steps", 40, "--batch_size", 16, "--optim", "muon", "--lr", 4e-3)


def experiment(lab):
    records = [record | {"attributes": {}} for record in lab.records("train", 16)]
    data = lab.data("data", train=records, val=records, test=records)
    run = lab.train("sixteen", *OPTIONS, data=data)
    answers = json.loads((ROOT / run / "after.json").read_text(encoding="utf-8"))
    known = {record["content"] for record in records}
    losses, exact = lab.losses(run), sum(answer.strip() in known for answer in answers.values())
    lab.see(first=losses[0], last=losses[-1], exact=exact, asked=len(answers))
    assert losses[-1] < 0.3
    assert exact >= 2


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
