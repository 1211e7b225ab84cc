"""Products of matrices as convolutions, against torch's own, with gradients; what a model becomes and stays."""

import pytest
import torch
from conftest import tiny_gpt2
from torch.nn.functional import linear as torch_linear
from transformers.pytorch_utils import Conv1D

from model import linear as ours
from model.attention import use_flat_attention
from model.loss import summed_loss
from text.batch import blank_batch


@pytest.fixture(autouse=True)
def onednn_wanted(monkeypatch):
    """On any processor, also one where it is not faster."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(ours, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(ours, "FEWEST_WEIGHTS", 1)


def test_small_matrices_have_no_compiled_kernels(monkeypatch):
    """One for each new shape: they made the process of a small model grow."""
    monkeypatch.undo()
    monkeypatch.setattr(ours, "onednn_is_faster", lambda: True)
    x = torch.randn(1003, 192)
    assert not ours.by_onednn(x, 768) and not ours.by_onednn(x, 2048)  # of pocket: its widest layer, a tile of its head
    assert ours.by_onednn(torch.randn(1003, 768), 768)  # the smallest of DistilGPT-2


@pytest.mark.parametrize("rows", [255, 256, 257, 300, 1003])  # below, at and above the fewest; no multiple of anything
@pytest.mark.parametrize("stored", ["out, in", "in, out"])
def test_value_and_gradients_equal_torch(rows, stored):
    torch.manual_seed(0)
    x = torch.randn(2, rows, 24, requires_grad=True)
    weight = torch.randn(40, 24) if stored == "out, in" else torch.randn(24, 40)
    weight.requires_grad_()
    bias, d_y = torch.randn(40, requires_grad=True), torch.randn(2, rows, 40)
    as_rows = weight if stored == "out, in" else weight.T
    got, expected = ours.linear(x, as_rows, bias), torch_linear(x, as_rows, bias)
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), d_y) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_frozen_weight_keeps_no_input():
    kept = []
    x, weight = torch.randn(300, 24, requires_grad=True), torch.randn(40, 24)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        ours.linear(x, weight)
    assert kept == [weight.shape]


def test_only_the_gradients_that_are_wanted():
    x, weight = torch.randn(300, 24, requires_grad=True), torch.randn(40, 24)
    ours.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(300, 24))


def test_no_gradient_without_need():
    with torch.no_grad():
        assert not ours.linear(torch.randn(300, 24, requires_grad=True), torch.randn(40, 24)).requires_grad


def test_a_model_has_the_same_loss_gradients_and_names():
    plain, other = tiny_gpt2(300).train(), tiny_gpt2(300).train()
    other.load_state_dict(plain.state_dict())
    ours.use_onednn(other)
    assert type(other.transformer.h[0].mlp.c_fc) is ours.OneDnnConv1D
    assert isinstance(other.lm_head, torch.nn.Linear) and list(other.state_dict()) == list(plain.state_dict())
    losses = []
    for model in (plain, other):
        use_flat_attention(model)
        losses.append(summed_loss(model, blank_batch(8, 60)))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for (name, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * p.grad.abs().max() + 1e-7, name


def test_a_processor_that_gains_nothing_keeps_its_layers(monkeypatch):
    monkeypatch.setattr(ours, "onednn_is_faster", lambda: False)
    model = tiny_gpt2(300)
    ours.use_onednn(model)
    assert not any(isinstance(m, (ours.OneDnnConv1D, ours.OneDnnLinear)) for m in model.modules())


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 100, 256])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("stored", ["out, in", "in, out"])
def test_a_product_with_packed_weights_is_the_same(rows, with_bias, stored):
    torch.manual_seed(0)
    weight = torch.randn(40, 24) if stored == "out, in" else torch.randn(24, 40).T
    x, bias = torch.randn(1, rows, 24), torch.randn(40) if with_bias else None
    with torch.no_grad():
        found = ours.by_packed(x, ours.laid_out(weight), bias)
        assert found is not None
        torch.testing.assert_close(found, torch_linear(x, weight, bias))


def test_what_packed_weights_are_not_for():
    x, weight = torch.randn(3, 24), torch.randn(40, 24)
    layout = ours.laid_out(weight)
    assert ours.by_packed(x, layout, None) is None  # a gradient may be wanted, and it has none
    with torch.no_grad():
        assert ours.by_packed(x, layout, None) is not None
        assert ours.by_packed(x, None, None) is None and ours.laid_out(weight.bfloat16()) is None
        assert ours.by_packed(torch.randn(ours.MOST_ROWS + 1, 24), layout, None) is None
        assert ours.by_packed(x.bfloat16(), layout, None) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert ours.by_packed(x, layout, None) is None


def test_many_prompts_need_few_kernels(monkeypatch):
    """Each number of rows that oneDNN sees for the first time costs time and memory."""
    seen, product = set(), torch.ops.mkldnn._linear_pointwise

    def counted(x, *others):
        seen.add(len(x))
        return product(x, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    layout = ours.laid_out(torch.randn(40, 24))
    with torch.no_grad():
        for rows in range(33, ours.MOST_ROWS + 1):
            assert ours.by_packed(torch.randn(rows, 24), layout, None).shape == (rows, 40)
    assert seen == set(range(64, ours.MOST_ROWS + 1, ours.SHAPES_APART))


def test_a_model_that_is_asked_keeps_names_weights_and_answers():
    model, ids = tiny_gpt2(), torch.arange(5, 12)[None]
    before, logits = {name: value.clone() for name, value in model.state_dict().items()}, model(ids).logits
    ours.pack(model)
    assert isinstance(model.lm_head, ours.PackedLinear) and isinstance(model.transformer.h[0].attn.c_attn, Conv1D)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, logits)
