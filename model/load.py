"""Models and tokenizers from the hub, from a folder, or from nothing."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from model.adapter import adapter_base, is_adapter, load_adapter, save_adapter
from model.errors import ModelUnavailable, UnsupportedModel
from model.hub import ABOUT_THE_HUB, fetched
from model.lora import lora_layers

POCKET = "pocket"
POCKET_VOCABULARY = 4096


def choose_model(name: str, has_gpu: bool) -> tuple[str, str]:
    """What `auto` means here: the name of a model and one sentence with the reason; any other name stays itself."""
    if name != "auto":
        return name, "as asked"
    if not has_gpu:
        return POCKET, "there is no GPU, and pocket trains in minutes without one; --model distilgpt2 for the large one"
    try:
        fetched(cached_file, "distilgpt2", filename="model.safetensors")  # from the cache, else downloaded into it
        load_tokenizer("distilgpt2")
    except (ModelUnavailable, OSError, ValueError):
        return POCKET, "distilgpt2 is neither cached nor can it be downloaded now"
    return "distilgpt2", "there is a GPU"


def stored_precision(name: str | Path) -> str:
    """What the weights of a model are saved in, as "bfloat16"; of an adapter its base's; "" if it is not said."""
    if is_adapter(name):
        return stored_precision(adapter_base(name))
    with loading(name):
        dtype = fetched(AutoConfig.from_pretrained, name, trust_remote_code=False).dtype
    return str(dtype or "").removeprefix("torch.")


def shape_of(name: str | Path) -> tuple[PreTrainedConfig, int]:
    """The configuration of a model and the number of its parameters, before its weights are read."""
    with loading(name):
        config = fetched(AutoConfig.from_pretrained, name, trust_remote_code=False)
        check_blocks(Path(name), config)
        with torch.device("meta"):  # nothing but shapes
            return config, AutoModelForCausalLM.from_config(config).num_parameters()


def load_model(
    name: str | Path,
    dropout: float = 0.0,
    four_bit: bool = False,
    compute_dtype: torch.dtype = torch.float32,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A causal language model, weights in `dtype`, in eval mode, on the CPU; of an adapter's folder base and adapter.

    `four_bit` rounds the linear layers of the blocks to NF4 (Dettmers et al., "QLoRA", 2023) while they are loaded,
    with double quantisation; they compute in `compute_dtype`. A checkpoint that is 4-bit already stays so. `base` is
    used instead of the base that an adapter names. Raises `ModelUnavailable` when the weights cannot be had,
    `UnsupportedModel` when the loop cannot train them.
    """
    if is_adapter(name):
        model = load_model(base or adapter_base(name), dropout, four_bit, compute_dtype, dtype=dtype)
        load_adapter(model, Path(name))
        return model
    with loading(name):
        config = fetched(AutoConfig.from_pretrained, name, trust_remote_code=False)
        check_blocks(Path(name), config)
    if config.model_type == "bert":
        config.is_decoder = True  # causal: it reads from left to right, as a baseline for decoders
    set_dropout(config, dropout)
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same formula in one kernel instead of eight
    nf4 = quantisation(config, four_bit, compute_dtype, name)
    with loading(name), quiet(when=Path(name).is_dir()):
        model, report = fetched(
            AutoModelForCausalLM.from_pretrained,
            name,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,  # a pickle is never opened
            trust_remote_code=False,
            output_loading_info=True,
            quantization_config=nf4,
        )
    if report["missing_keys"]:
        raise ModelUnavailable(f"{name} lacks the weights {sorted(report['missing_keys'])[:3]}: not a whole model.")
    check_supported(model.config, str(name))
    for parameter in model.parameters():
        # Out of the file, which is mapped into memory: Windows could not remove an old checkpoint that is still open.
        parameter.data = parameter.data.clone()
        if getattr(parameter, "quant_state", None):  # else each backward would unpack them to fp32, then cast
            parameter.quant_state.dtype = compute_dtype
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes repacks 4-bit weights at their first evaluation on such a CPU: rounded once more, so a
            # resumed run would differ, and through a kernel without gradients, so training would silently be wrong.
            module.support_avx512bf16_for_cpu = False
    if Path(name).is_dir():
        model.name_or_path = str(Path(name).resolve())  # adapters name their base by it, wherever they are read
    return model


def check_blocks(folder: Path, config: PreTrainedConfig) -> None:
    """Compare config.json with the names of the weights, before anything of the size that it tells is built.

    Raises `ModelUnavailable`. Of a hub id nothing is on the disk yet, so nothing is compared.
    """
    weights, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if weights.is_file():
        with safe_open(weights, "pt") as file:
            names = list(file.keys())
    elif index.is_file():
        names = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    else:
        return
    check_blocks_of(names, config, folder)


def check_blocks_of(names: Iterable[str], config: PreTrainedConfig, folder: Path) -> None:
    blocks = {match[1] for name in names if (match := re.search(r"(?:^|\.)(\d+)\.", name))}
    if config.num_hidden_layers != len(blocks):
        said = f"its config.json speaks of {config.num_hidden_layers} blocks, and its weights have {len(blocks)}"
        raise ModelUnavailable(f"{folder}: {said}. Copy the folder once more.")


def quantisation(
    config: PreTrainedConfig, four_bit: bool, compute_dtype: torch.dtype, name: str | Path
) -> BitsAndBytesConfig | None:
    """How `from_pretrained` is to round weights to 4 bits; None for others, and for those that are 4-bit already.

    Raises `UnsupportedModel` for another kind of quantisation, `ModelUnavailable` without the packages it takes.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None and not four_bit:
        return None
    if stored is not None and not stored.get("load_in_4bit"):
        raise UnsupportedModel(f"{name} is quantised by {stored.get('quant_method')}; only bitsandbytes 4-bit is read.")
    packages = "bitsandbytes", "accelerate"  # transformers places 4-bit weights by the second
    if missing := [package for package in packages if find_spec(package) is None]:
        said = f"4-bit weights need the package{'s' * (len(missing) - 1)} {' and '.join(missing)}"
        raise ModelUnavailable(f"{said}. Install: pip install {' '.join(packages)}")
    if stored is not None:
        stored["bnb_4bit_compute_dtype"] = str(compute_dtype).removeprefix("torch.")
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, of an adapter that of its base. Raises `ModelUnavailable` or `UnsupportedModel`."""
    if is_adapter(name):
        return load_tokenizer(adapter_base(name))
    with loading(name):
        tokenizer = fetched(AutoTokenizer.from_pretrained, name, trust_remote_code=False)
        tokenizer("a")  # a setting of the wrong type shows only here
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:  # BERT's [CLS] text [SEP]
        tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise UnsupportedModel(f"The tokenizer of {name} has no fast version or no end token; choose another model.")
    return tokenizer


def fingerprint(model: PreTrainedModel, packed: bool = False) -> str:
    """Names the weights beside an adapter, or all of them, by 256 values of each, evenly spread.

    Of 4-bit weights by their shapes alone: a GPU and a CPU may round them differently. `packed`: by their bytes too,
    as runs before 2026-11-27 were named.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in model.named_parameters():
        if not name.endswith((".lora_A", ".lora_B")):
            digest.update(f"{name.replace('.base.', '.')} {tuple(weight.shape)}".encode())
            if packed or weight.is_floating_point():
                values = weight.detach().flatten()
                digest.update(values[:: max(1, len(values) // 256)][:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_to_save(model: PreTrainedModel) -> dict[str, Tensor]:
    """What `save_model` writes, by name: every weight, with LoRA those of the adapter."""
    if lora_layers(model):
        return {name: p for name, p in model.named_parameters() if name.endswith((".lora_A", ".lora_B"))}
    return model.state_dict(keep_vars=True)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Tensor] | None = None
) -> None:
    """A Hugging Face folder in safetensors, the tokenizer's files included; with LoRA the adapter alone.

    `weights`: as `weights_to_save` names them, of a model that holds only parts of them.
    """
    weights = weights or weights_to_save(model)
    if lora_layers(model):
        return save_adapter(model, folder, weights)
    with quiet():
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """What `save_model` wrote of a whole model, by name; tied weights once."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: weight for file in files for name, weight in load_file(file).items()}


@contextmanager
def quiet(when: bool = True) -> Iterator[None]:
    """Without transformers' report of what it loaded, which is checked here, and for a folder without progress bars."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    if when:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """What the hub, the network, the disk and the parsers raise, each their own, becomes `ModelUnavailable`."""
    hub_logging.set_verbosity_error()  # what is worth knowing is said here
    try:
        yield
    except ModelUnavailable:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 200 else reason[:200] + "..."
        advice = ABOUT_THE_HUB
        if Path(name).is_dir():
            advice = "A file of that folder is damaged, missing, or of another model: copy it once more"
            if list(Path(name).glob("pytorch_model*.bin")) and not list(Path(name).glob("*.safetensors")):
                reason = "its weights are a pickle, an older format that training never opens."
                advice = f"Convert it once: python export.py --from_bin {name} --to FOLDER"
        raise ModelUnavailable(
            f"The model {name} cannot be loaded: {reason.rstrip('.')}. {advice}. Without any download: --model pocket."
        ) from error


def check_supported(config: PreTrainedConfig, name: str) -> None:
    """Raises `UnsupportedModel` for what the chunked loss or the flat attention would compute wrongly."""
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, key, None) not in (None, 1.0):
            raise UnsupportedModel(f"{name} scales or caps its logits ({key}), which the chunked loss does not do.")


def check_window(config: PreTrainedConfig, max_length: int, name: str) -> None:
    """Raises `UnsupportedModel` when `max_length` tokens do not fit into the model's context or attention window."""
    if max_length > context_length(config):
        raise UnsupportedModel(f"{name} sees {context_length(config)} tokens at once: lower --max_length to that.")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < max_length and getattr(config, "use_sliding_window", True):
        raise UnsupportedModel(f"{name} attends over {window} tokens only: lower --max_length to that.")


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises `UnsupportedModel` when the tokenizer has a token that the model has no embedding for."""
    largest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise UnsupportedModel(f"{name}: its tokenizer has a token number {largest}, its model knows {rows} tokens.")


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    of_gpt2 = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
    for key in (*of_gpt2, "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if hasattr(config, key):
            setattr(config, key, dropout)


def pocket_model(tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int, dropout: float = 0.0):
    """A GPT-2 small enough for a CPU (2.2 M parameters), with first weights that only `seed` decides."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=max(max_length, 64),  # what it is tried on before it is trained has 48
        n_embd=192,
        n_layer=3,
        n_head=6,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    set_dropout(config, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def context_length(config: PreTrainedConfig) -> int:
    """The most tokens that the model can see at once."""
    return getattr(config, "max_position_embeddings", None) or 2**31
