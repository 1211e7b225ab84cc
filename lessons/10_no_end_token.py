"""10. Answers that never end

Do: learn 16 records by heart three times: as it is right; without a token at the end; and with one that the loss
leaves out, as loops do that mask the padding by its id (`labels[labels == pad] = -100`) where padding and end are the
same token.

Predict: which of the three losses shows a fault? What do the answers look like?

See: the last losses are {right:.3f}, {without:.3f} and {masked:.3f}. Of {asked} answers {right_ended} end where the
catalogue's do when all is right, {without_ended} without the token and {masked_ended} with the token masked.

Why: a model writes on until it writes an end token, and it writes what it was taught. GPT-2 has no padding token, so
nearly everybody sets `pad_token = eos_token`; a mask by id then hides the one end token that had to be learned. The
loss is over all tokens but that one and looks as good as ever. Here the mask goes by position: every answer that was
not cut has one supervised end token (`text/batch.py`).
"""

import json

from lesson import ROOT, Edit, teach

WITHOUT = Edit("text/batch.py", "prompt + answer + [self.end_token], len(text)", "prompt + answer, len(text)")
MASKED = Edit(
    "text/batch.py",
    "        predicting += range(start + max(row.first_supervised, 1) - 1, start + len(row.ids) - 1)",
    "        places = range(start + max(row.first_supervised, 1) - 1, start + len(row.ids) - 1)\n"
    "        predicting += [place for place in places if ids[place + 1] != 0]  # 0: padding, and the end token",
)

OPTIONS = ("--max_steps", 40, "--batch_size", 16, "--optim", "muon", "--lr", 4e-3)


def experiment(lab):
    records = [record | {"attributes": {}} for record in lab.records("train", 16)]
    data, contents = lab.data("data", train=records, val=records, test=records), {r["content"] for r in records}
    runs, ended = {}, {}
    for name, edits in (("right", ()), ("without", (WITHOUT,)), ("masked", (MASKED,))):
        runs[name] = lab.train(name, *OPTIONS, data=data, edits=edits)
        answers = json.loads((ROOT / runs[name] / "after.json").read_text(encoding="utf-8")).values()
        ended[f"{name}_ended"] = sum(answer.strip() in contents for answer in answers)
    lab.curves(*runs.values())
    last = {name: lab.losses(run)[-1] for name, run in runs.items()}
    lab.see(**last, **ended, asked=len(answers))
    assert max(last.values()) < 0.3
    assert ended["right_ended"] >= 2
    assert ended["without_ended"] == ended["masked_ended"] == 0


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
