"""12. Forget the optimizer's averages

Do: train 60 steps with a checkpoint at 30 and one at 60. Copy the run, and resume the copy from step 30 with the
weights alone: without `optimizer.safetensors`, which only the newest checkpoint keeps.

Predict: is the loss of step 31 another one? Of step 32? Does the run catch up?

See: step 31 has a loss of {a31:.4f} in both. Steps 32 to 41 have {undisturbed:.3f} in the run that nobody disturbed
and {resumed:.3f} in the one that forgot; the last ten {undisturbed_end:.3f} and {resumed_end:.3f}.

Why: the loss of step 31 is that of the weights and the records, and both are the same. But AdamW moves by averages
over many steps, and they begin anew: the first gradient is all that it knows, so every weight moves by the whole
learning rate in the direction of one batch, and there is no warm-up now (lesson 4). To be the same run, a resumed one
needs the weights, the averages, the random state and the number of the step, from which its place in the data and its
learning rate follow. This one said on the screen what it lacked.
"""

import shutil

from lesson import ROOT, mean, teach


def experiment(lab):
    run = lab.train("undisturbed", "--max_steps", 60, "--save_steps", 30, "--save_total_limit", 2)
    copy = run.with_name(run.name.replace("undisturbed", "resumed"))
    shutil.rmtree(ROOT / copy, ignore_errors=True)
    shutil.copytree(ROOT / run, ROOT / copy)
    lab.command("train.py", "--resume", copy / "checkpoint-30")
    lab.curves(run, copy)
    a, b = lab.losses(run), lab.losses(copy)
    means = {"undisturbed": mean(a[31:41]), "resumed": mean(b[31:41])}
    lab.see(a31=b[30], **means, undisturbed_end=mean(a[-10:]), resumed_end=mean(b[-10:]))
    assert abs(a[30] - b[30]) < 1e-4
    assert means["resumed"] > means["undisturbed"] + 0.05


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
