"""pytorch_model.bin becomes safetensors, and nothing in it is run."""

import json
import pickle

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM

import export
from model.errors import ModelUnavailable
from model.load import load_model


def old_folder(folder, tokenizer, architecture: str = "gpt2", **how):
    config = ARCHITECTURES[architecture]()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    folder.mkdir()
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **how)
    return model


def convert(folder, to) -> int:
    return export.main(export.parse(["--from_bin", str(folder), "--to", str(to)]))


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "before 2020"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_converted_model_says_what_the_old_one_said(tmp_path, tokenizer, architecture, how):
    model = old_folder(tmp_path / "old", tokenizer, architecture, **how)
    with pytest.raises(ModelUnavailable, match=r"export\.py --from_bin"):
        load_model(tmp_path / "old")
    assert convert(tmp_path / "old", tmp_path / "new") == 0
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path / "new")(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_names_without_the_prefix_and_several_files_are_read(tmp_path, tokenizer):
    model = old_folder(tmp_path / "old", tokenizer)
    weights = {name.removeprefix("transformer."): value for name, value in model.state_dict().items()}
    weights.pop("lm_head.weight")  # tied, as in the models of 2019
    names = sorted(weights)
    parts = {"pytorch_model-1.bin": names[:9], "pytorch_model-2.bin": names[9:]}
    for file, some in parts.items():
        torch.save({name: weights[name] for name in some}, tmp_path / "old" / file)
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (tmp_path / "old" / "pytorch_model.bin").unlink()
    (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert convert(tmp_path / "old", tmp_path / "new") == 0
    again = load_model(tmp_path / "new").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


class Trap:
    def __reduce__(self):
        import os

        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("what", ["trap", "trap within", "list", "nan", "text", "empty", "shape", "missing", "index"])
def test_what_is_no_table_of_weights_is_a_sentence(tmp_path, tokenizer, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    model = old_folder(tmp_path / "old", tokenizer)
    weights, file = dict(model.state_dict()), tmp_path / "old" / "pytorch_model.bin"
    name = "transformer.h.0.mlp.c_fc.weight"
    if what == "trap":
        file.write_bytes(pickle.dumps({"a": Trap()}))
    elif what == "trap within":
        torch.save(weights | {"a": Trap()}, file)
    elif what == "list":
        torch.save([1, 2], file)
    elif what == "nan":
        torch.save(weights | {name: weights[name] * float("nan")}, file)
    elif what in ("text", "empty"):
        file.write_text("weights" if what == "text" else "", encoding="utf-8")
    elif what == "shape":
        torch.save(weights | {name: torch.zeros(3, 3)}, file)
    elif what == "missing":
        torch.save({key: value for key, value in weights.items() if key != name}, file)
    else:
        file.unlink()
        index = {"weight_map": {"a": "../../other.bin"}}
        (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelUnavailable):
        convert(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists() and not (tmp_path / "trapped").exists()
