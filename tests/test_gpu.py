"""What only a GPU can show. The longer checks, and small cards, are in benchmarks/gpu.py."""

import pytest
import torch
from conftest import tiny_gpt2

from model.attention import use_flat_attention
from model.loss import summed_loss
from run.device import pick_machine
from run.memory import plan_memory
from text.batch import blank_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU, or torch is a CPU build"),
]


@pytest.fixture
def model():
    model = tiny_gpt2(3000, n_embd=96, n_layer=4, activation_function="gelu_pytorch_tanh").train()
    use_flat_attention(model)
    return model.to("cuda")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_has_the_loss_and_gradients_of_fp32(model, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    batch, gradients = blank_batch(4, 100).to(torch.device("cuda")), []
    for machine in (pick_machine("cuda", "fp32"), pick_machine("cuda", precision)):
        model.zero_grad(set_to_none=True)
        with machine.autocast():
            loss = summed_loss(model, batch) / len(batch.targets)
        (loss * 1024).backward()
        gradients.append((loss.item(), model.transformer.h[0].mlp.c_fc.weight.grad / 1024))
    (loss, exact), (half_loss, half) = gradients
    assert half_loss == pytest.approx(loss, rel=1e-2)
    assert (half - exact).norm() <= 0.03 * exact.norm()


def test_an_overflow_is_skipped_and_the_scale_recovers(model):
    machine = pick_machine("cuda", "fp16")
    optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=True), torch.amp.GradScaler(init_scale=2.0**40)
    before = model.transformer.wte.weight.detach().clone()
    for done in range(40):
        with machine.autocast():
            loss = summed_loss(model, blank_batch(2, 64).to(machine.device))
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
            summed_loss(model, blank_batch(8, 256).to(device)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    held = torch.cuda.memory_allocated() - plan.weights - plan.optimizer  # of other tests
    torch.cuda.reset_peak_memory_stats()
    step()
    assert plan.peak(8 * 256, accumulating=True) == pytest.approx(torch.cuda.max_memory_allocated() - held, rel=0.15)
