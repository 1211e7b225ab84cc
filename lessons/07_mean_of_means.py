"""7. The mean of the means

Do: compute each step in micro-batches of at most 128 tokens. Divide each micro-batch's loss by its own tokens and by
the number of micro-batches, as many loops do, instead of by the tokens of the whole step.

Predict: is it the same step? Which tokens weigh more than others now?

See: in step 1, on the same weights and records, grad_norm is {right_norm:.4f} in many micro-batches as in one
({whole_norm:.4f}), and {wrong_norm:.4f} by the mean of the means. After 8 steps the losses are {right:.4f},
{whole:.4f} and {wrong:.4f}.

Why: a micro-batch with few supervised tokens counts as much as one with many, so each of its tokens weighs more. The
step then depends on how much memory was free. Sums can be added in any pieces, means cannot: add up -ln p and divide
once, by a number of tokens that is counted before the first backward. `transformers` had this fault until the autumn
of 2024. The curve of the loss hides it, so it takes a test, `tests/test_parity.py`: put the same edit into train.py,
run the test and see it fail.
"""

from lesson import Edit, teach

MEANS = Edit("train.py", "loss / supervised)", "loss / len(micro_batch.targets) / len(micro_batches))")


def experiment(lab):
    whole = lab.train("whole", "--max_steps", 8, "--micro_batch_tokens", 4096)
    right = lab.train("sums", "--max_steps", 8, "--micro_batch_tokens", 128)
    wrong = lab.train("means", "--max_steps", 8, "--micro_batch_tokens", 128, edits=(MEANS,))
    lab.curves(whole, right, wrong)
    runs = {"whole": whole, "right": right, "wrong": wrong}
    loss = {name: lab.losses(run)[-1] for name, run in runs.items()}
    norm = {name: lab.losses(run, "grad_norm")[0] for name, run in runs.items()}
    lab.see(**loss, **{f"{name}_norm": value for name, value in norm.items()})
    assert abs(norm["right"] - norm["whole"]) < 1e-4 * norm["whole"]
    assert abs(norm["wrong"] - norm["whole"]) > 1e-3 * norm["whole"]


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
