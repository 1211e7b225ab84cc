"""Adapters on the disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, a few MB.

`peft.PeftModel.from_pretrained` opens what is written here, and what peft wrote is opened here, with equal logits.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from model.errors import ModelUnavailable, UnsupportedModel
from model.lora import Lora, linear_layers, lora_layers, matching, wrap

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # ways to draw A and B that leave the base alone
MORE_THAN_LORA = (
    "use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "alora_invocation_tokens", "use_qalora",
    "target_parameters", "trainable_token_indices", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip
PREFIX, SUFFIX_A, SUFFIX_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def is_adapter(name: str | Path) -> bool:
    return (Path(name) / CONFIG).is_file()


def save_adapter(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the adapter of a wrapped model: A and B, by their names in it. Its base is named by path or hub id."""
    layers = lora_layers(model)
    lora = next(iter(layers.values())).lora
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": list(lora.targets),
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    tensors = {f"{PREFIX}{name}.weight": weight.detach().contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **shape_of(model)})


def saved_adapter(folder: Path) -> dict[str, Tensor]:
    """What `save_adapter` wrote, by the names of the wrapped model."""
    return {n.removeprefix(PREFIX).removesuffix(".weight"): w.clone() for n, w in load_file(folder / WEIGHTS).items()}


def shape_of(model: PreTrainedModel) -> dict[str, str]:
    """What two models have in common when an adapter fits both, as far as a few words can say."""
    names = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")
    return {f"base_{name}": str(getattr(model.config, name)) for name in names}


def adapter_base(folder: str | Path) -> str:
    """The model that an adapter belongs to. Raises `ModelUnavailable` when the adapter does not name it."""
    base = read_adapter_config(Path(folder)).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelUnavailable(f"{Path(folder) / CONFIG} does not name its base model: name it with --base.")
    return base


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapter of `folder` around the layers of its base `model`.

    Raises `UnsupportedModel` for what is more than plain LoRA or does not fit the model, `ModelUnavailable` when a
    file is absent or damaged.
    """
    config = read_adapter_config(folder)
    changed_base = config.get("init_lora_weights") not in KEEPS_BASE
    extras = [key for key in MORE_THAN_LORA if config.get(key)]
    if config.get("peft_type") != "LORA" or extras or changed_base:
        what = ", ".join(extras) or ("init_lora_weights" if changed_base else config.get("peft_type"))
        raise UnsupportedModel(f"{folder}: only plain LoRA adapters can be opened, and this one uses {what}.")
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            saved_beside, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        raise ModelUnavailable(
            f"{folder / WEIGHTS} is missing or damaged; a .bin file, a pickle, is not opened."
        ) from None
    names = [key.removeprefix(PREFIX).removesuffix(SUFFIX_A) for key in tensors if key.endswith(SUFFIX_A)]
    known = {PREFIX + name + suffix for name in names for suffix in (SUFFIX_A, SUFFIX_B)}
    if set(tensors) != known:
        raise UnsupportedModel(f"{folder}: {sorted(set(tensors) ^ known)[0]} is not part of a plain LoRA adapter.")

    here, listed = shape_of(model), config.get("target_modules")
    if other := [key for key in here if saved_beside.get(key, here[key]) != here[key]]:
        was, now = (f"{other[0].removeprefix('base_')} {of[other[0]]}" for of in (saved_beside, here))
        raise UnsupportedModel(f"{folder} belongs to another base: it was trained beside {was}, and this has {now}.")
    meant, restricted = names, any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
    if isinstance(listed, list):
        meant = matching(model, listed)
    elif isinstance(listed, str):
        try:
            meant = [name for name in linear_layers(model) if re.fullmatch(listed, name)]
        except re.error:
            raise ModelUnavailable(f"{folder / CONFIG} is damaged: its target_modules are no pattern.") from None
    same = sorted(meant) == sorted(names)
    if not (same or restricted) or not names:
        raise UnsupportedModel(
            f"{folder} belongs to another base: it has {len(names)} layers, and its target_modules match {len(meant)}."
        )
    targets = tuple(t for t in listed if matching(model, (t,))) if same and isinstance(listed, list) else tuple(names)
    lora = lora_of(config, targets, folder)
    if any(tensors[PREFIX + name + SUFFIX_A].shape[:1] != (lora.r,) for name in names):
        raise ModelUnavailable(f"{folder} is damaged: its weights have not the rank of its {CONFIG}, {lora.r}.")
    wrap(model, lora)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for parameter, suffix in ((layer.lora_A, SUFFIX_A), (layer.lora_B, SUFFIX_B)):
                values = tensors[PREFIX + name + suffix]
                if values.shape != parameter.shape:
                    raise UnsupportedModel(f"{folder} belongs to another base: {name} has another shape here.")
                parameter.copy_(values)


def lora_of(config: dict, targets: tuple[str, ...], folder: Path) -> Lora:
    """Raises `ModelUnavailable` when a number is missing or is none."""
    r, alpha, share = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout") or 0.0
    if not isinstance(r, int) or r < 1 or not all(isinstance(number, (int, float)) for number in (alpha, share)):
        raise ModelUnavailable(f"{folder / CONFIG} is damaged: its r, lora_alpha or lora_dropout is no number.")
    return Lora(r, alpha, share, bool(config.get("use_rslora")), targets)


def read_adapter_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise ModelUnavailable(f"{folder / CONFIG} is missing or damaged.") from None
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{folder / CONFIG} is damaged.")
    return config
