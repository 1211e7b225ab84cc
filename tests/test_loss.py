"""The chunked loss against torch's own cross entropy."""

import pytest
import torch
from conftest import ARCHITECTURES
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from model.attention import use_flat_attention
from model.cross_entropy import linear_cross_entropy
from model.loss import plain_loss, summed_loss
from text.batch import Encoder, flatten, sample_batch
from text.template import QA


@pytest.fixture(params=["cpu", "cuda"])
def way(request) -> dict[str, str]:
    """That of a CPU and that of a GPU, which is the same mathematics in another layout; both run here."""
    return {"device_type": request.param}


@pytest.fixture
def problem():
    torch.manual_seed(0)
    hidden = torch.randn(37, 16, requires_grad=True)
    weight = torch.randn(101, 16, requires_grad=True)
    return hidden, weight, torch.randint(0, 101, (37,))


@pytest.mark.parametrize("dtype, epsilon", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_each_record_alone(architecture, dtype, epsilon, records, tokenizer, way):
    """Of answers, and of all but each first token. What is left in fp64 is the softmax, which stays in fp32."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), attn_implementation="sdpa").to(dtype)
    for batch in (flatten(Encoder(tokenizer, QA, max_length=64).rows(records)), sample_batch()):
        model.set_attn_implementation("sdpa")
        plain = plain_loss(model, batch)
        expected = torch.autograd.grad(plain, list(model.parameters()))
        use_flat_attention(model)
        loss = summed_loss(model, batch, **way)
        assert loss.dtype == plain.dtype == torch.float64 and loss.shape == plain.shape == ()
        assert loss.item() == pytest.approx(plain.item(), rel=epsilon / 10)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for got, wanted in zip(gradients, expected, strict=True):  # 1e-9: BERT's keys have a bias that softmax cancels
            assert (got - wanted).abs().max() <= epsilon * wanted.abs().max() + 1e-9


@pytest.mark.parametrize("chunk_rows", [1, 10, 37, 512])
def test_value_and_gradients_equal_cross_entropy(problem, chunk_rows, way):
    hidden, weight, targets = problem
    expected = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected_gradients = torch.autograd.grad(expected * 0.25, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, chunk_rows, **way)
    gradients = torch.autograd.grad(loss * 0.25, (hidden, weight))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 10, 101])
def test_tiles_of_the_vocabulary_change_nothing(problem, tile, monkeypatch):
    """Logits of very unequal size, so that whole tiles vanish beside others."""
    hidden, weight, targets = problem
    steep = weight * torch.linspace(0, 60, len(weight))[:, None]
    expected = cross_entropy(hidden @ steep.T, targets, reduction="sum")
    expected_gradients = torch.autograd.grad(expected, (hidden, weight), retain_graph=True)
    monkeypatch.setattr("model.cross_entropy.CPU_TILE", tile)
    loss = linear_cross_entropy(hidden, steep, targets, chunk_rows=10)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for got, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), expected_gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3)


def test_a_frozen_head_gets_no_gradient(problem, way):
    hidden, weight, targets = problem
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, targets, **way).backward()
    assert hidden.grad is not None and weight.grad is None


def test_no_gradient_is_made_without_need(problem, way):
    hidden, weight, targets = problem
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets, **way)
    assert not loss.requires_grad


def test_large_logits_do_not_overflow(problem, way):
    hidden, weight, targets = problem
    loss = linear_cross_entropy(hidden * 1e4, weight, targets, **way)
    assert torch.isfinite(loss)


def test_half_precision_gradients_survive_many_tokens(problem, way):
    """Scaled to thousands of tokens before the matmul, fp16 gradients would vanish; scaled after it they do not."""
    hidden, weight, targets = problem
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, **way)
    tokens = 1e6
    gradient = torch.autograd.grad(loss / tokens, hidden)[0]
    exact = torch.autograd.grad(cross_entropy(hidden @ weight.T, targets, reduction="sum") / tokens, hidden)[0]
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, exact, rtol=0.05, atol=0.03 * exact.abs().max().item())


def test_half_precision_takes_both_terms_of_the_loss_from_the_same_logits(problem, way):
    """-ln p is never negative; it would be with a target's logit that was rounded otherwise than its neighbours."""
    torch.manual_seed(0)
    weight, targets = torch.randn(1000, 64), torch.randint(0, 1000, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(weight[targets], weight, targets, **way)
    rounded = (weight[targets].bfloat16() @ weight.bfloat16().T).float()
    assert loss.item() == pytest.approx(cross_entropy(rounded, targets, reduction="sum").item(), abs=1e-3)
    assert loss.item() >= 0


def test_no_rows_at_all(problem, way):
    """A micro-batch may hold only records whose prompt fills the whole length."""
    hidden, weight, targets = problem
    loss = linear_cross_entropy(hidden[:0], weight, targets[:0], **way)
    loss.backward()
    assert loss.item() == 0 and not weight.grad.any()
