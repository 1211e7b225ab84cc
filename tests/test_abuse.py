"""A part of benchmarks/abuse.py: inputs and options that nobody should give, made at random."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="it forks")
def test_inputs_and_options_that_nobody_should_give():
    command = [sys.executable, ROOT / "benchmarks" / "abuse.py", "--count", "150", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stdout[-6000:]
