"""4. No warm-up

Do: train 60 steps with a learning rate that rises for 12 steps, and with one that is at its peak at once.

Predict: the second takes larger steps from the first on. Is it ahead after 10 steps? After 60?

See: the mean loss of the last ten steps is {without:.2f} without and {warm:.2f} with a warm-up. In step 10 it was
{without_10:.2f} and {warm_10:.2f}.

Why: the first gradients all say the same, that some tokens are frequent, and AdamW's averages know nothing else yet.
At full speed every weight follows them as far as the learning rate goes. The loss falls faster at first, down to what
frequencies alone can give. But those steps all went the same way, farther than the gradients were true for, and from
where they lead the model learns the rest more slowly. With a warm-up the first steps are small until the averages are
of several batches. This is the cheapest line in a training loop.
"""

from lesson import mean, teach


def experiment(lab):
    warm = lab.train("warm-up", "--max_steps", 60, "--warmup_ratio", 0.2)
    without = lab.train("without", "--max_steps", 60, "--warmup_ratio", 0)
    lab.curves(warm, without)
    a, b = lab.losses(warm), lab.losses(without)
    lab.see(warm=mean(a[-10:]), without=mean(b[-10:]), warm_10=a[9], without_10=b[9])
    assert b[9] < a[9] and mean(b[-10:]) > mean(a[-10:]) + 0.1


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
