"""Muon: against torch's own, against a plain singular value decomposition, and through saves, skips and ranks."""

import pytest
import torch
from conftest import logged, stopped_at, tiny_gpt2
from safetensors.torch import load_file
from test_ranks import alone, assert_equal_runs, run_train, torchrun  # noqa: F401  a fixture

from model.muon import ITERATIONS, MOMENTUM, UPDATE_RMS, Muon, hidden_matrices, orthogonal
from run.cli import INTERRUPTED
from run.config import from_json, parse_train, with_model_defaults


def groups_of(model) -> list[dict]:
    trained = list(model.parameters())
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def with_gradients(model, seed: int) -> None:
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (32, 32)])
def test_an_orthogonal_matrix_has_no_short_direction(shape):
    """The polar factor U V', as far as four steps of Newton and Schulz go: the same vectors, lengths near 1."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    lengths = torch.logspace(0, -1.5, min(shape))  # thirty times shorter at the end
    [found] = orthogonal([u * lengths @ v])
    inside = u.T @ found @ v.T  # diagonal where the singular vectors are the same
    assert (inside - inside.diag().diag()).abs().max() < 1e-3
    assert inside.diag().min() > 0.6 and inside.diag().max() < 1.3


def test_steps_are_those_of_torch():
    """In float32, so up to the rounding to bfloat16 that torch's has; embeddings, norms and biases are AdamW's to the
    last bit."""
    ours, theirs = tiny_gpt2(), tiny_gpt2()
    optimizer = Muon(groups_of(ours), hidden_matrices(ours), lr=0.02)
    hidden = {id(p) for p in hidden_matrices(theirs)}
    factor = UPDATE_RMS / 0.2  # torch's own, to match AdamW
    muon = torch.optim.Muon(
        hidden_matrices(theirs),
        lr=0.02 * factor,
        weight_decay=0.1 / factor,
        adjust_lr_fn="match_rms_adamw",
        momentum=MOMENTUM,
        ns_steps=ITERATIONS,
    )
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in hidden]} for group in groups_of(theirs)]
    adamw = torch.optim.AdamW(rest, lr=0.02, fused=True)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    for step in range(5):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        optimizer.step()
        muon.step()
        adamw.step()
    assert len(hidden) == 8
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        moved = (q - before[name]).norm()
        assert (p - q).norm() < (0.02 * moved if id(q) in hidden else 1e-12), name


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_step_is_the_formula_of_the_paper(shape):
    """Line by line in float64: momentum, Nesterov's, ITERATIONS of the quintic on X itself, decay, step."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
    expected, momentum = weight.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    optimizer = Muon([{"params": [weight], "weight_decay": 0.1}], [weight], lr=0.02)
    for step in range(5):
        torch.manual_seed(step)
        gradient = torch.randn(shape, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        x = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
        x = x / x.norm()
        x = x.T if shape[0] > shape[1] else x
        for _ in range(ITERATIONS):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        x = x.T if shape[0] > shape[1] else x
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * UPDATE_RMS * max(shape) ** 0.5 * x
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-9)


def test_a_skipped_step_changes_nothing_and_a_step_of_no_gradient_neither():
    model = tiny_gpt2()
    optimizer = Muon(groups_of(model), hidden_matrices(model), lr=0.02)
    with_gradients(model, 1)
    optimizer.step()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = {
        name: optimizer.state[p]["momentum"].clone()
        for name, p in model.named_parameters()
        if p.ndim == 2 and ".h." in name
    }
    with_gradients(model, 2)
    for p in model.parameters():
        p.grad[..., 0] = float("nan")
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(optimizer.state[p]["momentum"], state[n]) for n, p in model.named_parameters() if n in state)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()  # gradients of the matrices are gone, and AdamW's would be nan
    hidden = {name for name, p in model.named_parameters() if any(p is h for h in hidden_matrices(model))}
    assert len(state) == 8 == len(hidden)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in hidden)


def test_momentum_is_an_average_of_the_gradients():
    model = tiny_gpt2()
    optimizer = Muon(groups_of(model), hidden_matrices(model), lr=0.0)
    weight, expected = hidden_matrices(model)[0], 0.0
    for step in range(3):
        with_gradients(model, step)
        expected = MOMENTUM * expected + (1 - MOMENTUM) * weight.grad
        optimizer.step()
    torch.testing.assert_close(optimizer.state[weight]["momentum"], expected)


@pytest.mark.parametrize("more", [(), ("--lora",)], ids=["full", "lora"])
def test_a_stop_and_a_resume_are_bitwise_one_run(train, data, gpt2_folder, tmp_path, more):
    common = ("--model", gpt2_folder, "--optim", "muon", "--max_steps", 6, "--save_steps", 3, "--batch_size", 4, *more)
    assert train(*common, "--run_name", "whole") == 0
    with stopped_at(4):
        assert train(*common, "--run_name", "parts") == INTERRUPTED
    saved = load_file(tmp_path / "runs" / "parts" / "checkpoint-4" / "optimizer.safetensors")
    momenta = [name for name in saved if name.startswith("momentum.")]
    assert len(momenta) == (16 if more else 8)
    assert not [name for name in saved if name.startswith("exp_avg.") and name.removeprefix("exp_avg.") in momenta]
    assert train("--resume", tmp_path / "runs" / "parts") == 0
    for name in ("final", "checkpoint-6"):
        for file in (tmp_path / "runs" / "whole" / name).glob("*.safetensors"):
            one, other = load_file(file), load_file(tmp_path / "runs" / "parts" / name / file.name)
            assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), file.name
    losses = [[entry["loss"] for entry in logged(tmp_path / "runs" / run)] for run in ("whole", "parts")]
    assert losses[0][-1] == losses[1][-1]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_and_three_processes_train_as_one_does(alone, ranks):  # noqa: F811
    folder, common = alone
    steps = ("--max_steps", 4, "--optim", "muon", "--lr", 1e-3)
    assert run_train(*common, "--run_name", f"muon-of-{ranks}", "--batch_size", 6, *steps) == 0
    process = torchrun(ranks, *common, "--run_name", f"muon-{ranks}", "--batch_size", 6 // ranks, *steps)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_equal_runs(folder / f"muon-of-{ranks}", folder / f"muon-{ranks}")


def test_pocket_takes_muon_and_what_was_trained_before_takes_adamw():
    config = parse_train([]).config
    assert with_model_defaults(config, from_scratch=True).optim == "muon"
    assert with_model_defaults(config, from_scratch=False).optim == "adamw"
    assert with_model_defaults(parse_train(["--optim", "adamw"]).config, from_scratch=True).optim == "adamw"


def test_a_divided_model_has_no_whole_matrices():
    with pytest.raises(SystemExit):
        parse_train(["--shard", "--optim", "muon"])
    config = with_model_defaults(parse_train(["--shard"]).config, from_scratch=True)
    assert (config.optim, config.learning_rate) == ("adamw", 2e-3)


def test_a_run_that_does_not_say_it_had_adamw_and_no_context():
    config = from_json({"model_name_or_path": "pocket"}, "old")
    assert (config.optim, config.context_share) == ("adamw", 0.0)
