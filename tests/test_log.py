"""The pure functions behind every number on the screen."""

import json
import math
import platform
from types import SimpleNamespace

import psutil
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from run.device import give_back_freed_memory, keep_freed_memory
from run.log import MetricLogger, Stopwatch, progress_line
from run.metrics import MetricsFile
from run.plan import learning_rate_at
from run.ranks import Ranks
from run.state import TrainState
from run.units import clock, eta_seconds, short, size


@pytest.mark.parametrize(
    "name, reference", [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_learning_rate_is_that_of_transformers(name, reference, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = reference(optimizer, warmup, 40)
    for step in range(40):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_at(step, 40, warmup, 0.3, name) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        schedule.step()


def plan_with(learning_rate_at, adds: int = 2**40) -> SimpleNamespace:
    return SimpleNamespace(
        total_steps=4, epoch_steps=2, held_before=2**20, adds=adds, learning_rate_at=learning_rate_at
    )


def test_eta():
    assert eta_seconds(10, 40, 5.0) == 15.0
    assert math.isnan(eta_seconds(0, 40, 5.0))


def test_numbers_for_people():
    assert [clock(s) for s in (0, 59.6, 75, 3725, math.nan)] == ["0:00", "1:00", "1:15", "1:02:05", "?"]
    assert [size(n) for n in (0, 1023, 1536, 200 * 2**20, 3 * 2**40)] == ["0 B", "1023 B", "1.5 KB", "200 MB", "3.0 TB"]
    assert [short(n) for n in (0, 999, 1234, 3_456_789, 82e6)] == ["0", "999", "1.2k", "3.5M", "82.0M"]


ENTRY = {
    "step": 50,
    "loss": 1.25,
    "val_loss": 1.5,
    "learning_rate": 1e-3,
    "answer_tokens_per_second": 5400.0,
    "eta_seconds": 61.0,
    "memory_before_training_bytes": 450 * 2**20,
    "peak_memory_bytes": 600 * 2**20,
}


def test_the_progress_line_has_every_part():
    line = progress_line(ENTRY, 200, width=200)
    assert line == (
        "step  50/200  25%  loss 1.2500  val 1.5000  lr 1.0e-03  5.4k answer tokens/s  ETA 1:01  "
        "peak 600 MB, 450 MB before training"
    )


@pytest.mark.parametrize("width", [20, 40, 79])
def test_the_progress_line_fits_a_narrow_terminal(width):
    assert len(progress_line(ENTRY, 200, width)) <= width


def test_lines_of_steps_that_will_be_done_again_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st', encoding="utf-8")
    MetricsFile(path, resumed_at=2).write({"step": 3, "again": True})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "again": True},
    ]


def test_waiting_is_told_from_computing(monkeypatch):
    now = iter([0.0, 10.0, 13.0, 20.0, 21.0, 30.0, 40.0])
    monkeypatch.setattr("run.log.time.perf_counter", lambda: next(now))
    watch = Stopwatch()  # at 0; the first item takes 3 seconds, the second 1
    assert list(watch.waiting_for("ab")) == ["a", "b"]
    assert watch.lap() == (40.0, 4.0)


def test_what_comes_before_the_loop_is_no_time_of_training(tmp_path, monkeypatch):
    now = iter([0.0, 60.0, 60.0, 61.0, 64.0])  # made; the loop begins; a batch is awaited; it is there; the entry
    monkeypatch.setattr("run.log.time.perf_counter", lambda: next(now))
    plan = SimpleNamespace(
        total_steps=4, epoch_steps=2, held_before=2**20, adds=2**40, learning_rate_at=lambda step: 0.1
    )
    state, stopwatch = TrainState.new(torch.device("cpu")), Stopwatch()
    metrics = MetricLogger(state, plan, tmp_path, torch.device("cpu"), stopwatch, Ranks())
    for _ in metrics.progress_bar(["a batch"]):
        state.count(torch.tensor(6.0, dtype=torch.float64), 8)
        entry = metrics.entry(torch.tensor(0.5))
        break
    assert entry["answer_tokens_per_second"] == 2.0 and entry["eta_seconds"] == 12.0 and entry["data_wait"] == 0.25


def test_the_speed_after_a_resume_is_of_what_this_session_did(tmp_path, monkeypatch):
    now = iter([0.0, 0.0, 4.0, 6.0])
    monkeypatch.setattr("run.log.time.perf_counter", lambda: next(now))
    state, stopwatch = TrainState.new(torch.device("cpu")), Stopwatch()
    state.count(torch.tensor(6.0, dtype=torch.float64), 100)  # saved between two entries
    metrics = MetricLogger(state, plan_with(lambda step: 0.1), tmp_path, torch.device("cpu"), stopwatch, Ranks())
    stopwatch.start()
    for tokens, speed, logged in ((8, 2.0, 108), (10, 5.0, 10)):
        state.count(torch.tensor(6.0, dtype=torch.float64), tokens)
        entry = metrics.entry(torch.tensor(0.5))
        assert (entry["answer_tokens_per_second"], entry["answer_tokens"]) == (speed, logged)
        metrics.write(entry)


def test_an_entry_has_the_mean_over_the_tokens_since_the_entry_before(tmp_path, capsys):
    """Without the steps whose loss is not finite: they changed nothing."""
    plan = SimpleNamespace(
        total_steps=4, epoch_steps=2, held_before=2**20, adds=2**40, learning_rate_at=lambda step: step / 10
    )
    state = TrainState.new(torch.device("cpu"))
    metrics = MetricLogger(state, plan, tmp_path, torch.device("cpu"), Stopwatch(), Ranks())
    for loss_sum, supervised in ((6.0, 3), (math.nan, 5), (4.0, 1)):
        state.count(torch.tensor(loss_sum, dtype=torch.float64), supervised)
    first = metrics.entry(torch.tensor(0.5))
    assert (first["step"], first["epoch"], first["loss"], first["grad_norm"]) == (3, 1.5, 10 / 4, 0.5)
    assert first["memory_before_training_bytes"] == 2**20  # what the plan has said
    assert first["training_adds_bytes"] == first["peak_memory_bytes"] - 2**20
    assert first["learning_rate"] == 0.2  # of the step that is done: the third
    metrics.write(first)
    state.count(torch.tensor(2.0, dtype=torch.float64), 1)
    assert metrics.entry(torch.tensor(0.5))["loss"] == 2.0
    assert "loss 2.5000" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"))["loss"] == 2.5


@pytest.mark.parametrize("planned, gives_back", [(2**40, False), (0, True)])
def test_a_process_that_grows_beyond_its_plan_gives_back_what_was_freed(tmp_path, monkeypatch, planned, gives_back):
    called = []
    monkeypatch.setattr("run.log.give_back_freed_memory", called.append)
    plan = plan_with(lambda step: 0.1, adds=planned)
    state, stopwatch = TrainState.new(torch.device("cpu")), Stopwatch()
    metrics = MetricLogger(state, plan, tmp_path, torch.device("cpu"), stopwatch, Ranks())
    stopwatch.start()
    state.count(torch.tensor(6.0, dtype=torch.float64), 8)
    metrics.entry(torch.tensor(0.5))
    assert called == [torch.device("cpu")] * gives_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the business of glibc")
def test_what_was_freed_is_kept_and_then_given_back():
    device, process = torch.device("cpu"), psutil.Process()
    keep_freed_memory(device)
    blocks = [torch.ones(2_500_000) for _ in range(30)]  # 10 MB each
    last = torch.ones(2_500_000)  # above them, so that they are not the end of the heap
    del blocks
    kept = process.memory_info().rss
    give_back_freed_memory(device)
    assert kept - process.memory_info().rss > 200e6
    keep_freed_memory(device)
    assert last.sum() == 2_500_000
