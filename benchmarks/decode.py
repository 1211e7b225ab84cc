"""Writing answers, side by side with `transformers.generate` on the same model: one alone, sixteen, a file of titles.

    python benchmarks/decode.py                      DistilGPT-2's real shape, random weights
    python benchmarks/decode.py --shape pocket       the model that is trained from nothing
    python benchmarks/decode.py --device cuda

The two take turns in one process; ratios are taken within a round. Of the file the titles have 4 to 60 tokens, and an
answer ends at any token that 40 divides, so lengths are mixed; both sample, each with its own random numbers, so tokens
a second are compared. `floor`: what reading every weight once takes, the sum of each matrix, which no token at batch 1
can undercut.
"""

import argparse
import copy
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from shapes import SHAPES
from transformers import AutoModelForCausalLM, GPT2Config, StoppingCriteria, StoppingCriteriaList

from model.linear import pack
from model.sample import Sampling, generate

NEW, EVERY, END = 100, 40, 0


class AtAMultiple(StoppingCriteria):
    def __call__(self, input_ids, scores, **_):
        return input_ids[:, -1] % EVERY == 0


def rule(ids: list[int]) -> bool:
    return ids[-1] % EVERY == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="DistilGPT-2", help="of benchmarks/shapes.py, or pocket [DistilGPT-2]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--titles", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    pocket = {"vocab_size": 4096, "n_positions": 256, "n_embd": 192, "n_layer": 3, "n_head": 6}
    ends = {"bos_token_id": END, "eos_token_id": END}
    config = GPT2Config(**pocket, **ends) if args.shape == "pocket" else SHAPES[args.shape]()
    model = AutoModelForCausalLM.from_config(config)
    model = model.eval().to(args.device)
    theirs = copy.deepcopy(model)  # as it comes
    pack(model)
    draw = random.Random(0)
    vocabulary = model.config.vocab_size

    def prompts(count: int, shortest: int, longest: int) -> list[list[int]]:
        lengths = [draw.randint(shortest, longest) for _ in range(count)]
        return [[draw.randrange(1, vocabulary) for _ in range(length)] for length in lengths]

    one, sixteen, file = prompts(1, 20, 20), prompts(16, 20, 20), prompts(args.titles, 4, 60)
    greedy, sampled = Sampling(NEW, greedy=True), Sampling(NEW, temperature=1.0, top_k=50, top_p=1.0)
    ways = {
        "one alone, greedy": (one, 1, greedy, False),
        "sixteen, sampled": (sixteen, 16, sampled, False),
        f"{args.titles} titles, sampled": (file, 32, sampled, True),
    }
    threads = f"{torch.get_num_threads()} threads" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"{args.shape}, {threads}, torch {torch.__version__}, {args.rounds} rounds, medians\n")
    print("| | generate, tokens/s | ours, tokens/s | ratio |\n|---|---:|---:|---:|")
    for name, (asked, rows, sampling, mixed) in ways.items():
        rounds, floors = [], []
        for turn in range(args.rounds + 1):
            both = [by_transformers(theirs, asked, rows, sampling, mixed), by_us(model, asked, rows, sampling, mixed)]
            rounds += [both] if turn else []  # the first warms up
            floors += [floor_of(model)] if turn and rows == 1 else []  # here: memory is not always as fast
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        ratio = statistics.median(ours / theirs for theirs, ours in rounds)
        print(f"| {name} | {medians[0]:,.0f} | {medians[1]:,.0f} | {ratio:.2f} |", flush=True)
        if floors:
            share = statistics.median(ours * floor for (_, ours), floor in zip(rounds, floors, strict=True))
            floor = 1 / statistics.median(floors)
            print(f"| floor: weights read once | | {floor:,.0f} | {share:.1%} of it |", flush=True)


def timed(model, work) -> float:
    """Tokens a second of `work`, which returns how many it wrote."""
    began = time.perf_counter()
    tokens = work()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return tokens / (time.perf_counter() - began)


def by_us(model, prompts: list[list[int]], rows: int, sampling: Sampling, mixed: bool) -> float:
    def work() -> int:
        answers = generate(model, prompts, END, sampling, rows, rule if mixed else None)
        return sum(len(answer.ids) for answer in answers)

    return timed(model, work)


def by_transformers(model, prompts: list[list[int]], rows: int, sampling: Sampling, mixed: bool) -> float:
    """In batches of `rows` in the order of the file, padded on the left."""
    model.set_attn_implementation("sdpa")
    how = {"do_sample": not sampling.greedy, "max_new_tokens": NEW, "pad_token_id": END}
    how |= {} if sampling.greedy else {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    how |= {"stopping_criteria": StoppingCriteriaList([AtAMultiple()])} if mixed else {"min_new_tokens": NEW}

    def work() -> int:
        tokens = 0
        for first in range(0, len(prompts), rows):
            some = prompts[first : first + rows]
            longest = max(map(len, some))
            ids = torch.tensor([[END] * (longest - len(p)) + p for p in some], device=model.device)
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some], device=model.device)
            found = model.generate(ids, attention_mask=mask, eos_token_id=None, **how)[:, longest:].tolist()
            for row in found:
                ends = [i + 1 for i, token in enumerate(row) if mixed and token % EVERY == 0]
                tokens += min([*ends, len(row)])
        return tokens

    return timed(model, work)


@torch.no_grad()
def floor_of(model) -> float:
    """Seconds that it takes to read every weight that a token needs; of the embeddings it needs a row."""
    read = [p for name, p in model.named_parameters() if p.ndim > 1 and "wpe" not in name]
    began = time.perf_counter()
    for parameter in read:
        parameter.sum()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
