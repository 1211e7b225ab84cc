"""The exported GGUF in real llama.cpp against our own generation: same prompt tokens, same greedy answers?

    pip install gguf llama-cpp-python            # the second is built from source: a compiler is needed
    python benchmarks/gguf_peer.py RUN [RUN ...] [--prompts 24] [--tokens 40]

A RUN is a folder that train.py made. Each is exported as F32, F16 and Q8_0 by export.py; the table says for how many
prompts llama.cpp makes the same tokens of the prompt, and the same greedy answer to it.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llama_cpp import Llama

from model.load import load_model, load_tokenizer
from model.sample import Sampling, generate
from run.checkpoint import find_run, read_json, weights_of
from text.batch import Encoder
from text.stream import RecordFile
from text.template import fit_tokenizer, load_template


def main() -> None:
    parser = argparse.ArgumentParser(description="Our greedy tokens against those of llama.cpp.")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=40)
    options = parser.parse_args()
    print(f"llama-cpp-python {version('llama-cpp-python')}, gguf {version('gguf')}\n")
    print("| run | architecture | GGUF | same prompt tokens | same greedy answer | tokens compared |")
    print("|---|---|---|---:|---:|---:|")
    for name in options.runs:
        run = find_run(name)
        source = weights_of(run)
        model, tokenizer, template = load_model(source), load_tokenizer(source), load_template(source)
        fit_tokenizer(tokenizer, template)
        encoder = Encoder(tokenizer, template, max_length=0)
        file = RecordFile(Path(read_json(run / "train_config.json")["options"]["data_dir"]) / "test.jsonl")
        titles = [file[i]["title"] for i in range(min(options.prompts, len(file)))]
        prompts = encoder.prompts(titles)
        sampling = Sampling(max_new_tokens=options.tokens, greedy=True)
        ours = [generate(model, [prompt], encoder.end_token, sampling)[0].ids for prompt in prompts]
        for kind in ("f32", "f16", "q8_0"):
            with tempfile.TemporaryDirectory() as folder:
                to = Path(folder) / "export"
                command = [sys.executable, ROOT / "export.py", "--run", run, "--to", to, "--format", "gguf"]
                subprocess.run([*command, "--gguf_type", kind], check=True, stdout=subprocess.DEVNULL)
                peer = Llama(str(to / "model.gguf"), n_ctx=256, type_k=0, type_v=0, verbose=False)  # cache in fp32
                same_prompt = same_answer = compared = 0
                for title, prompt, answer in zip(titles, prompts, ours, strict=True):
                    text = template.prompt_for(title).encode()
                    same_prompt += peer.tokenize(text, add_bos=True, special=True) == prompt
                    theirs = greedy(peer, prompt, options.tokens)
                    same_answer += theirs == answer
                    compared += len(answer)
                peer.close()
            count = len(titles)
            print(
                f"| {run.name} | {model.config.model_type} | {kind} | {same_prompt} of {count} | "
                f"{same_answer} of {count} | {compared} |"
            )


def greedy(peer: Llama, prompt: list[int], limit: int) -> list[int]:
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
