"""3. Ten times as much, ten times as little

Do: train 60 steps with a learning rate of 2e-3, with a tenth and with ten times of it.

Predict: draw the three curves of the loss. Which one is lowest after 10 steps, and which after 60?

See: in step 10 the loss is {small_10:.2f} with 2e-4, {right_10:.2f} with 2e-3 and {large_10:.2f} with 2e-2. The mean
of the last ten steps is {small:.2f}, {right:.2f} and {large:.2f}.

Why: AdamW moves each weight by about the learning rate, whatever the gradient (lesson 1). With a tenth of it 60 steps
do not get far, though each goes the right way. With ten times of it the first steps may be ahead or leap up, as the
seed will have it: a step jumps over what the gradient was true for, and weights that were in order are in disorder
again. What remains is about the loss of guessing each token by how often it comes. Between the two is a broad valley:
look for it in powers of ten, then of two, before anything else. And do not choose by the first steps.
"""

from lesson import mean, teach


def experiment(lab):
    rates = {"small": 2e-4, "right": 2e-3, "large": 2e-2}
    runs = {name: lab.train(name, "--max_steps", 60, "--lr", rate) for name, rate in rates.items()}
    lab.curves(*runs.values())
    tenth = {name: lab.losses(run)[9] for name, run in runs.items()}
    last = {name: mean(lab.losses(run)[-10:]) for name, run in runs.items()}
    lab.see(**last, **{f"{name}_10": value for name, value in tenth.items()})
    assert tenth["right"] < tenth["small"]
    assert last["right"] < last["small"] - 0.5
    assert last["right"] < last["large"] - 0.5


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
