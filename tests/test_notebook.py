"""The notebook runs as it is, from top to bottom; an interrupt of its kernel saves, and the next cell goes on."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from lessons import lesson
from run.files import verify
from run.folders import checkpoints_of

FILE = ROOT / "lessons" / "vitrine.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
FIRST = "".join(CODE[0]["source"])


def test_it_is_committed_without_what_it_once_showed():
    nbformat.validate(NOTEBOOK)
    assert CODE and not any(cell["outputs"] or cell["execution_count"] for cell in CODE)
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}


def first_cell_in(folder: Path) -> subprocess.CompletedProcess:
    """What the first cell does where a notebook was opened, in a Python of its own."""
    code = f"{FIRST}\nprint(sys.path[:2])"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8")


def test_the_first_cell_finds_the_files_beside_it_and_below_it_and_in_a_zip(tmp_path):
    assert str(ROOT) in first_cell_in(ROOT / "lessons").stdout
    (tmp_path / "vitrine").mkdir()
    lesson.edited_copy(tmp_path / "vitrine", ())
    assert str(tmp_path / "vitrine") in first_cell_in(tmp_path).stdout
    with zipfile.ZipFile(tmp_path / "vitrine-main.zip", "w") as archive:
        for path in (tmp_path / "vitrine").rglob("*.py"):
            archive.write(path, Path("vitrine-main") / path.relative_to(tmp_path / "vitrine"))
    shutil.rmtree(tmp_path / "vitrine")
    assert str(tmp_path / "vitrine-main") in first_cell_in(tmp_path).stdout


def test_without_files_the_first_cell_says_how_to_bring_them(tmp_path):
    done = first_cell_in(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert "upload a zip" in done.stderr


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lesson.edited_copy(tmp_path, ())
    (tmp_path / "checkpoints").mkdir()
    notebook = nbformat.read(FILE, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path / "lessons")}}).execute()
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    said = "".join(output.text for outputs in cells for output in outputs if output.output_type == "stream")
    pages = "".join(output.data.get("text/html", "") for outputs in cells for output in outputs if "data" in output)
    pictures = [output for outputs in cells for output in outputs if "image/png" in output.get("data", ())]
    assert "step 20/20  loss" in said and "step 100/100" in said and "\nWhy: " in said
    assert "One step under the microscope" in pages and "Caneca azul" in pages and len(pictures) == 2


# -- interrupted ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run_cell(kernel, code: str, interrupt_at: str = "") -> str:
    """What a cell prints; the kernel is interrupted as soon as that is in it. Fails when the cell does."""
    manager, client = kernel
    sent, said = client.execute(code, stop_on_error=True), ""
    while True:
        message = client.get_iopub_msg(timeout=120)
        kind, content = message["msg_type"], message["content"]
        if message["parent_header"].get("msg_id") != sent:
            continue
        if kind == "stream":
            said += content["text"]
            if interrupt_at and interrupt_at in said:
                manager.interrupt_kernel()
                interrupt_at = ""
        assert kind != "error", "\n".join(content["traceback"])
        if kind == "status" and content["execution_state"] == "idle":
            return said


@pytest.mark.slow
def test_an_interrupt_of_the_kernel_saves_and_the_next_cell_goes_on(kernel, tmp_path, data, gpt2_folder):
    """Twice: what the first interrupt left behind does not end the kernel at the second."""
    run = tmp_path / "a"
    options = ["--model", gpt2_folder, "--data", data, "--output_dir", tmp_path, "--device", "cpu", "--run_name", "a"]
    begin = [*map(str, options), "--max_steps", "1000", "--logging_steps", "1"]
    run_cell(kernel, "import train\nfrom run.config import parse_train")
    handlers = "import signal\nprint(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))"
    before = run_cell(kernel, handlers)
    for args in (begin, ["--resume", str(run)]):
        said = run_cell(kernel, f"print('code', train.main(parse_train({args})))", interrupt_at="\nstep ")
        assert "Go on with" in said and "code 130" in said
        (checkpoint,) = checkpoints_of(run)
        verify(checkpoint)
        assert not (run / "lock.json").exists()
    last = int(checkpoint.name.rpartition("-")[2]) + 1
    said = run_cell(
        kernel, f"print('code', train.main(parse_train(['--resume', {str(run)!r}, '--max_steps', '{last}'])))"
    )
    assert f"step {last}/{last} 100%" in said and "code 0" in said and (run / "final").is_dir()
    assert run_cell(kernel, handlers) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the same as elsewhere, and minutes")
def test_a_script_that_is_run_by_magic_ends_as_a_cell(kernel, data, gpt2_folder, tmp_path):
    options = f"--model {gpt2_folder} --data {data} --output_dir {tmp_path} --device cpu --run_name a --max_steps 2"
    said = run_cell(kernel, f"%run train.py {options}\n")
    assert "Saved" in said and "still here" in run_cell(kernel, "print('still here')")
