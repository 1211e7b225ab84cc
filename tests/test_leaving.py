"""A script that is left: Ctrl-C, SIGTERM, a hang-up in the middle of its work, a reader that goes, no reader at all.

The signal is raised by the process itself, at a place in the middle of its work, so nothing here waits for a clock.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, write_data

from run.files import verify
from run.folders import checkpoints_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals and shells of POSIX")]

# What each script is doing when the signal comes: a function of a library of ours that it calls then.
IN_THE_MIDDLE = {
    "train.py": "run.state.TrainState.count",
    "data_prep.py": "catalogue.index.write_catalogue",
    "generate.py": "text.answer.decode",
    "evaluate.py": "text.metrics.distinct_n",
    "export.py": "run.files.put_in_place",
}
CODE = """
import os, runpy, signal, sys
from importlib import import_module
where, _, name = sys.argv[1].rpartition(".")
number, script = int(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[3:]
sys.path.insert(0, os.path.dirname(script))
try:
    owner = import_module(where)
except ModuleNotFoundError:
    module, _, kind = where.rpartition(".")
    owner = getattr(import_module(module), kind)
original = getattr(owner, name)
def interrupted(*args, **more):
    setattr(owner, name, original)
    os.kill(os.getpid(), number)
    return original(*args, **more)
setattr(owner, name, interrupted)
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run to ask, to measure and to export; with its data, and titles."""
    home = tmp_path_factory.mktemp("home")
    records = [{"uid": str(i), "title": f"Mug {i}", "content": f"A fine mug with number {i * 7}."} for i in range(40)]
    write_data(home / "data", records)
    (home / "raw.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (home / "titles.txt").write_text("".join(f"Mug {i}\n" for i in range(40)), encoding="utf-8")
    options = ["--model", "pocket", "--data", "data", "--run_name", "a", "--max_steps", "2", "--batch_size", "4"]
    subprocess.run([sys.executable, ROOT / "train.py", *options], cwd=home, check=True, capture_output=True)
    return home


ARGUMENTS = {
    "train.py": ["--model", "pocket", "--data", "data", "--run_name", "b", "--max_steps", "3", "--batch_size", "4"],
    "data_prep.py": ["raw.jsonl", "--output_dir", "data", "--no_report"],
    "generate.py": ["--run", "a", "--titles", "titles.txt", "--max_new_tokens", "3"],
    "evaluate.py": ["--run", "a", "--data", "data", "--max_new_tokens", "3"],
    "export.py": ["--run", "a", "--to", "exported"],
}


@pytest.fixture
def home(tmp_path, run):
    shutil.copytree(run, tmp_path / "home")
    return tmp_path / "home"


def whole(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("script", IN_THE_MIDDLE)
def test_a_signal_in_the_middle_of_the_work(home, script, name):
    before = whole(home / "data")
    command = [sys.executable, "-c", CODE, IN_THE_MIDDLE[script], str(int(getattr(signal, name)))]
    done = subprocess.run([*command, str(ROOT / script), *ARGUMENTS[script]], cwd=home, capture_output=True,
                          encoding="utf-8")  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr and "Traceback" not in done.stdout
    if script == "train.py":
        (checkpoint,) = checkpoints_of(home / "checkpoints" / "b")
        verify(checkpoint)
        assert "--resume" in done.stdout
    else:
        assert "Interrupted." in done.stderr
    left = {path: data for path, data in whole(home / "data").items() if path != ".lock"}
    assert left == {path: data for path, data in before.items() if path != ".lock"}  # the old data, whole
    assert not (home / "exported").exists()
    assert not [path for path in home.rglob("*") if path.suffix == ".new" or path.name == "lock.json"]


@pytest.mark.parametrize("way", ["| head -1", ">&-", ">&- 2>&-", "> /dev/null 2>&-"])
@pytest.mark.parametrize("script", IN_THE_MIDDLE)
def test_a_reader_that_leaves_or_is_not_there_ends_no_work(home, script, way):
    command = " ".join([sys.executable, str(ROOT / script), *ARGUMENTS[script]])
    shell = f"{command} {way}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=home, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if script != "export.py":  # which may say nothing
        assert len(done.stdout.splitlines()) == (1 if "head" in way else 0)
    made = {"train.py": "checkpoints/b/final/manifest.json", "data_prep.py": "data/report.json",
            "evaluate.py": "checkpoints/a/evaluation.md", "export.py": "exported/model.safetensors"}  # fmt: skip
    assert script not in made or (home / made[script]).is_file()
