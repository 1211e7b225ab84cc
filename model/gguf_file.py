"""GGUF: weights, tokenizer, template and end token in one file, for llama.cpp, Ollama and what is built on them.

For GPT-2 and for the family of Llama, Mistral and Qwen2. Names and layouts follow llama.cpp: a matrix is (out, in);
the rotary halves of Llama's queries and keys lie interleaved there, and side by side in transformers.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from model.errors import ModelUnavailable, UnsupportedModel

ARCHITECTURES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
SPLIT_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut into words before the merges: the names that llama.cpp has for it.
WORDS = {"": "gpt-2", SPLIT_LLAMA3: "llama-bpe", SPLIT_LLAMA3.replace("{1,3}", ""): "qwen2"}


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adds_bos: bool, path: Path, kind: str
) -> None:
    """Write `path`; `kind` is "f32", "f16" or "q8_0" and holds for the matrices: vectors and norms stay fp32.

    Raises `UnsupportedModel` for what llama.cpp would compute otherwise, `ModelUnavailable` without the package gguf.
    """
    if find_spec("gguf") is None:
        raise ModelUnavailable("GGUF needs the package gguf. Install it: pip install gguf")
    import gguf

    config = model.config
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF is written for GPT-2, Llama, Mistral and Qwen2, not {config.model_type}: use --format safetensors."
        )
    architecture = ARCHITECTURES[config.model_type]
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(Path(model.name_or_path or architecture).name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, model)
    add_tokenizer(writer, tokenizer, config.vocab_size, adds_bos)
    for name, target, tensor in named_weights(model):
        data = turned(model, name, tensor).float().contiguous().numpy()
        vector = data.ndim == 1 or target.startswith("position_embd")
        type_ = gguf.GGMLQuantizationType.F32 if vector else wanted
        if type_ == gguf.GGMLQuantizationType.Q8_0 and data.shape[-1] % 32:
            type_ = gguf.GGMLQuantizationType.F16  # Q8_0 comes in blocks of 32
        writer.add_tensor(target, gguf.quants.quantize(data, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer, model: PreTrainedModel) -> None:
    """The numbers that describe the architecture."""
    config = model.config
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedModel(
            f"GGUF: the rotary scaling {rope['rope_type']} is not written. Use --format safetensors."
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor]]:
    """Each weight with its name here and its name in llama.cpp. Raises `UnsupportedModel` when that has none."""
    import gguf

    architecture = gguf.MODEL_ARCH[ARCHITECTURES[model.config.model_type].upper()]
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue  # llama.cpp takes the embeddings where there is no head
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise UnsupportedModel(f"GGUF has no place for {name}.")
        yield name, target, tensor


def turned(model: PreTrainedModel, name: str, tensor: Tensor, back: bool = False) -> Tensor:
    """A weight from the layout of transformers to that of llama.cpp, or back."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, Conv1D) and tensor.ndim == 2:
        return tensor.T
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": getattr(model.config, "num_key_value_heads", 0)}
    layer = name.split(".")[-2]
    if ARCHITECTURES[model.config.model_type] != "llama" or layer not in heads:
        return tensor
    # Within each head the first and the second rotary half lie one after the other here, by turns there.
    pair, size = (-1, 2) if back else (2, -1)
    return tensor.reshape(heads[layer], pair, size, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def add_tokenizer(writer, tokenizer: PreTrainedTokenizerBase, vocab_size: int, adds_bos: bool) -> None:
    """Vocabulary, merges, special tokens and template. Raises `UnsupportedModel` for an unknown kind of tokenizer."""
    import gguf

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE":
        raise UnsupportedModel(f"GGUF: tokenizers of the kind {state['model']['type']} are not written.")
    sentencepiece = bool(state["model"].get("byte_fallback"))
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in state["model"]["merges"]]
    special = {token["id"]: token["special"] for token in state["added_tokens"]}
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    types = [gguf.TokenType.NORMAL] * vocab_size
    for i, token in enumerate(tokens):
        if i not in by_id:
            types[i] = gguf.TokenType.UNUSED
        elif i == tokenizer.unk_token_id and sentencepiece:
            types[i] = gguf.TokenType.UNKNOWN
        elif i in special:
            types[i] = gguf.TokenType.CONTROL if special[i] else gguf.TokenType.USER_DEFINED
        elif sentencepiece and len(token) == 6 and token.startswith("<0x"):
            types[i] = gguf.TokenType.BYTE
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    if sentencepiece:
        # The earlier a merge was learned the higher its score; single characters are never the result of one.
        rank = {left + right: -float(place) for place, (left, right) in reversed(list(enumerate(merges)))}
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([rank.get(token, -1e9) for token in tokens])
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids[0])
        writer.add_add_space_prefix(first.startswith("\u2581"))
    else:
        writer.add_tokenizer_pre(words_of(state["pre_tokenizer"]))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if sentencepiece and tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def words_of(pre_tokenizer: dict) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text into words. Raises `UnsupportedModel`."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    pattern = "".join(step["pattern"].get("Regex", "") for step in steps if step["type"] == "Split")
    if pattern not in WORDS or steps[-1]["type"] != "ByteLevel":
        raise UnsupportedModel("GGUF: this tokenizer cuts words in a way that has no known name in llama.cpp.")
    return WORDS[pattern]


@torch.no_grad()
def read_gguf(model: PreTrainedModel, path: Path) -> None:
    """Put the weights of a GGUF file into `model`, which has its architecture: to check what was written."""
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, target, weight in named_weights(model):
        tensor = stored[target]
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        weight.copy_(turned(model, name, values.float(), back=True))
