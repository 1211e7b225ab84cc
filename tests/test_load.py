"""Models from folders, and what is said when there is none."""

import json

import pytest
import torch
from conftest import ARCHITECTURES, tiny_gpt2
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, GPT2LMHeadModel, MistralConfig

from model.load import (
    ModelUnavailable,
    UnsupportedModel,
    check_supported,
    check_window,
    choose_model,
    load_model,
    pocket_model,
)
from model.loss import check_flat_loss
from text.batch import sample_batch


def test_auto_without_a_gpu_or_without_weights_is_pocket_and_says_why():
    assert choose_model("auto", has_gpu=False)[0] == "pocket"
    name, reason = choose_model("auto", has_gpu=True)  # HF_HUB_OFFLINE=1 and an empty cache
    assert name == "pocket" and "distilgpt2" in reason


def test_a_named_model_is_never_replaced():
    assert choose_model("distilgpt2", has_gpu=False)[0] == "distilgpt2"
    with pytest.raises(ModelUnavailable, match="distilgpt2 cannot be loaded"):
        load_model("distilgpt2")


def test_the_faster_gelu_is_the_same_model(tmp_path):
    ids = torch.arange(20)[None]
    slow = tiny_gpt2(activation_function="gelu_new")
    slow.save_pretrained(tmp_path)
    fast = load_model(tmp_path)
    assert fast.config.activation_function == "gelu_pytorch_tanh"
    torch.testing.assert_close(fast(ids).logits, slow(ids).logits, rtol=1e-5, atol=1e-6)


def test_weights_in_half_precision_are_trained_in_fp32(tmp_path):
    tiny_gpt2().half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_dropout_is_set_everywhere(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    model = load_model(tmp_path, dropout=0.25)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="c_fc"):
        load_model(tmp_path)


def test_a_pickle_is_not_opened(tmp_path):
    """A folder whose only weights are a pickle that would leave a mark."""
    tiny_gpt2().config.save_pretrained(tmp_path)
    mark = tmp_path / "opened"
    (tmp_path / "pytorch_model.bin").write_bytes(
        b"cbuiltins\nopen\n(V" + str(mark).encode() + b"\nVw\ntR."  # pickle for open(mark, "w")
    )
    with pytest.raises(ModelUnavailable):
        load_model(tmp_path)
    assert not mark.exists()


def test_models_that_cap_their_logits_are_refused():
    with pytest.raises(UnsupportedModel, match="final_logit_softcapping"):
        check_supported(Gemma2Config(), "gemma")


@pytest.mark.parametrize("name", ["bloom", "gpt_oss", "mamba"])
def test_an_architecture_that_would_train_wrongly_is_refused(name):
    """Attention with biases of its own, attention sinks, no attention at all."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    if name == "gpt_oss":
        size |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32, "num_local_experts": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **size)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "sinks" in key:
                parameter.normal_()
    with pytest.raises(UnsupportedModel, match="flat batch"):
        check_flat_loss(model, sample_batch(), name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_that_trains_rightly_is_not(architecture):
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]()).eval()
    check_flat_loss(model, sample_batch(), architecture)


def test_a_window_shorter_than_the_records_is_refused():
    check_window(MistralConfig(sliding_window=4096), 256, "mistral")
    with pytest.raises(UnsupportedModel, match="128"):
        check_window(MistralConfig(sliding_window=128), 256, "mistral")


def test_pocket_depends_on_its_seed_alone(tokenizer):
    torch.manual_seed(1)
    first = pocket_model(tokenizer, 64, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = pocket_model(tokenizer, 64, seed=3), pocket_model(tokenizer, 64, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(first, GPT2LMHeadModel)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.transformer.wte.weight, other.transformer.wte.weight)


@pytest.mark.parametrize("blocks", [0, 1, 3, 100_000, 10**9])
def test_a_config_that_its_weights_do_not_fit_is_refused_before_it_is_built(gpt2_folder, blocks):
    config = json.loads((gpt2_folder / "config.json").read_text(encoding="utf-8")) | {"n_layer": blocks}
    (gpt2_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelUnavailable, match=f"speaks of {blocks} blocks, and its weights have 2"):
        load_model(gpt2_folder)


def test_a_tokenizer_of_another_model_is_refused(gpt2_folder, train, data):
    file = gpt2_folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["added_tokens"].append(dict(tokenizer["added_tokens"][0], id=4000, content="the", special=False))
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="its model knows 400 tokens"):
        train("--model", gpt2_folder, "--dry_run")


def test_a_damaged_folder_is_not_a_question_of_the_connection(gpt2_folder, capsys):
    (gpt2_folder / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ModelUnavailable, match="copy it once more") as error:
        load_model(gpt2_folder)
    assert "connection" not in str(error.value)
