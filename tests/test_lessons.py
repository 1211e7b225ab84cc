"""The plain loop and the page compute the same training."""

import re

import pytest
import torch
from conftest import ROOT, logged

from catalogue.prepare import prepare
from lessons import plain_loop
from run import loading
from run.data import EXAMPLE_CATALOGUE

STEPS, EPSILON = 20, {torch.float32: 1e-4, torch.float64: 1e-5}


def test_the_plain_loop_is_a_page():
    assert len((ROOT / "lessons" / "plain_loop.py").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_plain_loop_and_page_log_the_same_numbers(tmp_path, train, monkeypatch, capsys, dtype):
    """20 steps, losses and gradient norms. In float64 what is left is the page's fp32 logits."""
    prepare([EXAMPLE_CATALOGUE], tmp_path / "data")
    plain_loop.main(tmp_path / "data" / "train.jsonl", dtype)
    plain = [tuple(map(float, pair)) for pair in re.findall(r"loss (\S+)  grad_norm (\S+)", capsys.readouterr().out)]

    pocket = loading.pocket_model
    monkeypatch.setattr(loading, "pocket_model", lambda *args: pocket(*args).to(dtype))
    options = ("--model", "pocket", "--run_name", "a", "--question_share", 0, "--logging_steps", 1)
    options += ("--context_share", 0, "--optim", "adamw")
    assert train(*options, "--max_steps", STEPS) == 0
    page = [(entry["loss"], entry["grad_norm"]) for entry in logged(tmp_path / "runs" / "a")]
    assert len(plain) == len(page) == STEPS
    (losses, norms), (plain_losses, plain_norms) = torch.tensor(page).T, torch.tensor(plain).T
    torch.testing.assert_close(losses, plain_losses, rtol=0, atol=EPSILON[dtype])
    torch.testing.assert_close(norms, plain_norms, rtol=EPSILON[dtype], atol=EPSILON[dtype])  # up to 60 in these steps
