"""Real signals to real processes: the first one saves, the second leaves."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from run.cli import INTERRUPTED
from run.files import verify
from run.folders import checkpoints_of
from run.log import MetricLogger

SIGNALS = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_signal_asks_and_the_second_leaves_at_once(name):
    code = f"import signal; from run.stop import StopRequest; stop = StopRequest(); number = signal.{name}\n"
    code += "assert not stop.asked; signal.raise_signal(number); assert stop.asked; print('asked', flush=True)\n"
    code += "signal.raise_signal(number); print('still here')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert (result.returncode, result.stdout.split()) == (INTERRUPTED, ["asked"])
    assert "Once more to leave at once" in result.stderr


def test_a_signal_that_torchrun_passes_on_does_not_count_twice():
    code = "import signal; from run.stop import StopRequest; stop = StopRequest()\n"
    code += "for _ in range(3): signal.raise_signal(signal.SIGINT)\nassert stop.asked"
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "1"}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=environment).returncode == 0


def test_after_it_a_signal_does_what_it_did_before(monkeypatch, tmp_path, data, gpt2_folder, train):
    """A notebook trains again and again in one process, and is closed by a signal of its own."""
    before = [signal.getsignal(getattr(signal, name)) for name in SIGNALS]
    options = ("--model", gpt2_folder, "--run_name", "a", "--max_steps", 3)
    progress_bar = MetricLogger.progress_bar

    def interrupted(self, loader):
        for number, batch in enumerate(progress_bar(self, loader)):
            if number == 0:
                signal.raise_signal(signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(MetricLogger, "progress_bar", interrupted)
        assert train(*options) == INTERRUPTED
    assert [signal.getsignal(getattr(signal, name)) for name in SIGNALS] == before
    assert not (tmp_path / "runs" / "a" / "lock.json").exists()
    assert train("--resume", tmp_path / "runs" / "a") == 0
    assert [signal.getsignal(getattr(signal, name)) for name in SIGNALS] == before


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to whole consoles")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_training_stops_with_a_whole_checkpoint_and_says_how_to_go_on(tmp_path, data, gpt2_folder, name):
    options = ("--model", gpt2_folder, "--data", data, "--output_dir", tmp_path, "--run_name", "a", "--device", "cpu")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, options), "--max_steps", "100000", "--logging_steps", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(getattr(signal, name))
            break
    said, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, errors
    assert f"python train.py --resume {tmp_path / 'a'}" in said
    (checkpoint,) = checkpoints_of(tmp_path / "a")
    verify(checkpoint)
    assert not (tmp_path / "a" / "lock.json").exists()
