"""5. One bad step, without clipping

Do: in step 16 of 60 make the loss ten thousand times as large, as one broken record can. Once with clipping to a norm
of 1, once without.

Predict: AdamW divides by the size of the gradient, so the bad step moves the weights no further than another. What do
the steps after it do, with clipping and without?

See: grad_norm in step 16 was {norm:,.0f}. The mean loss of the last ten steps is {clipped:.2f} with clipping and
{unclipped:.2f} without.

Why: AdamW divides an average of gradients by the root of an average of their squares. The first forgets in some ten
steps: so long every weight follows one batch, and the loss jumps. The second takes up 1/1000 of a square and keeps
0.999 of it from step to step. A gradient ten thousand times too large makes the divisor hundreds of times too large
for more than a thousand steps, and what is divided by it hardly moves the weights. Nothing says so: the loss is
finite, grad_norm looks as ever, only learning has all but ended. Clipping scales the bad gradient down to norm 1
before the averages see it. (Without a bad step it changes little under AdamW; that is no reason to leave it out.)
"""

from lesson import Edit, mean, teach

BAD = Edit(
    "train.py",
    "            scaler.scale(loss / supervised).backward()",
    "            bad = 10_000 if state.step == 15 else 1\n            scaler.scale(bad * loss / supervised).backward()",
)


def experiment(lab):
    clipped = lab.train("clipped", "--max_steps", 60, edits=(BAD,))
    unclipped = lab.train("not-clipped", "--max_steps", 60, "--max_grad_norm", 0, edits=(BAD,))
    lab.curves(clipped, unclipped)
    a, b = (mean(lab.losses(run)[-10:]) for run in (clipped, unclipped))
    lab.see(norm=lab.losses(clipped, "grad_norm")[15], clipped=a, unclipped=b)
    assert b > a + 0.3


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
