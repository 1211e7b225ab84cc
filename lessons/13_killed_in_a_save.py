"""13. Killed in the middle of a save

Do: train 30 steps and save every tenth. In a second run the process dies in the save of step 20, with everything
written and not yet renamed, as when the power fails. Then resume it.

Predict: from which step does it go on? Is checkpoint-20 there? Is the final model the same?

See: after the death the folder held {there}. It went on from step {step}, and at the end {equal} of {all} weights and
{losses} of 30 losses are the same to the bit.

Why: a checkpoint is written under a hidden name, flushed to the disk, and then renamed, which a file system does
wholly or not at all. So what bears a checkpoint's name is whole, and the newest whole one is enough: it has the
weights, the averages, the counters and the random state, and the order of the records is a function of the seed and
the step. A loop that writes in place loses its old checkpoint to the new one at just the moment when it needs one of
them.
"""

from lesson import ROOT, Edit, teach
from safetensors.torch import load_file

DIE = Edit(
    "run/files.py",
    "        put_in_place(temporary, path)\n",
    "        if path.name == 'checkpoint-20':\n"
    "            os._exit(1)  # nothing is tidied up\n"
    "        put_in_place(temporary, path)\n",
)


def experiment(lab):
    options = ("--max_steps", 30, "--save_steps", 10, "--dropout", 0.1)
    run = lab.train("undisturbed", *options)
    killed = lab.train("killed", *options, edits=(DIE,), fails=True)
    there = sorted(path.name for path in (ROOT / killed).glob("*checkpoint-*"))
    whole = [name for name in there if not name.startswith(".")]
    lab.command("train.py", "--resume", killed)
    lab.curves(run, killed)
    one, other = (load_file(ROOT / folder / "final" / "model.safetensors") for folder in (run, killed))
    equal = sum(one[name].equal(other[name]) for name in one)
    losses = sum(a == b for a, b in zip(lab.losses(run), lab.losses(killed), strict=True))
    lab.see(there=", ".join(there), step=whole[0].removeprefix("checkpoint-"), equal=equal, all=len(one), losses=losses)
    assert whole == ["checkpoint-10"]
    assert equal == len(one) and losses == 30


if __name__ == "__main__":
    teach(__file__, __doc__, experiment)
