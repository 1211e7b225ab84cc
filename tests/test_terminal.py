"""What reaches a terminal, and work that outlives whoever listened."""

import io
import json
import os
import subprocess
import sys
import unicodedata

import pytest
from conftest import ROOT, script
from hypothesis import given
from hypothesis import strategies as st

from run.terminal import Terminal, one_line, printable, take_over_streams

posix = pytest.mark.skipif(os.name == "nt", reason="the shell's redirections")


@given(st.text(st.characters()))
def test_nothing_that_acts_on_a_terminal_is_left(text):
    for shown in (printable(text), one_line(text)):
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t" for c in shown)
        assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in shown)
    assert "\n" not in one_line(text)
    assert printable(printable(text)) == printable(text)


@given(st.text())
def test_a_line_of_json_stays_the_same(text):
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


def test_what_is_written_passes_it():
    raw = io.BytesIO()
    stream = Terminal(raw, encoding="utf-8", line_buffering=True)
    print("Caneca ã 😀\x1b[2J\u202e\r", end="\n", file=stream)
    stream.keep = "\r"
    print("\r50%", file=stream)
    assert raw.getvalue().decode() == "Caneca ã 😀\\u001b[2J\\u202e\\u000d\n\r50%\n"


@pytest.mark.parametrize("is_a_terminal", [True, False])
def test_what_is_marked_is_underlined_on_a_terminal_and_nothing_in_it_acts(is_a_terminal, monkeypatch):
    raw, text = io.BytesIO(), "A \x1b[2J red\x1b mug."
    stream = Terminal(raw, encoding="utf-8", line_buffering=True)
    monkeypatch.setattr(stream, "isatty", lambda: is_a_terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream.write_marked(text + "\n", [(text.index("red"), text.index(" mug"))])
    marked = "\x1b[4mred\\u001b\x1b[24m" if is_a_terminal else "red\\u001b"
    assert raw.getvalue().decode() == f"A \\u001b[2J {marked} mug.\n"
    assert stream.can_mark == is_a_terminal
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not stream.can_mark


def test_the_streams_of_a_notebook_stay_as_they_are(monkeypatch):
    class Cell(io.TextIOBase):  # as ipykernel's: text that is sent on, no bytes
        pass

    out, err = Cell(), Cell()
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    take_over_streams()
    assert (sys.stdout, sys.stderr) == (out, err)


@posix
@pytest.mark.slow  # half a minute: a whole training
def test_the_work_goes_on_when_nobody_reads(tmp_path, data, gpt2_folder):
    options = (
        f"--model {gpt2_folder} --data {data} --output_dir {tmp_path} --device cpu --max_steps 8 --logging_steps 1"
    )
    train = f"{sys.executable} {ROOT / 'train.py'} {options} --run_name"
    lines = (
        f"{train} head | head -n 1; test ${{PIPESTATUS[0]}} = 0",
        f"{train} out >&-",
        f"{train} all <&- >&- 2>&-",
        f"{sys.executable} {ROOT / 'data_prep.py'} {data / 'train.jsonl'} --output_dir {tmp_path / 'p'} | head -n 1",
        f"{sys.executable} {ROOT / 'data_prep.py'} {data / 'train.jsonl'} --output_dir {tmp_path / 'q'} >&- 2>&-",
    )
    for line in lines:
        assert subprocess.run(["bash", "-c", line], stderr=subprocess.DEVNULL).returncode == 0, line
    assert all((tmp_path / name / "final").is_dir() for name in ("head", "out", "all"))
    assert all((tmp_path / name / "report.html").is_file() for name in ("p", "q"))


@posix
def test_a_closed_standard_input_is_an_empty_one(tmp_path):
    command = f"{sys.executable} {ROOT / 'data_prep.py'} - --output_dir {tmp_path / 'p'} <&-"
    result = subprocess.run(["bash", "-c", command], capture_output=True, encoding="utf-8")
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_names_from_outside_are_escaped(tmp_path):
    result = script("generate.py", "--output_dir", tmp_path, "--run", "a\x1b[31mb\u202ec")
    assert result.returncode == 2 and "a\\u001b[31mb\\u202ec is no run" in result.stderr
