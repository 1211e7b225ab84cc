"""Folders that are whole or absent, and the search for runs."""

import json
import os

import pytest
import torch
from conftest import tiny_gpt2

from run.checkpoint import (
    DamagedCheckpoint,
    DiskFull,
    check_free_space,
    checkpoints_of,
    find_run,
    load_training_state,
    new_run,
    remove_old_checkpoints,
    resume_point,
    save_training_state,
    verify,
    weights_of,
    whole_folder,
)
from run.cli import UsageError


def test_a_folder_appears_whole_with_a_manifest(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1", encoding="utf-8")
        assert not (tmp_path / "a").exists()
    verify(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_a_save_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old", encoding="utf-8")
    with pytest.raises(OSError), whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("new", encoding="utf-8")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a" / "x").read_text(encoding="utf-8") == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found(tmp_path, damage):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_bytes(b"0123456789")
    file = tmp_path / "a" / "x"
    file.unlink() if damage == "remove" else file.write_bytes(b"0123456780" if damage == "flip" else b"0123")
    with pytest.raises(DamagedCheckpoint, match="x is missing or damaged"):
        verify(tmp_path / "a")


def test_the_training_state_comes_back(tmp_path):
    def stepped(model, optimizer):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    model = tiny_gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    torch.manual_seed(5)
    stepped(model, optimizer)
    save_training_state(tmp_path, model, optimizer, scaler, {"step": 3})
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    stepped(model, optimizer)  # draws from the random state as it was saved

    again = tiny_gpt2()
    again.load_state_dict(weights)
    fresh = torch.optim.AdamW(again.parameters(), lr=0.1, fused=True)
    torch.manual_seed(99)
    assert load_training_state(tmp_path, again, fresh, scaler)["step"] == 3
    stepped(again, fresh)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def make_run(folder, *checkpoints, final=False, age=0):
    folder.mkdir(parents=True)
    (folder / "train_config.json").write_text("{}", encoding="utf-8")
    (folder / "metrics.jsonl").write_text("", encoding="utf-8")
    for file in folder.iterdir():
        os.utime(file, (1e9 - age, 1e9 - age))
    for step in checkpoints:
        (folder / f"checkpoint-{step}").mkdir()
    if final:
        (folder / "final").mkdir()
    return folder


def test_the_newest_run_is_the_one_written_to_last(tmp_path):
    old, new = make_run(tmp_path / "z", age=10), make_run(tmp_path / "a", age=0)
    assert find_run(None, tmp_path) == new
    assert find_run("z", tmp_path) == find_run(str(old), tmp_path) == old
    with pytest.raises(UsageError, match="z, a"):
        find_run("nothing", tmp_path)
    with pytest.raises(UsageError, match="train.py"):
        find_run(None, tmp_path / "empty")


def test_checkpoints_are_ordered_by_step_and_the_old_ones_go(tmp_path):
    run = make_run(tmp_path / "run", 1000, 5, 200)
    (run / ".checkpoint-9000.1.tmp").mkdir()  # a save that was killed
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-5", "checkpoint-200", "checkpoint-1000"]
    assert resume_point("", tmp_path) == (run, run / "checkpoint-1000")
    assert resume_point(str(run / "checkpoint-200"), tmp_path) == (run, run / "checkpoint-200")
    remove_old_checkpoints(run, keep=2, newest=run / "checkpoint-1000")
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-200", "checkpoint-1000"]
    remove_old_checkpoints(run, keep=1, newest=run / "checkpoint-200")  # resumed there, and just saved again
    assert [path.name for path in checkpoints_of(run)] == ["checkpoint-200"]


def test_final_weights_come_before_checkpoints(tmp_path):
    run = make_run(tmp_path / "run", 10)
    assert weights_of(run).name == "checkpoint-10"
    (run / "final").mkdir()
    assert weights_of(run).name == "final"
    with pytest.raises(UsageError, match="no saved weights"):
        weights_of(make_run(tmp_path / "other"))


def test_a_run_is_never_overwritten(tmp_path):
    run = new_run(tmp_path, "mine", "pocket")
    (run / "train_config.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(UsageError, match="--resume"):
        new_run(tmp_path, "mine", "pocket")


def test_too_little_space_is_said_before_training(tmp_path):
    assert check_free_space(tmp_path / "not" / "there" / "yet", 0) > 0
    with pytest.raises(DiskFull, match="output_dir"):
        check_free_space(tmp_path, 2**60)
