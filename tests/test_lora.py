"""LoRA by hand against peft: the same numbers, the same files."""

import json

import peft
import pytest
import torch
from conftest import ARCHITECTURES, tiny_gpt2
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from model.adapter import load_adapter, save_adapter
from model.attention import use_flat_attention
from model.errors import ModelUnavailable, UnsupportedModel
from model.half import halve
from model.load import load_model, weights_to_save
from model.lora import Lora, LoraLinear, linear_layers, lora_layers, merge, unwrap, wrap
from model.loss import summed_loss
from text.batch import Encoder, flat_batches
from text.template import QA

IDS = torch.arange(2, 34).view(2, 16)


def tiny(architecture: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]()).eval()


def trained(model, lora: Lora | None = None):
    """A wrapped model whose B is no longer zero."""
    wrap(model, lora or Lora(), seed=1)
    torch.manual_seed(2)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wrapped_is_the_base_then_learns_and_merged_says_the_same(architecture):
    model = tiny(architecture)
    before = model(IDS).logits
    wrap(model, Lora())
    assert torch.equal(model(IDS).logits, before)
    unwrap(model)
    with_adapter = trained(model)(IDS).logits
    assert (with_adapter - before).abs().max() > 0.05
    state = model.training
    merge(model)
    assert not lora_layers(model) and model.training == state
    torch.testing.assert_close(model(IDS).logits, with_adapter, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("base", [nn.Linear(8, 8), nn.Linear(8, 12), Conv1D(8, 8), Conv1D(12, 8)])
def test_a_square_layer_is_not_transposed(base, rslora):
    """A square matrix would take a transposed change without a word."""
    model = nn.Module()
    model.layer = layer = LoraLinear(base, Lora(r=4, alpha=6, rslora=rslora))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(5, 8)
    scale = 6 / 2 if rslora else 6 / 4
    expected = base(x) + scale * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected)
    merge(model)
    torch.testing.assert_close(model.layer(x), expected, rtol=0, atol=1e-5)


def test_only_a_and_b_have_gradients(tokenizer, records):
    model = tiny_gpt2(len(tokenizer))
    wrap(model, Lora())
    use_flat_attention(model)
    (batch,) = flat_batches(Encoder(tokenizer, QA, 256).rows(records), 10**6)
    summed_loss(model.train(), batch).backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 8 and all(name.endswith(("lora_A", "lora_B")) for name in names)


def test_gradients_equal_those_of_peft(tokenizer, records):
    ours, theirs = tiny_gpt2(len(tokenizer)), tiny_gpt2(len(tokenizer))
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(theirs, config).train()
    trained(ours)
    for name, layer in lora_layers(ours).items():
        other = theirs.base_model.model.get_submodule(name)
        other.lora_A.default.weight.data.copy_(layer.lora_A)
        other.lora_B.default.weight.data.copy_(layer.lora_B)
    rows = Encoder(tokenizer, QA, 256).rows(records)
    use_flat_attention(ours)
    for batch in flat_batches(rows, 10**6):
        summed_loss(ours.train(), batch).backward()
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = theirs(ids).logits[0, row.first_supervised - 1 : -1]
        nn.functional.cross_entropy(logits, ids[0, row.first_supervised :], reduction="sum").backward()
    for name, layer in lora_layers(ours).items():
        other = theirs.base_model.model.get_submodule(name)
        for mine, their in ((layer.lora_A, other.lora_A), (layer.lora_B, other.lora_B)):
            torch.testing.assert_close(mine.grad, their.default.weight.grad, rtol=1e-4, atol=1e-4)


def test_the_input_is_kept_once(tokenizer):
    """What autograd keeps of one layer: x, which A needs, and the low-rank row; no second x, no full correction."""
    layer = LoraLinear(nn.Linear(64, 48).requires_grad_(False), Lora(r=4))
    x, kept = torch.randn(100, 64, requires_grad=True), {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    weights = sum(p.untyped_storage().nbytes() for p in (layer.base.weight, layer.lora_A, layer.lora_B))
    assert sum(kept.values()) <= weights + 4 * 100 * (64 + 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_weights_in_half_precision_change_no_number_and_take_less(architecture):
    """Under autocast the same bits, forward and backward; fp32 weights and their copies for the backward are gone."""
    seen, bytes_held = [], []
    for rounded in (False, True):
        model = trained(tiny(architecture))
        for module in model.modules():
            if isinstance(module, nn.Embedding):  # as a checkpoint in bf16 has them; autocast would not round them
                module.weight.data = module.weight.bfloat16().float()
        halve(model, torch.bfloat16 if rounded else torch.float32)
        kept = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            logits = model(IDS).logits
        logits.float().square().mean().backward()
        bytes_held.append(sum(kept.values()))
        seen.append([logits, *(p.grad for p in model.parameters() if p.requires_grad)])
        assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert bytes_held[1] < bytes_held[0]


# -- what is adapted --------------------------------------------------------------------------------------------------


def test_every_linear_layer_of_the_blocks_and_no_head():
    model = tiny("qwen2")
    names = wrap(model, Lora())
    unwrap(model)
    assert set(names) == set(linear_layers(model)) - {"lm_head"} and len(names) == 2 * 7
    assert wrap(model, Lora(targets=("q_proj", "self_attn.v_proj"))) == [
        f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in "qv"
    ]


def test_names_that_match_nothing_are_an_error_with_the_names_that_exist():
    with pytest.raises(UnsupportedModel, match=r"q_porj.*c_attn, c_fc, c_proj"):
        wrap(tiny_gpt2(), Lora(targets=("c_attn", "q_porj")))
    with pytest.raises(UnsupportedModel, match="head"):
        wrap(tiny_gpt2(), Lora(targets=("lm_head",)))


def test_the_first_adapter_depends_on_its_seed_alone():
    models = [tiny("llama") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(torch.seed())
        wrap(model, Lora(), seed)
    first, same, other = (next(iter(lora_layers(model).values())).lora_A for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)


# -- peft's files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_opens_ours_with_equal_logits(tmp_path, architecture, rslora):
    model = trained(tiny(architecture), Lora(r=4, alpha=6, rslora=rslora))
    save_adapter(model, tmp_path, weights_to_save(model))
    theirs = peft.PeftModel.from_pretrained(tiny(architecture), tmp_path).eval()
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=0, atol=2e-6)
    assert theirs.peft_config["default"].fan_in_fan_out == (architecture == "gpt2")
    again = tiny(architecture)
    load_adapter(again, tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("targets", ["all-linear", ["c_attn", "q_proj", "query"], r".*\.1\..*(c_fc|up_proj|query)"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_we_open_what_peft_wrote(tmp_path, architecture, rslora, targets):
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=targets,
        fan_in_fan_out=architecture == "gpt2",
        init_lora_weights=False,  # B random
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(tiny(architecture), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tiny(architecture)
    load_adapter(ours, tmp_path / "theirs")
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=0, atol=2e-6)
    save_adapter(ours, tmp_path / "ours", weights_to_save(ours))  # and back
    mine, their = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert mine.keys() == their.keys() and all(torch.equal(mine[key], their[key]) for key in their)


def test_what_is_more_than_lora_is_refused(tmp_path):
    for number, options in enumerate(
        ({"use_dora": True}, {"rank_pattern": {"c_fc": 2}}, {"modules_to_save": ["ln_f"]}, {"lora_bias": True})
    ):
        config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **options)
        peft.get_peft_model(tiny_gpt2(), config).save_pretrained(tmp_path / str(number))
        with pytest.raises(UnsupportedModel):
            load_adapter(tiny_gpt2(), tmp_path / str(number))


def test_an_adapter_of_another_base_or_a_damaged_one_is_a_sentence(tmp_path):
    adapter = trained(tiny_gpt2(n_embd=64))
    save_adapter(adapter, tmp_path, weights_to_save(adapter))
    with pytest.raises(UnsupportedModel, match="hidden_size 64"):
        load_adapter(tiny_gpt2(), tmp_path)
    with pytest.raises(UnsupportedModel, match="model_type gpt2"):
        load_adapter(tiny("llama"), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "adapter_model.safetensors")  # without a word about its base, as peft writes it
    with pytest.raises(UnsupportedModel, match="another shape"):
        load_adapter(tiny_gpt2(), tmp_path)
    with pytest.raises(UnsupportedModel, match="its target_modules match 16"):
        load_adapter(tiny_gpt2(n_embd=64, n_layer=4), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    for key, value in (("r", None), ("r", "x"), ("lora_alpha", "16"), ("lora_dropout", "x"), ("target_modules", "(")):
        damaged = json.dumps(config | {key: value})
        (tmp_path / "adapter_config.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ModelUnavailable, match="damaged"):
            load_adapter(tiny_gpt2(n_embd=64), tmp_path)
    for key, value in (("alora_invocation_tokens", [20]), ("init_lora_weights", "lora_ga")):
        more = json.dumps(config | {key: value})
        (tmp_path / "adapter_config.json").write_text(more, encoding="utf-8")
        with pytest.raises(UnsupportedModel, match="only plain LoRA"):
            load_adapter(tiny_gpt2(n_embd=64), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelUnavailable, match="adapter_model"):
        load_adapter(tiny_gpt2(n_embd=64), tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelUnavailable, match="adapter_config"):
        load_model(tmp_path)


def test_adapters_are_small(tmp_path):
    """r = 8 in every linear layer, at the real shapes: DistilGPT-2 under 5 MB, TinyLlama-1.1B under 30 MB."""
    shapes = {
        "distilgpt2": (GPT2LMHeadModel, GPT2Config(n_layer=6), 5),
        "tinyllama": (
            LlamaForCausalLM,
            LlamaConfig(
                vocab_size=32000,
                hidden_size=2048,
                intermediate_size=5632,
                num_hidden_layers=22,
                num_attention_heads=32,
                num_key_value_heads=4,
            ),
            30,
        ),
    }
    for name, (kind, config, megabytes) in shapes.items():
        with torch.device("meta"):
            model = kind(config)
        names = wrap(model, Lora(r=8))
        for layer in names:
            model.get_submodule(layer).to_empty(device="cpu", recurse=False)
        save_adapter(model, tmp_path / name, weights_to_save(model))
        total = sum(file.stat().st_size for file in (tmp_path / name).iterdir())
        assert 1e6 < total < megabytes * 1e6, (name, total)
