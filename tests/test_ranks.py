"""Several processes compute the same steps as one: the same losses, the same weights, also when one of them dies."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from conftest import RECORDS, ROOT, logged, stopped_at, tiny_gpt2, write_data
from safetensors.torch import load_file

import train as script
from run.cli import INTERRUPTED, UsageError
from run.config import parse_train
from run.folders import OPTIMIZER
from run.memory import MemoryPlan
from run.ranks import Ranks
from run.shard import divided
from text.batch import Row, share_of, step_batch

LONG = 100
STEPS = ("--logging_steps", 1, "--learning_rate", 0.01, "--micro_batch_tokens", 150, "--save_steps", 2)


def torchrun(ranks: int, *args) -> subprocess.Popen:
    """train.py as several processes of this machine."""
    start = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
    return subprocess.Popen(
        [sys.executable, *start, str(ROOT / "train.py"), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def rows_of(*lengths: int) -> list[Row]:
    return [Row(f"U{i}", list(range(length)), 2) for i, length in enumerate(lengths)]


def test_ranks_share_the_rows_of_a_step_by_tokens():
    rows = rows_of(9, 3, 4, 30, 5, 7, 2, 12)
    for ranks in (1, 2, 3, 5, 9):
        shares = [share_of(rows, rank, ranks) for rank in range(ranks)]
        assert sorted(row.uid for share in shares for row in share) == [row.uid for row in rows]
        loads = [sum(len(row.ids) for row in share) for share in shares]
        assert max(loads) - min(loads) <= 30  # Graham's bound: never further apart than the longest row
    assert [sum(len(row.ids) for row in share_of(rows, rank, 2)) for rank in (0, 1)] == [36, 36]


def test_every_rank_divides_by_the_tokens_of_all():
    rows = rows_of(9, 1, 4, 30)
    batches = [step_batch(rows, 20, rank, 3) for rank in range(3)]
    targets = sum(len(micro_batch.targets) for batch in batches for micro_batch in batch.prepared)
    assert {batch.supervised for batch in batches} == {targets} == {7 + 0 + 2 + 28}
    assert step_batch(rows[:1], 20, rank=2, ranks=3).prepared == []  # fewer records than ranks


def test_a_single_process_needs_no_group():
    ranks = Ranks()
    assert ranks.collect(ranks.share(["a", "b"])) == ["a", "b"]
    assert ranks.from_main(lambda: 5) == 5 and ranks.any(True) and ranks.mean(2.0, weight=3) == 2.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tokenizer):
    """Runs of one process, 6 records a step of 11: the last step of an epoch has 5."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_gpt2(len(tokenizer)).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    write_data(folder / "data", RECORDS)
    common = ("--model", folder / "gpt2", "--data", folder / "data", "--output_dir", folder, "--device", "cpu", *STEPS)
    for steps in (4, LONG):
        assert run_train(*common, "--run_name", f"one-{steps}", "--batch_size", 6, "--max_steps", steps) == 0
    return folder, common


def run_train(*args) -> int:
    return script.main(parse_train([str(arg) for arg in args]))


def assert_equal_runs(one, other):
    """Losses within 1e-6, weights within 1e-5, in fp32."""
    for a, b in zip(logged(one), logged(other), strict=True):
        assert a["step"] == b["step"]
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-6)
        assert b.get("val_loss") == pytest.approx(a.get("val_loss"), abs=1e-6)
    (weights,) = (one / "final").glob("*model.safetensors")
    expected, got = (load_file(run / "final" / weights.name) for run in (one, other))
    assert expected.keys() == got.keys()
    assert all((expected[name] - got[name]).abs().max() <= 1e-5 for name in expected)


@pytest.mark.parametrize("more", [(), ("--shard",)], ids=["whole", "sharded"])
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_and_three_processes_train_as_one_does(alone, ranks, more):
    folder, common = alone
    name = f"r{ranks}{''.join(more)}"
    process = torchrun(ranks, *common, "--run_name", name, "--batch_size", 6 // ranks, "--max_steps", 4, *more)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_equal_runs(folder / "one-4", folder / name)
    assert said.count("Saved ") == 1  # rank 0 speaks for all
    files = [{file.name for file in (folder / run / "checkpoint-4").iterdir()} for run in ("one-4", name)]
    assert files[0] == files[1]
    shapes = [
        {key: value.shape for key, value in load_file(folder / run / "checkpoint-4" / "optimizer.safetensors").items()}
        for run in ("one-4", name)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("more", [(), ("--lora", "--gradient_checkpointing")], ids=["full", "lora"])
def test_what_one_process_began_goes_on_sharded(alone, more):
    folder, common = alone
    kind = "lora" if more else "full"
    steps = ("--batch_size", 6, "--max_steps", 4, *more)
    assert run_train(*common, "--run_name", f"alone-{kind}", *steps) == 0
    with stopped_at(3):
        assert run_train(*common, "--run_name", f"begun-{kind}", *steps) == INTERRUPTED
    best = ("--load_best_model_at_end", "--save_steps", 2, "--eval_steps", 2)  # its weights are divided again
    process = torchrun(2, "--resume", folder / f"begun-{kind}", "--shard", *best)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_equal_runs(folder / f"alone-{kind}", folder / f"begun-{kind}")
    saved = [load_file(folder / f"{name}-{kind}" / "checkpoint-4" / OPTIMIZER) for name in ("alone", "begun")]
    assert saved[0].keys() == saved[1].keys()  # after a validation too


def test_in_half_precision_what_is_gathered_is_half(alone):
    """And the numbers are those of one process in bf16, up to what bf16 rounds."""
    folder, common = alone
    steps = ("--precision", "bf16", "--batch_size", 6, "--max_steps", 4)
    assert run_train(*common, "--run_name", "bf16", *steps) == 0
    process = torchrun(2, *common, "--run_name", "bf16-sharded", *steps[:2], "--batch_size", 3, *steps[4:], "--shard")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    one, two = (logged(folder / name) for name in ("bf16", "bf16-sharded"))
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=2e-3)
    assert [entry["grad_norm"] for entry in two] == pytest.approx([entry["grad_norm"] for entry in one], rel=5e-2)


def test_the_plan_of_a_divided_model_divides_what_is_divided():
    model, dtype = tiny_gpt2(500, n_layer=6), torch.bfloat16
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.transformer.h]
    every = sum(p.numel() for p in model.parameters())
    copies = 2 * sum(p.numel() for block in model.transformer.h for p in block.parameters() if p.ndim > 1)
    plan = MemoryPlan(4 * every, 4 * every, 8 * every, 10, 20, copies + 1000, 1.0, 1.0)
    part = divided(plan, model, 4, dtype)
    gathered = 2 * (every - sum(sizes) + 2 * max(sizes))
    assert part.weights == every and part.optimizer == 2 * every
    assert part.kept == 1000 + 2 * gathered  # and their gradients; no copy of the whole


def test_shard_wants_several_processes(alone):
    _, common = alone
    with pytest.raises(UsageError, match="torchrun --nproc_per_node"):
        run_train(*common, "--shard")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("more", [(), ("--shard",)], ids=["whole", "sharded"])
def test_a_rank_that_dies_ends_the_others_and_one_process_goes_on(alone, more):
    folder, common = alone
    name = f"dead{''.join(more)}"
    process = torchrun(2, *common, "--run_name", name, "--batch_size", 3, "--max_steps", LONG, *more)
    for line in process.stdout:
        if line.startswith("step   5/"):
            workers = psutil.Process(process.pid).children()
            next(worker for worker in workers if worker.environ().get("RANK") == "1").kill()
            break
    _, errors = process.communicate(timeout=60)  # raises where somebody is still there after a minute
    assert process.returncode != 0 and not (folder / name / "final").exists()
    assert "Another process of this run has ended" in errors
    assert run_train("--resume", folder / name) == 0
    one, other = (logged(folder / run)[-1] for run in (f"one-{LONG}", name))
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-5) and other["step"] == one["step"] == LONG
