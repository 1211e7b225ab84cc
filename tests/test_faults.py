"""What may happen to a run: the disk fills up, it is stopped, numbers explode, something it stands on is changed."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import RECORDS, logged, stopped_at, write_data
from kinds import folder_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from run.checkpoint import seed_random_state
from run.cli import INTERRUPTED, UsageError
from run.files import DamagedCheckpoint, DiskFull, verify
from run.folders import checkpoints_of
from run.guard import NonFiniteGuard, NonFiniteLoss
from run.state import TrainState
from text.errors import DataError
from text.template import load_template

COMMON = ("--per_device_train_batch_size", 2, "--micro_batch_tokens", 60, "--logging_steps", 1, "--max_eval_samples", 2)


def state_of(run) -> dict[str, torch.Tensor]:
    """Every tensor that a finished run leaves: weights, AdamW's state, random state."""
    (newest,) = checkpoints_of(run)
    tensors = {}
    for file in sorted(newest.glob("*.safetensors")) + [run / "final" / "model.safetensors"]:
        tensors |= {f"{file.parent.name}/{file.name}/{name}": t for name, t in load_file(file).items()}
    return tensors


def assert_same_run(one, other):
    """Bitwise: weights, optimizer, random state; every logged loss, norm and rate."""
    a, b = state_of(one), state_of(other)
    assert a.keys() == b.keys() and len(a) > 50
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    same = ("step", "loss", "grad_norm", "learning_rate", "val_loss", "skipped_steps")
    assert [[e.get(k) for k in same] for e in logged(one)] == [[e.get(k) for k in same] for e in logged(other)]


@pytest.mark.parametrize("stop", [3, 6, 8])  # in the first epoch of 6 steps, at its end, in the second
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(tmp_path, data, gpt2_folder, train, stop, accumulation):
    runs, steps = tmp_path / "runs", 10 if accumulation == 1 else 4
    options = (*COMMON, "--model", gpt2_folder, "--dropout", 0.1, "--learning_rate", 1e-2, "--max_steps", steps)
    options += ("--gradient_accumulation_steps", accumulation)
    assert train("--run_name", "whole", *options) == 0
    with stopped_at(min(stop, steps - 1)):
        assert train("--run_name", "parts", *options) == INTERRUPTED
    seed_random_state(12345)
    assert train("--resume", runs / "parts") == 0
    assert_same_run(runs / "whole", runs / "parts")


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, data, train):
    options = (*COMMON, "--model", "pocket", "--dropout", 0.1, "--max_steps", 2, "--max_length", 64)
    assert train("--run_name", "whole", *options) == 0
    assert train("--run_name", "parts", *options) == 0
    parts = tmp_path / "runs" / "parts"
    shutil.rmtree(parts / "final")
    shutil.rmtree(parts / "checkpoint-2")
    assert train("--resume", parts) == 0
    assert_same_run(tmp_path / "runs" / "whole", parts)


# -- the disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, with a function that leaves it a number of bytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("only root may mount a small disk")

    def leave(free: int) -> None:
        filler = folder / "filler"
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - free)))

    yield folder, leave
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_in_a_save_leaves_the_checkpoint_before(
    tmp_path, data, gpt2_folder, train, small_disk, monkeypatch
):
    """Real writes of all the libraries involved, on a disk that is full a little later each time."""
    disk, leave = small_disk
    with stopped_at(1):
        args = ("--model", gpt2_folder, "--output_dir", disk, "--run_name", "a", "--max_steps", 9, *COMMON)
        train(*args)
    whole = sum(file.stat().st_size for file in (disk / "a" / "checkpoint-1").rglob("*"))
    for module in ("run.checkpoint", "run.plan"):
        monkeypatch.setattr(f"{module}.check_free_space", lambda folder, needed: 0)
    failed = 0
    for share in [i / 12 for i in range(14)]:
        leave(int(whole * share) + 20_000)  # 20 KB for metrics.jsonl and the lock
        try:
            with stopped_at(1):
                train("--resume", disk / "a", "--output_dir", disk)
            break
        except DiskFull as error:
            failed += 1
            assert "full" in str(error) and error.exit_code == 6
        found = checkpoints_of(disk / "a")
        assert [path.name for path in found] == ["checkpoint-1"]
        verify(found[0])
    assert failed >= 8


def test_a_disk_that_is_known_to_be_too_small_is_said_before_the_save(tmp_path, data, gpt2_folder, train, small_disk):
    disk, leave = small_disk
    options = ("--model", gpt2_folder, "--output_dir", disk, "--run_name", "a", "--max_steps", 9, *COMMON)
    with stopped_at(1):
        train(*options)
    leave(100_000)
    with pytest.raises(DiskFull, match="free, and saving"):
        train("--resume", disk / "a", "--output_dir", disk)
    verify(disk / "a" / "checkpoint-1")


# -- damage -----------------------------------------------------------------------------------------------------------


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, data, gpt2_folder, train, capsys):
    options = (*COMMON, "--model", gpt2_folder, "--save_steps", 2, "--save_total_limit", 2)
    with stopped_at(4):
        train("--run_name", "a", "--max_steps", 6, *options)
    run = tmp_path / "runs" / "a"
    (run / "checkpoint-4" / "training_state.json").write_bytes(b"")
    assert train("--resume", run) == 0
    said = capsys.readouterr().err
    assert "checkpoint-4" in said and "the optimizer's averages begin anew" in said
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-4", "checkpoint-6"]
    for folder in (*checkpoints_of(run), run / "final"):
        verify(folder)
    assert [entry["step"] for entry in logged(run)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("more", [(), ("--lora",), ("--lora", "--load_in_4bit")], ids=["full", "lora", "lora-4bit"])
def test_the_best_checkpoint_becomes_the_final_model(tmp_path, data, train, monkeypatch, capsys, more):
    losses, loaded = iter([3.0, 1.0, 2.0, 2.0]), []
    monkeypatch.setattr("run.validation.mean_loss", lambda *args: next(losses))
    read = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loaded.append(1) or read(*a, **k))
    options = ("--save_steps", 2, "--eval_steps", 2, "--load_best_model_at_end", "--max_steps", 6)
    model = folder_of("qwen2", tmp_path / "base")
    assert train("--model", model, "--run_name", "a", "--learning_rate", 1e-2, *COMMON, *options, *more) == 0
    run = tmp_path / "runs" / "a"
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-4", "checkpoint-6"]
    assert loaded == [1]  # the base; at the end no other model is loaded, which a card could not hold
    weights = "adapter_model.safetensors" if more else "model.safetensors"
    best, newest, final = (load_file(run / name / weights) for name in ("checkpoint-4", "checkpoint-6", "final"))
    assert all(torch.equal(best[name], final[name]) for name in best)
    assert not all(torch.equal(newest[name], final[name]) for name in best)
    damaged = run / "checkpoint-4" / weights
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert train("--resume", run) == 0
    assert "checkpoint-4" in capsys.readouterr().err
    final = load_file(run / "final" / weights)
    assert all(torch.equal(newest[name], final[name]) for name in newest)


# -- another model, template, data, option ----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, data, gpt2_folder, train):
    with stopped_at(2):
        train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 4, *COMMON)
    return tmp_path / "runs" / "a"


@pytest.mark.parametrize(
    "name, value",
    [
        ("model", "distilgpt2"),
        ("learning_rate", 0.5),
        ("seed", 7),
        ("max_length", 99),
        ("loss_on", "all"),
        ("batch_size", 5),
    ],
)
def test_an_option_that_would_make_it_another_run_is_refused(run, train, name, value):
    with pytest.raises(UsageError, match=str(value)):
        train("--resume", run, f"--{name}", value)


def test_other_data_is_refused(run, train, data):
    write_data(data, RECORDS[:-1])
    with pytest.raises(UsageError, match="another train.jsonl"):
        train("--resume", run)


def test_a_correction_in_the_middle_of_the_data_is_seen(run, train, data):
    text = (data / "train.jsonl").read_text(encoding="utf-8")
    (data / "train.jsonl").write_text(text.replace("blue", "grey"), encoding="utf-8")
    assert text.count("blue") and len(text.encode()) == (data / "train.jsonl").stat().st_size
    with pytest.raises(UsageError, match="another train.jsonl"):
        train("--resume", run)


@pytest.mark.parametrize("saved", [True, False], ids=["with a checkpoint", "before the first"])
def test_a_template_that_was_edited_is_refused_and_the_runs_own_goes_on(tmp_path, data, gpt2_folder, train, saved):
    file = tmp_path / "mine.toml"
    file.write_text('prompt = "A {title}"\nanswer = " {content}"\n', encoding="utf-8")
    with stopped_at(2):
        train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 3, "--template", file, *COMMON)
    run = tmp_path / "runs" / "a"
    if not saved:
        shutil.rmtree(run / "checkpoint-2")
    file.write_text('prompt = "B {title}"\nanswer = " {content}"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mine.toml was edited"):
        train("--resume", run, "--template", file)
    file.unlink()
    assert train("--resume", run) == 0
    assert load_template(run / "final").prompt == "A {title}"


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "before the first checkpoint"])
def test_a_base_that_was_changed_is_refused(tmp_path, data, train, lora):
    base = folder_of("qwen2", tmp_path / "base")
    with stopped_at(2):
        more = ("--lora",) if lora else ()
        train("--model", base, "--run_name", "a", "--max_steps", 3, *COMMON, *more)
    run = tmp_path / "runs" / "a"
    if not lora:
        shutil.rmtree(run / "checkpoint-2")
    weights = load_file(base / "model.safetensors")
    changed = {name: value * 1.01 if "mlp" in name else value for name, value in weights.items()}
    save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="other weights"):
        train("--resume", run)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert train("--resume", run) == 0


def test_whoever_goes_back_to_a_checkpoint_leaves_the_later_ones(run, train, capsys):
    assert train("--resume", run, "--save_steps", 1, "--save_total_limit", 9) == 0
    shutil.rmtree(run / "final")
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    with stopped_at(1):
        assert train("--resume", run / "checkpoint-2", "--save_total_limit", 9) == INTERRUPTED
    assert "checkpoint-4 goes" in capsys.readouterr().err
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-2", "checkpoint-3"]
    assert train("--resume", run) == 0
    assert [entry["step"] for entry in logged(run)] == [1, 2, 3, 4]


def test_an_adapter_is_trained_further_and_never_by_accident(tmp_path, data, train):
    base = folder_of("llama", tmp_path / "base")
    assert train("--model", base, "--run_name", "a", "--max_steps", 2, *COMMON, "--lora", "--template", "hf") == 0
    assert train("--resume", tmp_path / "runs" / "a", "--template", "hf", "--max_steps", 3) == 0
    adapter = tmp_path / "runs" / "a" / "final"
    with pytest.raises(UsageError, match="Train it further with --lora"):
        train("--model", adapter, "--run_name", "b", "--max_steps", 2, *COMMON)
    assert train("--model", adapter, "--run_name", "b", "--max_steps", 2, *COMMON, "--lora") == 0
    assert logged(tmp_path / "runs" / "b")[0]["loss"] == pytest.approx(logged(tmp_path / "runs" / "a")[-1]["loss"], 0.2)


def test_what_a_resumed_run_cannot_do_is_said(run, train):
    with pytest.raises(UsageError, match="There are: checkpoint-2"):
        train("--resume", run / "checkpoint-7")
    with pytest.raises(UsageError, match="past step 1"):
        train("--resume", run, "--max_steps", 1)
    with pytest.raises(UsageError, match="max_steps"):
        train("--resume", run, "--epochs", 50)


def test_another_model_or_template_in_the_checkpoint_is_refused(run, train, gpt2_folder):
    for name in ("template.json", "config.json", "model.safetensors"):
        file = run / "checkpoint-2" / name
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        with pytest.raises(DamagedCheckpoint, match="No checkpoint"):
            train("--resume", run)
        file.write_bytes(content)
    assert train("--resume", run) == 0


def test_the_same_option_again_and_another_micro_batch_are_fine(run, train, data, gpt2_folder, tmp_path):
    moved = data.rename(tmp_path / "moved")
    assert (
        train("--resume", run, "--seed", 42, "--micro_batch_tokens", 200, "--data", moved, "--model", gpt2_folder) == 0
    )
    assert [entry["step"] for entry in logged(run)] == [1, 2, 3, 4]


# -- numbers ----------------------------------------------------------------------------------------------------------


def poisoned(monkeypatch, steps, what=float("nan")):
    """Let the loss of some steps (counted in micro-batches, one a step) be no number."""
    import train as script

    true_loss, calls = script.summed_loss, iter(range(1, 1000))

    def loss(model, batch):  # only in the loop: the memory plan calls it too, with a blank batch
        return true_loss(model, batch) * (what if batch.ids.any() and next(calls) in steps else 1.0)

    monkeypatch.setattr(script, "summed_loss", loss)


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_never_reaches_the_weights(tmp_path, data, gpt2_folder, train, monkeypatch, what):
    options = ("--model", gpt2_folder, "--run_name", "a", "--max_steps", 5, "--save_steps", 1, "--save_total_limit", 9)
    options += (*COMMON, "--micro_batch_tokens", 4096)
    poisoned(monkeypatch, {3, 5}, what)
    assert train(*options) == 0
    run = tmp_path / "runs" / "a"
    assert [path.name for path in checkpoints_of(run)] == [f"checkpoint-{i}" for i in (1, 2, 4, 5)]
    earlier, before, after = (load_file(run / f"checkpoint-{i}" / "model.safetensors") for i in (2, 4, 5))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(earlier[name], before[name]) for name in before)
    assert all(value.isfinite().all() for value in load_file(run / "final" / "model.safetensors").values())
    entries = logged(run)
    assert [entry["skipped_steps"] for entry in entries] == [0, 0, 1, 1, 2]
    assert [entry["loss"] is None for entry in entries] == [False, False, True, False, True]


def test_too_many_in_a_row_end_it_with_the_step_the_records_and_the_way_back(
    tmp_path, data, gpt2_folder, train, monkeypatch
):
    poisoned(monkeypatch, range(3, 100))
    options = ("--model", gpt2_folder, "--run_name", "a", "--max_steps", 9, "--save_steps", 2, *COMMON)
    with pytest.raises(NonFiniteLoss) as error:
        train(*options, "--micro_batch_tokens", 4096, "--max_skipped_steps", 3)
    assert error.value.exit_code == 5
    assert "step 5 (records U" in str(error.value) and "checkpoint-2" in str(error.value)


def test_an_overflow_of_fp16_is_skipped_counted_and_lowers_the_scale():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = TrainState.new(torch.device("cpu"))
    guard = NonFiniteGuard(state, optimizer, scaler, None, max_skipped_steps=10)
    for factor in (1.0, float("inf"), 1.0):
        loss = (weight * factor).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
        before = weight.detach().clone()
        guard.check(torch.ones(()), norm, ["U"])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, weight) == (factor != 1.0)
    guard.settle()
    assert (state.overflows, state.skipped_steps, state.skipped_in_a_row, scaler.get_scale()) == (1, 0, 0, 4.0)
    assert optimizer.state[weight]["step"] == 2


@pytest.mark.parametrize("bearable, ends_after", [(2.0**5, None), (2.0**-3, 19)])
def test_fp16_may_look_for_its_scale_as_long_as_there_is_one_left(bearable, ends_after):
    """Larger models bear a loss scale of 2^5 and less: finding it down from 2^16 skips more than ten steps in a row."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scaler, state = torch.amp.GradScaler("cpu", init_scale=2.0**16), TrainState.new(torch.device("cpu"))
    guard = NonFiniteGuard(state, optimizer, scaler, Path("a run that is not there"), max_skipped_steps=3)
    for step in range(1, 30):
        factor = float("inf") if scaler.get_scale() > bearable else 1.0
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
        state.step = step - 1
        guard.check(torch.ones(()), norm, ["U"])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        try:
            guard.settle()
        except NonFiniteLoss as error:
            assert step == ends_after and "--precision fp32" in str(error)
            return
    assert ends_after is None and state.overflows == 11 and state.skipped_steps == 0


def test_counts_of_skipped_steps_survive_a_resume(tmp_path, data, gpt2_folder, train, monkeypatch):
    options = (*COMMON, "--model", gpt2_folder, "--run_name", "a", "--max_steps", 5, "--micro_batch_tokens", 4096)
    with pytest.MonkeyPatch.context() as patch, stopped_at(2):
        poisoned(patch, {1, 2})
        train(*options, "--max_skipped_steps", 3)
    poisoned(monkeypatch, {1})
    with pytest.raises(NonFiniteLoss, match="3 steps in a row"):
        train("--resume", tmp_path / "runs" / "a")


def test_a_metrics_file_cut_short_is_repaired(run, train):
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo\xff\xfe')
    assert train("--resume", run) == 0
    assert [entry["step"] for entry in logged(run)] == [1, 2, 3, 4]
    json.dumps(logged(run), allow_nan=False)
