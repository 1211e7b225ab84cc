"""8. How much at once

Do: train 8 steps in micro-batches of at most 128 tokens and of at most 4,096; then both once more with dropout.

Predict: which pairs of curves are the same?

See: without dropout the losses differ by {plain:.1e} at most, with dropout by {dropout:.1e}.

Why: without dropout a step is the same sum in other pieces, up to the last digits of floating point, so a card with
less memory trains the same model, slower. Dropout draws a random mask for each micro-batch, of its shape: other
pieces are other masks, and another run. It is as good a run, but not the same, and no resume or comparison that
counts on equal numbers may change the pieces. The default here is no dropout: with one or a few passes over the data
there is little to overfit, and attention without it is much faster.
"""

from lesson import teach

STEPS = ("--max_steps", 8)


def experiment(lab):
    runs = {
        dropout: [
            lab.train(f"{tokens}-dropout-{dropout}", *STEPS, "--dropout", dropout, "--micro_batch_tokens", tokens)
            for tokens in (128, 4096)
        ]
        for dropout in (0.0, 0.1)
    }
    lab.curves(*runs[0.0], *runs[0.1])
    apart = {dropout: furthest(*map(lab.losses, pair)) for dropout, pair in runs.items()}
    lab.see(plain=apart[0.0], dropout=apart[0.1])
    assert apart[0.0] < 1e-5
    assert apart[0.1] > 1e-3


def furthest(one, other):
    """The largest difference between the losses of a step."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
