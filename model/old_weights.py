"""Weights of older models, a pickle named pytorch_model.bin, as safetensors: once, by export.py --from_bin.

Many models of the hub have nothing else. Training never opens a pickle; here torch's weights-only reader does, which
builds tensors and runs no code.
"""

import json
import pickle
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from model.errors import ModelUnavailable
from model.load import check_blocks_of, quiet

BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def read_old_weights(folder: Path) -> PreTrainedModel:
    """The model of a folder with pytorch_model.bin, in fp32, every weight there, of its shape, and finite.

    Raises `ModelUnavailable`.
    """
    tensors: dict[str, Tensor] = {}
    for file in files_of(folder):
        tensors |= tensors_in(file)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_blocks_of(tensors, config, folder)
        with torch.device("meta"):
            architecture = type(AutoModelForCausalLM.from_config(config))
        with quiet():
            model, report = architecture.from_pretrained(
                None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
            )
    except ModelUnavailable:
        raise
    except Exception as error:  # the parsers and transformers raise their own
        raise ModelUnavailable(f"{folder} cannot be converted: {' '.join(str(error).split())[:200]}") from error
    if report["missing_keys"]:
        raise ModelUnavailable(f"{folder} lacks the weights {sorted(report['missing_keys'])[:3]}: not a whole model.")
    return model


def files_of(folder: Path) -> list[Path]:
    """Raises `ModelUnavailable` where there is none, or the index names what is not a file of this folder."""
    if (folder / BIN).is_file():
        return [folder / BIN]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelUnavailable(f"{folder} has no {BIN} and no {INDEX} that can be read.") from None
    if not files or len(files) < len(names) or not all(file.is_file() for file in files):
        raise ModelUnavailable(f"{folder / INDEX} names files that are not in its folder.")
    return files


def tensors_in(file: Path) -> dict[str, Tensor]:
    """Raises `ModelUnavailable` for whatever is no table of finite tensors."""
    for mapped in (True, False):  # files from before 2020 cannot be mapped into memory
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
            break
        except pickle.UnpicklingError:  # something else than tensors is in it
            raise ModelUnavailable(f"{file} holds more than tensors, so it is not opened.") from None
        except Exception as error:
            if not mapped:
                raise ModelUnavailable(f"{file} is damaged, or no file of weights ({type(error).__name__}).") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise ModelUnavailable(f"{file} holds more than tensors by name, so it is not taken.")
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelUnavailable(f"{file}: {name} has values that are not finite.")
    return tensors
