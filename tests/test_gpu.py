"""What only a GPU can show. The longer checks, and small cards, are in benchmarks/gpu.py."""

import pytest
import torch
from conftest import tiny_gpt2

from model.attention import use_flat_attention
from model.cross_entropy import linear_cross_entropy
from model.loss import summed_loss
from run.device import pick_machine
from run.guard import NonFiniteGuard
from run.memory import plan_memory
from run.micro_batch import MicroBatcher
from run.ranks import Ranks
from run.state import TrainState
from text.batch import FlatBatch, Row, flatten, step_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU, or torch is a CPU build"),
]


def batch_of(records: int, length: int) -> FlatBatch:
    """Random tokens; those of a constant text would say little of precision."""
    ids = torch.randint(0, 3000, (records, length), generator=torch.Generator().manual_seed(length))
    return flatten([Row("", row, 1) for row in ids.tolist()])


@pytest.fixture
def model():
    model = tiny_gpt2(3000, n_embd=96, n_layer=4, activation_function="gelu_pytorch_tanh").train()
    use_flat_attention(model)
    return model.to("cuda")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_has_the_loss_and_gradients_of_fp32(model, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    batch, gradients = batch_of(4, 100).to(torch.device("cuda")), []
    for machine in (pick_machine("cuda", "fp32"), pick_machine("cuda", precision)):
        model.zero_grad(set_to_none=True)
        with machine.autocast():
            loss = summed_loss(model, batch) / len(batch.targets)
        (loss * 1024).backward()
        gradients.append((loss.item(), model.transformer.h[0].mlp.c_fc.weight.grad / 1024))
    (loss, exact), (half_loss, half) = gradients
    assert half_loss == pytest.approx(loss, rel=1e-2)
    assert (half - exact).norm() <= 0.03 * exact.norm()


def test_nothing_in_a_step_waits_for_the_device(model):
    machine = pick_machine("cuda", "fp16")
    optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=True), machine.grad_scaler()
    state = TrainState.new(machine.device, micro_batch_tokens=1024)
    guard = NonFiniteGuard(state, optimizer, scaler, None, 10)
    batches = [batch_of(4, 100).pinned() for _ in range(2)]

    def step() -> None:
        loss_sum = torch.zeros((), dtype=torch.float64, device=machine.device)
        for batch in batches:
            with machine.autocast():
                loss = summed_loss(model, batch.to(machine.device))
            scaler.scale(loss / 100).backward()
            loss_sum += loss.detach()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        guard.check(loss_sum, norm, ["U"])  # waits for an event of the step before, which is no wait for this one
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        state.count(loss_sum, 100)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_that_runs_out_in_backward_is_survived_and_the_step_is_the_same(model):
    """A real error of the allocator: a cap just above what the forward pass takes."""
    device, optimizer = torch.device("cuda"), torch.optim.SGD(model.parameters())
    batch = step_batch([Row(str(i), [i % 3000] * 256, 1) for i in range(64)], 64 * 256)
    gradients, attempts = [], []

    def forward_backward(micro_batches, supervised):
        attempts.append(len(micro_batches))
        for micro_batch in micro_batches:
            loss = summed_loss(model, micro_batch.to(device))
            if len(attempts) == 2 and len(micro_batches) == 1:  # the whole step again, now without room
                total = torch.cuda.get_device_properties(device).total_memory
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total, device)
            (loss / supervised).backward()
        return loss.detach()

    try:
        for _ in range(2):
            state = TrainState.new(device, micro_batch_tokens=64 * 256)
            MicroBatcher(state, optimizer, device, Ranks()).run(forward_backward, batch)
            gradients.append(model.transformer.h[0].mlp.c_fc.weight.grad.clone())
            optimizer.zero_grad(set_to_none=True)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert attempts[0] == attempts[1] == 1 and attempts[-1] > 1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_both_ways_of_the_loss_agree(dtype):
    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device="cuda", requires_grad=True)
    weight = torch.randn(1001, 64, device="cuda", requires_grad=True)
    targets, seen = torch.randint(0, 1001, (300,), device="cuda"), []
    for way in ("cpu", "cuda"):
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            loss = linear_cross_entropy(hidden, weight, targets, 128, way)
        seen.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for by_tiles, by_rows in zip(*seen, strict=True):
        assert (by_tiles - by_rows).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * by_tiles.norm()


def test_an_overflow_is_skipped_and_the_scale_recovers(model):
    machine = pick_machine("cuda", "fp16")
    optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=True), torch.amp.GradScaler(init_scale=2.0**40)
    before = model.transformer.wte.weight.detach().clone()
    for done in range(40):
        with machine.autocast():
            loss = summed_loss(model, batch_of(2, 64).to(machine.device))
        scaler.scale(loss / 126).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if done == 0:
            assert torch.equal(before, model.transformer.wte.weight)
    assert not torch.equal(before, model.transformer.wte.weight)
    assert scaler.get_scale() < 2.0**40 and all(p.isfinite().all() for p in model.parameters())


def test_the_plan_is_within_15_percent_of_the_allocator(model):
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    device = torch.device("cuda")
    plan = plan_memory(model, pick_machine("cuda", "fp32"))

    def step() -> None:
        for _ in range(2):
            summed_loss(model, batch_of(8, 256).to(device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    held = torch.cuda.memory_allocated() - plan.weights - plan.optimizer  # of other tests
    torch.cuda.reset_peak_memory_stats()
    step()
    assert plan.peak(8 * 256, accumulating=True) == pytest.approx(torch.cuda.max_memory_allocated() - held, rel=0.15)
