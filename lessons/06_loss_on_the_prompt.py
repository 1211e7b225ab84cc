"""6. Loss on the prompt too

Do: train 60 steps with the loss on the answers, and 60 with the loss on the prompts too (`--loss_on all`). In both
runs the tokenizer spells out the words around the title, as those of other models do; pocket's has one token for what
stands before the title, and one for what follows it.

Predict: which validation loss is lower? Which model answers better? Are the two numbers of the same thing?

See: the validation losses are {val_answer:.2f} and {val_all:.2f}: the second looks better by {gap:.2f}. Both measured
on the answers alone they are {answer:.2f} and {all:.2f}.

Why: the second loss is a mean over other tokens. A quarter of them are the words around the title, the same in every
record: soon they cost nothing and pull the mean down. A loss can only be compared with one over the same tokens, in
the same pieces of text; so `evaluate.py` measures every model on the answers. What is left of the difference may go
either way: to a model that began from nothing the prompts are more text to learn the language from, and one that
knows the language spends its steps on words that it will never have to write.
"""

from lesson import Edit, teach

SPELLED_OUT = Edit("run/loading.py", "POCKET_VOCABULARY, template.phrases)", "POCKET_VOCABULARY, ())")


def experiment(lab):
    runs = [lab.train(name, "--max_steps", 60, "--loss_on", name, edits=(SPELLED_OUT,)) for name in ("answer", "all")]
    lab.curves(*runs)
    logged = [lab.losses(run, "val_loss")[-1] for run in runs]
    on_answers = [lab.answer_loss(run, lab.records("test", 64)) for run in runs]
    gap = logged[0] - logged[1]
    lab.see(val_answer=logged[0], val_all=logged[1], gap=gap, answer=on_answers[0], all=on_answers[1])
    assert gap > 0.5
    assert abs(on_answers[0] - on_answers[1]) < gap / 2


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
