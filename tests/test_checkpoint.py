"""Folders that are whole or absent, and the search for runs."""

import errno
import json
import os
import random
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_gpt2
from safetensors import SafetensorError

from run.checkpoint import load_training_state, optimizer_tensors, random_state, save_training_state
from run.cli import UsageError
from run.files import DamagedCheckpoint, DiskFull, check_free_space, clear_leftovers, verify, whole_folder, write_json
from run.folders import (
    best_checkpoints,
    checkpoints_of,
    find_checkpoint,
    find_run,
    new_run,
    read_run,
    remove_old_checkpoints,
    run_of,
    weights_of,
)
from run.lock import RunLock, read_holder
from run.state import TrainState


def test_a_folder_appears_whole_with_a_manifest(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1", encoding="utf-8")
        assert not (tmp_path / "a").exists()
    verify(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


FULL = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "windows": OSError(22, "There is not enough space on the disk", None, 112),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "tokenizers": Exception("No space left on device (os error 28)"),
}


@pytest.mark.parametrize("kind", [kind for kind in FULL if kind != "windows" or os.name == "nt"])
def test_a_save_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path, kind):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old", encoding="utf-8")
    with pytest.raises(DiskFull, match="Free some space"), whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("new", encoding="utf-8")
        raise FULL[kind]
    assert (tmp_path / "a" / "x").read_text(encoding="utf-8") == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_an_error_that_is_not_a_full_disk_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "a"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def system_calls(monkeypatch, act, at: int | None) -> int:
    """Let `act` work until its call number `at` to the disk, which fails for want of room; returns the calls made."""
    calls = 0

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "mkdir"), (Path, "write_text"), (Path, "replace"), (os, "fsync")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        act()
    return calls


def test_a_disk_that_is_full_at_any_write_of_a_save_leaves_what_was_there(tmp_path, monkeypatch):
    def save(text):
        def act():
            with whole_folder(tmp_path / "a") as folder:
                (folder / "x").write_text(text, encoding="utf-8")
                write_json(folder / "y.json", text)

        return act

    save("old")()
    calls = system_calls(monkeypatch, save("old"), at=None)
    assert calls > 10
    for at in range(1, calls + 1):
        with pytest.raises(DiskFull):
            system_calls(monkeypatch, save("new"), at)
        clear_leftovers(tmp_path)  # a sync that fails after the renames leaves the old folder under its hidden name
        verify(tmp_path / "a")
        # the very last call is the sync of the parent, after the new folder is in place
        assert (tmp_path / "a" / "x").read_text(encoding="utf-8") == ("old" if at < calls else "new")
        assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_what_a_death_between_the_two_renames_leaves_is_put_right(tmp_path):
    with whole_folder(tmp_path / "final") as folder:
        (folder / "x").write_text("1", encoding="utf-8")
    (tmp_path / "final").rename(tmp_path / ".final.old")
    (tmp_path / ".final.77.tmp").mkdir()
    clear_leftovers(tmp_path)
    verify(tmp_path / "final")
    assert {path.name for path in tmp_path.iterdir()} == {"final"}


DAMAGES = ["flip", "cut", "remove", "empty"]


def damage(file: Path, how: str, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    at = int(place * (len(content) - 1))
    if how == "remove":
        file.unlink()
    elif how == "flip":
        content[at] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:at] if how == "cut" else b"")


@pytest.mark.parametrize("name", ["x", "manifest.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_found(tmp_path, name, how):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_bytes(b"0123456789")
    damage(tmp_path / "a" / name, how)
    with pytest.raises(DamagedCheckpoint, match="missing or damaged"):
        verify(tmp_path / "a")


def test_every_bit_of_a_manifest_counts(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_bytes(b"0123456789")
    file = tmp_path / "a" / "manifest.json"
    content = file.read_bytes()
    file.write_bytes(content[:-1])  # valid JSON, but not what was written
    with pytest.raises(DamagedCheckpoint):
        verify(tmp_path / "a")
    for place in range(len(content)):
        for bit in range(8):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with pytest.raises(DamagedCheckpoint):
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
    state = TrainState.new(torch.device("cpu"))
    for number, field in enumerate(fields(TrainState), start=1):  # every one of them, those to come too
        kind = type(getattr(state, field.name))
        setattr(state, field.name, torch.tensor(0.1 + number, dtype=torch.float64) if kind is torch.Tensor else number)
    save_training_state(tmp_path, optimizer_tensors(model, optimizer), [random_state()], scaler, state)
    drawn = random.random(), np.random.rand()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    stepped(model, optimizer)  # draws from the random state as it was saved

    again = tiny_gpt2()
    again.load_state_dict(weights)
    fresh = torch.optim.AdamW(again.parameters(), lr=0.1, fused=True)
    torch.manual_seed(99)
    put_back = TrainState.new(torch.device("cpu"))
    load_training_state(tmp_path, again, fresh, scaler, put_back)
    assert put_back.to_json() == state.to_json()
    assert (random.random(), np.random.rand()) == drawn
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
        with whole_folder(folder / f"checkpoint-{step}") as checkpoint:
            (checkpoint / "model.safetensors").write_text(str(step), encoding="utf-8")
            (checkpoint / "optimizer.safetensors").write_text(str(step), encoding="utf-8")
    if final:
        with whole_folder(folder / "final") as last:
            (last / "model.safetensors").write_text("final", encoding="utf-8")
    return folder


def test_the_newest_run_is_the_one_written_to_last(tmp_path):
    old, new = make_run(tmp_path / "z", age=10), make_run(tmp_path / "a", age=0)
    assert find_run(None, tmp_path) == new
    assert find_run("z", tmp_path) == find_run(str(old), tmp_path) == old
    with pytest.raises(UsageError, match="z, a"):
        find_run("nothing", tmp_path)
    with pytest.raises(UsageError, match="train.py"):
        find_run(None, tmp_path / "empty")


def names(run):
    return [path.name for path in checkpoints_of(run)]


def test_checkpoints_are_ordered_by_step_and_the_old_ones_go(tmp_path):
    run = make_run(tmp_path / "run", 1000, 5, 200)
    (run / ".checkpoint-9000.1.tmp").mkdir()  # a save that was killed
    assert names(run) == ["checkpoint-5", "checkpoint-200", "checkpoint-1000"]
    assert run_of("", tmp_path) == run_of(str(run / "checkpoint-200"), tmp_path) == run
    assert find_checkpoint("", run) == run / "checkpoint-1000"
    assert find_checkpoint(str(run / "checkpoint-200"), run) == run / "checkpoint-200"
    remove_old_checkpoints(run, run / "checkpoint-1000", keep=2)
    assert names(run) == ["checkpoint-200", "checkpoint-1000"]


def test_only_the_newest_checkpoint_keeps_the_moments(tmp_path):
    run = make_run(tmp_path / "run", 1, 2, 3)
    remove_old_checkpoints(run, run / "checkpoint-3", keep=3)
    assert [(path / "optimizer.safetensors").exists() for path in checkpoints_of(run)] == [False, False, True]
    for checkpoint in checkpoints_of(run):
        verify(checkpoint)


def test_the_best_checkpoint_is_kept_when_asked(tmp_path):
    run = make_run(tmp_path / "run", 1, 2, 3, 4, 5)
    losses = {1: 3.0, 2: 1.5, 3: 2.0, 5: 1.7, 99: 0.1}  # 4 was not validated, 99 not saved
    lines = [json.dumps({"step": step, "val_loss": loss}) for step, loss in losses.items()]
    (run / "metrics.jsonl").write_text("\n".join(["{", *lines, '{"step": 4, "val_loss": "x"}', "[]"]), encoding="utf-8")
    assert best_checkpoints(run)[0] == run / "checkpoint-2"
    remove_old_checkpoints(run, run / "checkpoint-5", keep=2, keep_best=True)
    assert names(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def test_checkpoints_of_steps_that_are_done_again_go(tmp_path):
    """After a damaged newest one the run goes on from before it: by number the damaged one is still the newest."""
    run = make_run(tmp_path / "run", 2, 4, 8)
    remove_old_checkpoints(run, run / "checkpoint-4", keep=1)
    assert names(run) == ["checkpoint-4"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path, how, capsys):
    run = make_run(tmp_path / "run", 2, 4)
    damage(run / "checkpoint-4" / "model.safetensors", how)
    assert find_checkpoint("", run) == run / "checkpoint-2"
    assert "checkpoint-4" in capsys.readouterr().err
    with pytest.raises(DamagedCheckpoint):
        find_checkpoint(str(run / "checkpoint-4"), run)
    damage(run / "checkpoint-2" / "manifest.json", how)
    with pytest.raises(DamagedCheckpoint, match="No checkpoint"):
        find_checkpoint("", run)


def test_final_weights_come_before_checkpoints(tmp_path):
    assert weights_of(make_run(tmp_path / "run", 10)).name == "checkpoint-10"
    assert weights_of(make_run(tmp_path / "done", 10, final=True)).name == "final"
    with pytest.raises(UsageError, match="no saved weights"):
        weights_of(make_run(tmp_path / "other"))


def test_each_rank_has_its_own_state_and_a_new_one_does_not_repeat_the_first_steps(tmp_path):
    scaler, seen = torch.amp.GradScaler("cpu", enabled=False), {}
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    states = [random_state() | {"micro_batch_tokens": torch.tensor(tokens)} for tokens in (512, 256)]
    for step in (3, 4):
        folder = tmp_path / str(step)
        folder.mkdir()
        state = TrainState.new(torch.device("cpu"), micro_batch_tokens=512)
        state.step = step
        save_training_state(folder, {}, states, scaler, state)
        for rank in (0, 1, 2):
            torch.manual_seed(42 + rank)
            load_training_state(folder, model, optimizer, scaler, state, rank)
            seen[step, rank] = state.micro_batch_tokens, torch.rand(()).item()
    torch.manual_seed(42 + 2)
    beginning = torch.rand(()).item()
    assert [seen[3, rank][0] for rank in (0, 1, 2)] == [512, 256, 512]
    assert len({seen[3, 2][1], seen[4, 2][1], beginning}) == 3  # a third rank, which the checkpoint does not know


def test_any_trouble_of_the_disk_is_one_in_a_save(tmp_path):
    """As safetensors says it: a file that is larger than the system takes, a disk that fails."""
    for number in (errno.EFBIG, errno.EIO):
        with pytest.raises(OSError, match=os.strerror(number)) as error, whole_folder(tmp_path / "a"):
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        assert error.value.errno == number and not list(tmp_path.iterdir())


def test_one_run_has_one_writer(tmp_path):
    lock = RunLock(tmp_path)
    assert read_holder(tmp_path / "lock.json")["pid"] == os.getpid()
    code = f"from pathlib import Path; from run.lock import RunLock; RunLock(Path({str(tmp_path)!r}))"
    refused = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert f"Process {os.getpid()} is training into" in refused.stderr
    del lock
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": 5.0}, {"pid": "?"}, {"pid": -1}])
def test_a_stale_lock_is_taken_over_and_its_leftovers_go(tmp_path, change):
    lock = RunLock(tmp_path)
    # os.getppid() is alive, so the number alone would look like a holder
    holder = read_holder(tmp_path / "lock.json") | {"pid": os.getppid(), "started": 5.0} | change
    (tmp_path / ".checkpoint-3.9.tmp").mkdir()
    del lock
    (tmp_path / "lock.json").write_text(json.dumps(holder), encoding="utf-8")
    _lock = RunLock(tmp_path)
    assert read_holder(tmp_path / "lock.json")["pid"] == os.getpid()
    assert {path.name for path in tmp_path.iterdir()} == {"lock.json"}


def test_of_two_that_take_over_a_stale_lock_one_has_it(tmp_path):
    """Both at the same moment, many times: it was one round in sixty in which both did."""
    stale = json.dumps({"pid": 2**22 + 1, "started": 5.0, "host": socket.gethostname()})
    code = """if True:
        import sys; from pathlib import Path; from run.cli import UsageError; from run.lock import RunLock
        run, held = Path(sys.argv[1]), None
        for line in sys.stdin:
            held = None
            sys.stdin.readline()
            try:
                held = RunLock(run)
            except UsageError:
                pass
            print(held is not None, flush=True)
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "encoding": "utf-8"}
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], **pipes) for _ in range(2)]
    (tmp_path / "run").mkdir()
    for _ in range(40):
        for text in ("let go\n", "take\n"):
            if text == "take\n":
                (tmp_path / "run" / "lock.json").write_text(stale, encoding="utf-8")
            for process in both:
                process.stdin.write(text)
                process.stdin.flush()
        assert sorted(process.stdout.readline() for process in both) == ["False\n", "True\n"]
    for process in both:
        process.communicate()


def test_a_lock_of_another_machine_is_respected(tmp_path):
    (tmp_path / "lock.json").write_text('{"pid": 1, "started": 5, "host": "elsewhere"}', encoding="utf-8")
    with pytest.raises(UsageError, match="machine elsewhere"):
        RunLock(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"options": 3}', "[" * 100_000, "\x00"])
def test_a_damaged_run_file_is_a_sentence(tmp_path, text):
    (tmp_path / "train_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(DamagedCheckpoint, match="damaged"):
        read_run(tmp_path)


def test_a_run_is_never_overwritten(tmp_path):
    run = new_run(tmp_path, "mine", "pocket")
    (run / "train_config.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(UsageError, match="--resume"):
        new_run(tmp_path, "mine", "pocket")


def test_too_little_space_is_said_before_training(tmp_path):
    assert check_free_space(tmp_path / "not" / "there" / "yet", 0) > 0
    with pytest.raises(DiskFull, match="output_dir"):
        check_free_space(tmp_path, 2**60)
