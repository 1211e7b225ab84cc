"""15. Another optimizer

Do: train 60 steps with AdamW and 60 with Muon, each with a learning rate that suits it.

Predict: how many steps of AdamW is one of Muon worth, from nothing?

See: the validation losses are {adamw:.2f} by AdamW and {muon:.2f} by Muon. Muon was at AdamW's last loss after
{reached} steps.

Why: the gradient of a matrix has a few long directions and many short ones, and AdamW, which looks at each weight by
itself, mostly follows the long ones. Muon makes all directions of the averaged gradient equally long before it takes
the step (`model/muon.py`), so what few records need is learned from the beginning. A step costs some products of
matrices more, and it keeps one average instead of two. It is for matrices inside the blocks; embeddings, norms and
biases stay with AdamW. A model that was trained before by AdamW goes on with AdamW here.
"""

from lesson import mean, teach


def experiment(lab):
    adamw = lab.train("adamw", "--max_steps", 60, "--lr", 2e-3)
    muon = lab.train("muon", "--max_steps", 60, "--optim", "muon", "--lr", 4e-3)
    lab.curves(adamw, muon)
    losses, goal = lab.losses(muon), mean(lab.losses(adamw)[-10:])
    reached = next((step for step, loss in enumerate(losses, 1) if loss < goal), len(losses))
    val = {run.name[3:]: lab.losses(run, "val_loss")[-1] for run in (adamw, muon)}
    lab.see(**val, reached=reached)
    assert val["muon"] < val["adamw"] - 0.3
    assert reached < 50


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
