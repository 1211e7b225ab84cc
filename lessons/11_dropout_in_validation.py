"""11. Dropout left on in validation

Do: train 60 steps with `--dropout 0.3`, once as it is, once with the `model.eval()` before the validation forgotten.

Predict: is the trained model another one? Is the validation loss?

See: {equal} of {all} weights of the final models are the same to the bit. The validation losses are {right:.3f} and
{wrong:.3f}.

Why: in training dropout sets three numbers of ten to zero at random, so that nothing relies on one of them. A
validation with dropout on asks a model that lacks a third of its parts: the loss is too high, and another one each
time. The gap to the training loss, by which one tells overfitting, is then wrong as well. The weights are the same
here because the only validation comes after the last step. Earlier in the run it would draw random numbers that the
training then misses, and the model would be another one too. In the other direction, `model.train()` forgotten after
the first validation, dropout is off for the rest of the run, and nothing says so.
"""

from lesson import ROOT, Edit, teach
from safetensors.torch import load_file

OPTIONS = ("--max_steps", 60, "--dropout", 0.3, "--optim", "muon", "--lr", 4e-3)
FORGET = Edit(
    "run/validation.py",
    "        self.model.eval()\n        with self.stopwatch.paused():",
    "        with self.stopwatch.paused():",
)


def experiment(lab):
    right = lab.train("eval", *OPTIONS)
    wrong = lab.train("no-eval", *OPTIONS, edits=(FORGET,))
    lab.curves(right, wrong)
    one, other = (load_file(ROOT / run / "final" / "model.safetensors") for run in (right, wrong))
    equal = sum(one[name].equal(other[name]) for name in one)
    losses = [lab.losses(run, "val_loss")[-1] for run in (right, wrong)]
    lab.see(equal=equal, all=len(one), right=losses[0], wrong=losses[1])
    assert equal == len(one)
    assert losses[1] > losses[0] + 0.1


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
