"""How long a run takes: known before it, fixed by --minutes, and measured without a trace."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from conftest import TIMES, logged, stopped_at
from safetensors.torch import load_file
from test_ranks import alone, torchrun  # noqa: F401  a fixture

import run.plan
from run.cli import INTERRUPTED, UsageError
from run.config import TrainConfig, from_json, parse_train, resumed, with_model_defaults
from run.duration import TimePlan
from run.session import Session
from run.units import duration


@pytest.fixture
def known_times(monkeypatch):
    """A step takes the two seconds of TIMES, and loading a model none."""
    monkeypatch.setattr(Session, "seconds", 0.0)


def saved_options(folder) -> dict:
    return json.loads((folder / "train_config.json").read_text(encoding="utf-8"))["options"]


def test_a_run_is_its_steps_and_what_is_due_between_them():
    config = TrainConfig(eval_steps=10, save_steps=25)
    assert TIMES.left(config, 0, 25) == 25 * 2 + 3 * 10 + 1 * 5 + 7 + 3  # validated at 10, 20 and the last
    assert TIMES.left(config, 0, 30) == 30 * 2 + 3 * 10 + 2 * 5 + 7 + 3
    assert TIMES.left(config, 20, 30) == 10 * 2 + 1 * 10 + 2 * 5 + 3  # no answers from before
    seconds = [TIMES.left(config, 0, steps) for steps in range(1, 100)]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("seconds", [0, 26, 27, 28, 100, 1000])
@pytest.mark.parametrize("done", [0, 20])
def test_as_many_steps_as_fit(seconds, done):
    config = TrainConfig(eval_steps=10, save_steps=25)
    steps = TIMES.steps_within(seconds, config, done)
    assert TIMES.left(config, done, steps + 1) > seconds
    assert steps == done or TIMES.left(config, done, steps) <= seconds


def test_durations_are_said_within_a_tenth():
    assert [duration(s) for s in (4.04, 75, 200, 3725, 8000, 400000)] == [
        "4.0 s", "75 s", "3.3 min", "62 min", "2.2 h", "111 h",
    ]  # fmt: skip


@pytest.mark.parametrize("other", [("--max_steps", "5"), ("--epochs", "1")])
def test_two_lengths_are_a_sentence_and_exit_code_2(other, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--minutes", "3", *other])
    assert stop.value.code == 2 and "name one of them" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "1e9"])
def test_minutes_have_a_range(minutes, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--minutes", minutes])
    assert stop.value.code == 2 and "minutes" in capsys.readouterr().err


def test_minutes_take_the_place_of_the_length_that_a_run_had():
    config = with_model_defaults(parse_train(["--minutes", "3"]).config, from_scratch=False)
    assert (config.minutes, config.num_train_epochs, config.max_steps) == (3.0, None, None)
    saved = asdict(config) | {"minutes": None, "max_steps": 400}
    assert from_json(saved, "here").max_steps == 400
    more = resumed(saved, {"minutes": 2.0}, "here")
    assert (more.minutes, more.max_steps, more.num_train_epochs) == (2.0, None, None)


@pytest.mark.parametrize("more", [("--dropout", 0.1), ("--lora", "--lora_dropout", 0.1), ("--optim", "muon")])
def test_what_is_measured_leaves_no_trace(train, data, gpt2_folder, tmp_path, more):
    """The same run bit by bit as one whose plan measures nothing, in its first step and in all that it ends with."""
    options = ("--model", gpt2_folder, "--max_steps", 4, "--batch_size", 4, "--logging_steps", 1, "--lr", 0.01, *more)
    options += ("--warmup_ratio", 0)
    assert train("--run_name", "measured", *options, measure=True) == 0
    assert train("--run_name", "plain", *options) == 0
    same = ("step", "loss", "grad_norm", "learning_rate", "val_loss")
    logs = [[[e.get(k) for k in same] for e in logged(tmp_path / "runs" / name)] for name in ("measured", "plain")]
    assert logs[0] == logs[1]
    files = sorted((tmp_path / "runs" / "plain" / "checkpoint-4").glob("*.safetensors"))
    assert {file.name for file in files} >= {"optimizer.safetensors", "random_state.safetensors"}
    for file in files:
        one, other = load_file(file), load_file(tmp_path / "runs" / "measured" / "checkpoint-4" / file.name)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), file.name


def test_the_steps_are_fixed_and_a_resumed_run_is_the_same_run(
    train, data, gpt2_folder, tmp_path, known_times, monkeypatch, capsys
):
    options = ("--model", gpt2_folder, "--batch_size", 4, "--minutes", 0.7, "--save_steps", 4, "--dropout", 0.1)
    runs = tmp_path / "runs"
    assert train("--run_name", "whole", *options) == 0
    steps = TIMES.steps_within(42, TrainConfig(save_steps=4), 0)
    said = capsys.readouterr().out
    assert (
        steps > 2 and f"steps          {steps} of 4 records" in said and "epochs), what fits into 0.7 minutes" in said
    )
    saved = saved_options(runs / "whole")
    assert (saved["max_steps"], saved["minutes"]) == (steps, None)
    assert logged(runs / "whole")[-1]["step"] == steps and logged(runs / "whole")[-1]["learning_rate"] > 0
    with stopped_at(3):
        assert train("--run_name", "parts", *options) == INTERRUPTED
    slower = TimePlan(step=9.0, validation=99.0, checkpoint=9.0, before=9.0, after=9.0)
    monkeypatch.setattr(run.plan, "measure_time", lambda *_, **__: slower)  # another machine, or a busy one
    assert train("--resume", runs / "parts", measure=True) == 0
    one, other = (load_file(runs / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_more_minutes_on_resume_count_from_then_on_and_are_fixed_again(train, data, gpt2_folder, tmp_path, known_times):
    run_folder = tmp_path / "runs" / "a"
    assert train("--model", gpt2_folder, "--run_name", "a", "--batch_size", 4, "--max_steps", 5) == 0
    with stopped_at(2):
        assert train("--resume", run_folder, "--minutes", 0.7) == INTERRUPTED
    steps = TIMES.steps_within(42, TrainConfig(), 5)
    assert steps > 7 and saved_options(run_folder)["max_steps"] == steps
    assert train("--resume", run_folder) == 0
    assert logged(run_folder)[-1]["step"] == steps


def test_too_few_minutes_are_a_sentence(train, data, gpt2_folder, known_times):
    with pytest.raises(UsageError, match="no time for a step; for one it takes 27 s"):
        train("--model", gpt2_folder, "--minutes", 0.2)


def test_the_plan_of_any_run_says_how_long_it_takes(train, data, gpt2_folder, known_times, capsys):
    train("--model", gpt2_folder, "--max_steps", 30, "--dry_run")
    seconds = TIMES.left(TrainConfig(), 0, 30)
    assert f"time           about {duration(seconds)}" in capsys.readouterr().out


@pytest.mark.slow
def test_all_ranks_take_as_many_steps(alone):  # noqa: F811
    """What each of them measures is another number; rank 0's counts. (That the steps stay those of one process, with
    all that is measured before, is in test_ranks.py.)"""
    folder, common = alone
    process = torchrun(2, *common, "--run_name", "timed", "--batch_size", 3, "--minutes", 0.15)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    steps = saved_options(folder / "timed")["max_steps"]
    assert logged(folder / "timed")[-1]["step"] == steps and math.isfinite(logged(folder / "timed")[-1]["loss"])
