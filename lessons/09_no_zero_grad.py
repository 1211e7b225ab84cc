"""9. Forget zero_grad

Do: take `optimizer.zero_grad` out of the loop and train 60 steps.

Predict: what does grad_norm do from step to step? Does the loss still fall?

See: the mean grad_norm of the last ten steps is {wrong_norm:.1f} instead of {right_norm:.1f}, and their mean loss
{wrong:.2f} instead of {right:.2f}.

Why: `backward` adds to `.grad`, so that micro-batches can be summed (lesson 7). If nobody empties it, each step moves
by the gradients of steps that are long past, too. Clipping hides most of it: it scales `.grad` itself down to norm 1,
so what is left over weighs about as much as the new gradient, and the norm before clipping is only somewhat too large
instead of growing for ever. The loss still falls, for old gradients are not all wrong, only slower. Nothing fails,
which is why this fault lives long: it takes a run to compare with, or a test that compares a step with one computed
by hand.
"""

from lesson import Edit, mean, teach

FORGET = Edit("train.py", "optimizer.zero_grad(set_to_none=True)", "pass")


def experiment(lab):
    right = lab.train("right", "--max_steps", 60)
    wrong = lab.train("forgotten", "--max_steps", 60, edits=(FORGET,))
    lab.curves(right, wrong)
    losses = [mean(lab.losses(run)[-10:]) for run in (right, wrong)]
    norms = [mean(lab.losses(run, "grad_norm")[-10:]) for run in (right, wrong)]
    lab.see(right=losses[0], wrong=losses[1], right_norm=norms[0], wrong_norm=norms[1])
    assert losses[1] > losses[0] + 0.2
    assert norms[1] > norms[0] + 0.1


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
