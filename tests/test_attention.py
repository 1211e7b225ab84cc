"""One flat step against separate unpadded passes: the loss, and above all the gradients."""

import pytest
import torch
from conftest import ARCHITECTURES
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from model.attention import use_flat_attention
from model.loss import summed_loss
from text.batch import Encoder, flatten
from text.template import QA


@pytest.mark.parametrize("loss_on", ["answer", "all"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_a_flat_step_equal_those_of_separate_passes(architecture, loss_on, records, tokenizer):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), attn_implementation="sdpa")
    rows = Encoder(tokenizer, QA, max_length=64, loss_on=loss_on).rows(records)

    separate = torch.zeros(())
    for row in rows:
        ids = torch.tensor(row.ids)
        first = max(row.first_supervised, 1)
        logits = model(ids[None], use_cache=False).logits[0]
        separate = separate + cross_entropy(logits[first - 1 : -1], ids[first:], reduction="sum")
    separate.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    use_flat_attention(model)
    flat = summed_loss(model, flatten(rows))
    flat.backward()

    assert flat.item() == pytest.approx(separate.item(), rel=1e-6)
    for name, parameter in model.named_parameters():  # 1e-9: BERT's keys have a bias that softmax cancels
        scale = expected[name].abs().max()
        assert (parameter.grad - expected[name]).abs().max() <= 1e-5 * scale + 1e-9, name


def test_flat_and_padded_attention_can_be_exchanged(records, tokenizer):
    """After training with flat batches the same model generates with a cache."""
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["gpt2"](), attn_implementation="sdpa").eval()
    ids = torch.tensor(Encoder(tokenizer, QA, max_length=64).rows(records)[0].ids)[None]
    expected = model(ids).logits
    use_flat_attention(model)
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(ids).logits, expected)
