"""The exported GGUF in real llama.cpp against our own generation: same prompt tokens, same greedy answers?

    pip install gguf llama-cpp-python            # the second is built from source: a compiler is needed
    python benchmarks/gguf_peer.py               # trains a small GPT-2, Llama and Qwen2 first, 12 minutes
    python benchmarks/gguf_peer.py RUN [RUN ...] # folders that train.py made

Each run is exported as F32, F16 and Q8_0 by export.py. The table says for how many prompts llama.cpp makes the same
tokens of the prompt, and the same greedy answer as our fp32 model. Where an answer is another one: how far apart the
two tokens are in our logits, at the first place where they differ; the rounding of a file can only turn near ties.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from kinds import sentencepiece_like
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from model.load import load_tokenizer
from model.sample import Sampling, generate
from run.files import read_json
from run.folders import find_run, weights_of
from run.loading import load
from text.stream import RecordFile
from text.template import load_template


def main() -> None:
    parser = argparse.ArgumentParser(description="Our greedy tokens against those of llama.cpp.")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [find_run(name) for name in options.runs] or train_peers(Path(folder))
        print(f"\nllama-cpp-python {version('llama-cpp-python')}, gguf {version('gguf')}\n")
        print("| run | architecture | GGUF | same prompt | same greedy answer | tokens compared | our logits apart |")
        print("|---|---|---|---:|---:|---:|---:|", flush=True)
        for run in runs:
            compare(run, options.prompts, options.tokens, Path(folder))


def train_peers(folder: Path) -> list[Path]:
    """The example catalogue learned from nothing: by pocket, by a Llama of its size with a tokenizer of Llama's kind,
    and by a Qwen2 of its size with pocket's."""
    prepare = [sys.executable, ROOT / "data_prep.py", ROOT / "examples" / "catalogue.json.gz"]
    subprocess.run([*prepare, "--output_dir", folder / "data"], check=True)
    train(folder, "gpt2", "--model", "pocket")
    records = RecordFile(folder / "data" / "train.jsonl")
    tokenizers = {
        "llama": sentencepiece_like(texts=(f"{r['title']} {r['content']}" for r in records), vocabulary=3072),
        "qwen2": load_tokenizer(folder / "gpt2" / "final"),
    }
    for kind, tokenizer in tokenizers.items():
        torch.manual_seed(0)
        config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
            vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / "untrained" / kind)
        tokenizer.save_pretrained(folder / "untrained" / kind)
        train(
            folder, kind, "--model", folder / "untrained" / kind, "--learning_rate", "2e-3", "--num_train_epochs", "6"
        )
    return [folder / "gpt2", folder / "llama", folder / "qwen2"]


def train(folder: Path, name: str, *options) -> None:
    command = [sys.executable, ROOT / "train.py", "--data", folder / "data", "--output_dir", folder]
    subprocess.run([*command, "--run_name", name, *options], check=True)


def compare(run: Path, prompts_wanted: int, tokens: int, folder: Path) -> None:
    """Three lines of the table."""
    from llama_cpp import Llama  # not before: --help answers without it

    source = weights_of(run)
    model, encoder = load(source, load_template(source))
    file = RecordFile(Path(read_json(run / "train_config.json")["options"]["data_dir"]) / "test.jsonl")
    titles = [file[i]["title"] for i in range(min(prompts_wanted, len(file)))]
    prompts = encoder.prompts(titles)
    sampling = Sampling(max_new_tokens=tokens, greedy=True)
    ours = [generate(model, [prompt], encoder.end_token, sampling)[0].ids for prompt in prompts]
    for kind in ("f32", "f16", "q8_0"):
        to = folder / f"{run.name}-{kind}"
        command = [sys.executable, ROOT / "export.py", "--run", run, "--to", to, "--format", "gguf"]
        subprocess.run([*command, "--gguf_type", kind], check=True, stdout=subprocess.DEVNULL)
        peer = Llama(str(to / "model.gguf"), n_ctx=256, type_k=0, type_v=0, verbose=False)  # cache in fp32
        same_prompt = same_answer = compared = 0
        apart = []
        for title, prompt, answer in zip(titles, prompts, ours, strict=True):
            text = encoder.template.prompt_for(title).encode()
            same_prompt += peer.tokenize(text, add_bos=True, special=True) == prompt
            theirs = greedy(peer, prompt, tokens)
            same_answer += theirs == answer
            compared += len(answer)
            if theirs != answer:
                apart.append(gap(model, prompt, [*answer, encoder.end_token], [*theirs, encoder.end_token]))
        peer.close()
        print(
            f"| {run.name} | {model.config.model_type} | {kind} | {same_prompt} of {len(titles)} | "
            f"{same_answer} of {len(titles)} | {compared:,} | {f'{max(apart):.2f} at most' if apart else ''} |",
            flush=True,
        )


@torch.inference_mode()
def gap(model, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
    """How much larger our logit of our token is than that of theirs, where the two answers part."""
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    logits = model(torch.tensor([prompt + ours[:place]])).logits[0, -1]
    return (logits[ours[place]] - logits[theirs[place]]).item()


def greedy(peer, prompt: list[int], limit: int) -> list[int]:
    """The likeliest tokens after `prompt`, up to the end token or `limit`."""
    answer = []
    for token in peer.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        if token == peer.token_eos() or len(answer) == limit:
            break
        answer.append(token)
        if len(answer) == limit:
            break
    peer.reset()
    return answer


if __name__ == "__main__":
    main()
