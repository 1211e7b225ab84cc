"""Tiny models of each architecture with a tokenizer of the kind that it really has, all made here."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from conftest import LLAMA_LIKE, RECORDS, tiny_gpt2
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from text.bpe import train_bpe

TEXTS = [f"{r['title']} {r['content']} Question: Answer: [INST] You are an assistant" for r in RECORDS]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def sentencepiece_like(
    extra: tuple[str, ...] = (), chat_template: str = ZEPHYR, texts: Iterable[str] = TEXTS, vocabulary: int = 700
) -> PreTrainedTokenizerFast:
    """Llama's kind: BPE over characters with a byte fallback, "▁" for spaces and before the text, BOS before all."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)], show_progress=False
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no merge across words, as in Llama's
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    # the bytes are pieces of the vocabulary, not special tokens
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = chat_template
    return wrapped


def chatml() -> PreTrainedTokenizerFast:
    """Qwen's kind: byte-level BPE, no BOS, <|im_start|> and <|im_end|> beside <|endoftext|>."""
    tokenizer = train_bpe(TEXTS, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.bos_token = None
    tokenizer.chat_template = CHATML
    return tokenizer


def bert() -> BertTokenizer:
    words = sorted(
        {word for text in TEXTS for word in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text.lower())}
    )
    pieces = sorted({piece for word, _ in words for piece in (word, *word, *(f"##{letter}" for letter in word))})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)})


TOKENIZERS = {
    "gpt2": lambda: train_bpe(TEXTS, 400),
    "llama": sentencepiece_like,
    "mistral": lambda: sentencepiece_like(("[INST]", "[/INST]"), MISTRAL),
    "qwen2": chatml,
    "bert": bert,
}


def tiny_model(kind: str, tokenizer):
    torch.manual_seed(0)
    size = len(tokenizer)
    if kind == "gpt2":
        return tiny_gpt2(size, n_embd=64)
    shape = LLAMA_LIKE | {
        "vocab_size": size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id or tokenizer.sep_token_id,
        "hidden_size": 64,  # 4-bit weights come in blocks of 64
    }
    if kind == "bert":
        shape = {key: shape[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")}
        config = BertConfig(**shape, intermediate_size=64, max_position_embeddings=256, is_decoder=True)
    elif kind == "qwen2":
        config = Qwen2Config(**shape, tie_word_embeddings=True)
    else:
        config = {"llama": LlamaConfig, "mistral": MistralConfig}[kind](**shape)
    return AutoModelForCausalLM.from_config(config).eval()


def folder_of(kind: str, folder: Path) -> Path:
    """A tiny model as transformers saves it, in `folder`."""
    tokenizer = TOKENIZERS[kind]()
    tiny_model(kind, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
