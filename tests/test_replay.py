"""Some of the older records among the new ones, so that a model forgets less of what it was trained on before."""

import pytest
import torch
from conftest import RECORDS, logged, stopped_at, write_data
from safetensors.torch import load_file

from run.cli import INTERRUPTED, UsageError
from run.config import parse_train
from text.stream import RecordFile, WithReplay, records_of_steps


@pytest.fixture
def files(tmp_path) -> tuple[RecordFile, RecordFile]:
    new, old = write_data(tmp_path / "new", RECORDS[:6]), write_data(tmp_path / "old", RECORDS[6:])
    return RecordFile(new / "train.jsonl"), RecordFile(old / "train.jsonl")


@pytest.mark.parametrize("share, replayed", [(0.01, 1), (0.25, 2), (0.5, 6), (0.8, 24)])
def test_an_epoch_has_each_new_record_once_and_a_share_of_old_ones(files, share, replayed):
    mixed = WithReplay(*files, share, seed=1)
    steps = list(records_of_steps(mixed, 4, seed=1, first_step=0, last_step=-(-len(mixed) // 4)))
    assert {len(step) for step in steps[:-1]} <= {4} and len(mixed) == 6 + replayed == sum(map(len, steps))
    uids = [record["uid"] for step in steps for record in step]
    old = [uid for uid in uids if uid not in {record["uid"] for record in RECORDS[:6]}]
    assert sorted(set(uids) - set(old)) == [record["uid"] for record in RECORDS[:6]] and len(old) == replayed
    assert len(set(old)) == min(replayed, 5)  # none twice before each came once
    assert list(mixed)[6:] == list(WithReplay(*files, share, seed=1))[6:]


def test_another_seed_replays_others(files):
    drawn = {WithReplay(*files, 0.1, seed)[6]["uid"] for seed in range(20)}
    assert len(drawn) > 2


def test_a_resumed_run_with_replay_is_the_same_run_and_another_folder_is_refused(train, files, gpt2_folder, tmp_path):
    common = ("--model", gpt2_folder, "--data", tmp_path / "new", "--replay", tmp_path / "old", "--replay_share", 0.4)
    common += ("--max_steps", 8, "--batch_size", 3, "--logging_steps", 1, "--save_steps", 4)
    runs = tmp_path / "runs"
    assert train("--run_name", "whole", *common) == 0
    with stopped_at(5):
        assert train("--run_name", "parts", *common) == INTERRUPTED
    with pytest.raises(UsageError, match="another replay"):
        train("--resume", runs / "parts", "--replay", tmp_path / "new", "--data", tmp_path / "new")
    assert train("--resume", runs / "parts", "--data", tmp_path / "new") == 0
    one, other = (load_file(runs / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [e["loss"] for e in logged(runs / "whole")] == [e["loss"] for e in logged(runs / "parts")]
    assert logged(runs / "whole")[0]["epoch"] == pytest.approx(1 / 4)  # 6 new, 4 old: 4 steps of 3, the last of one


def test_the_plan_says_what_is_replayed(train, files, gpt2_folder, tmp_path, capsys):
    train("--model", gpt2_folder, "--data", tmp_path / "new", "--replay", tmp_path / "old", "--dry_run")
    said = capsys.readouterr().out
    assert "6 in " in said and f"1 again of {tmp_path / 'old' / 'train.jsonl'}" in said


def test_a_share_of_nothing_is_a_sentence(capsys):
    for args in (["--replay_share", "0.2"], ["--replay", "old", "--replay_share", "1"]):
        with pytest.raises(SystemExit) as stop:
            parse_train(args)
        assert stop.value.code == 2 and "replay_share" in capsys.readouterr().err
