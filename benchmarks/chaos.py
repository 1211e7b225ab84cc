"""Kill training at random moments, damage checkpoints at random places, and see whether anything is lost.

    python benchmarks/chaos.py                  50 runs that are killed, 24 checkpoints that are damaged
    python benchmarks/chaos.py --runs 5 --damages 4 --seed 7
    python benchmarks/chaos.py --runs 10 --damages 0 --kinds muon,pocket

The runs are by turns a full fine-tune of a tiny GPT-2, by AdamW and by Muon, `pocket` from scratch, LoRA beside that
GPT-2, and LoRA beside a tiny Llama in 4-bit; all with dropout, over an epoch border, saved after each second step. A
run is killed with SIGKILL after a random time, inside saves included, and resumed, once or twice, then left to finish.
It has to end with bitwise the weights, optimizer state, random state and logged losses of the run of its kind that
nobody disturbed; after each kill every folder that bears a checkpoint's name has to be whole.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from run.files import DamagedCheckpoint, verify
from run.folders import OPTIMIZER, checkpoints_of
from run.metrics import read_metrics
from text.bpe import train_bpe
from text.template import QA

STEPS = 14
KINDS = {
    "full": ("--model", "gpt2", "--dropout", 0.1),
    "muon": ("--model", "gpt2", "--dropout", 0.1, "--optim", "muon"),
    "pocket": ("--model", "pocket", "--dropout", 0.1),
    "lora": ("--model", "gpt2", "--dropout", 0.1, "--lora", "--lora_dropout", 0.1),
    "4bit": ("--model", "llama", "--lora", "--lora_dropout", 0.1, "--load_in_4bit"),
}


def make_inputs(folder: Path) -> None:
    """A GPT-2 and a Llama of some 60 k parameters, and 19 invented records: with 2 a step, an epoch is 10 steps, the
    last of one."""
    records = [
        {"uid": f"U{i}", "title": f"Mug {i}", "content": f"Mug number {i} is blue. " * (1 + i % 4)} for i in range(19)
    ]
    tokenizer = train_bpe((QA.prompt_for(r["title"]) + r["content"] for r in records), vocab_size=400)
    torch.manual_seed(0)
    shape = {"n_positions": 128, "n_embd": 48, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "gpt2")
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "llama")
    for name in ("gpt2", "llama"):
        tokenizer.save_pretrained(folder / name)
    (folder / "data").mkdir()
    for split, part in (("train", records), ("val", records[:2]), ("test", records[:2])):
        text = "".join(json.dumps(record) + "\n" for record in part)
        (folder / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")


def start(folder: Path, *args) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *map(str, args)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def start_run(folder: Path, name: str) -> subprocess.Popen:
    """The kind of a run is the first word of its name."""
    options = {"data": "data", "output_dir": "runs", "run_name": name, "device": "cpu"}
    options |= {"max_steps": STEPS, "batch_size": 2, "lr": 0.01, "max_length": 128}
    options |= {"save_steps": 2, "save_total_limit": 2, "eval_steps": 4, "logging_steps": 1}
    common = (text for name, value in options.items() for text in (f"--{name}", value))
    return start(folder, *common, *KINDS[name.split("-")[0]])


def outcome(run: Path) -> dict:
    """What has to be equal, bit by bit."""
    files = sorted(file for name in ("final", f"checkpoint-{STEPS}") for file in (run / name).glob("*.safetensors"))
    logged = ("step", "loss", "grad_norm", "learning_rate", "val_loss")
    return {
        "tensors": {f"{file.parent.name} {file.name} {n}": t for file in files for n, t in load_file(file).items()},
        "log": [[entry.get(key) for key in logged] for entry in read_metrics(run / "metrics.jsonl")],
    }


def equal(one: dict, other: dict) -> bool:
    a, b = one["tensors"], other["tensors"]
    return one["log"] == other["log"] and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kill_and_resume(folder: Path, name: str, seconds: float, chance: random.Random) -> Counter:
    """One run, killed once or twice. `seconds`: how long an undisturbed one takes."""
    run, seen = folder / "runs" / name, Counter()
    process = start_run(folder, name)
    for _ in range(chance.randint(1, 2)):
        # The first half of a run's time is imports; four of five kills fall into the training itself.
        in_a_save = chance.random() < 0.5
        wait = chance.uniform(0, 0.9) if chance.random() < 0.2 else chance.uniform(0.45, 0.9)
        try:
            process.wait(wait * seconds)
        except subprocess.TimeoutExpired:
            while in_a_save and process.poll() is None and not any(run.glob(".checkpoint-*.tmp")):
                time.sleep(0.0005)  # until the next save has begun
        if process.poll() is None:
            process.kill()
            process.wait()
            seen["kills"] += 1
            seen["inside a save"] += any(path.is_dir() for path in run.glob(".*.tmp")) or any(run.glob(".*.old"))
        for checkpoint in [*checkpoints_of(run), *run.glob("final")]:
            verify(checkpoint)
        process = start(folder, "--resume", run) if (run / "train_config.json").exists() else start_run(folder, name)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}\n{errors.decode()}")
    if not seen["kills"]:  # it was done before: once more, so that each of the runs is one that was killed
        shutil.rmtree(run)
        return kill_and_resume(folder, name, seconds, chance)
    return seen


def damage_and_resume(folder: Path, source: Path, name: str, kind: str, chance: random.Random) -> str:
    """A copy of a stopped run whose newest checkpoint is damaged; returns what happened."""
    run = folder / "runs" / name
    shutil.copytree(source, run)
    newest, before = checkpoints_of(run)[-1], checkpoints_of(run)[-2]
    file = chance.choice(sorted(path for path in newest.iterdir() if path.is_file()))
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    if kind == "flipped":
        content[place] ^= 1 << chance.randrange(8)
    content = {"flipped": content, "truncated": content[:place], "empty": b"", "missing": None}[kind]
    file.unlink() if content is None else file.write_bytes(content)
    try:
        verify(newest)
        return f"{kind} {file.name} was not noticed"
    except DamagedCheckpoint:
        pass
    process = start(folder, "--resume", run)
    errors = process.communicate()[1].decode()
    if process.returncode or "Traceback" in errors or newest.name not in errors:
        return f"{kind} {file.name}: exit code {process.returncode}\n{errors}"
    steps = [entry["step"] for entry in read_metrics(run / "metrics.jsonl")]
    verify(run / "final")
    return "ok" if steps == list(range(1, STEPS + 1)) and before.name != newest.name else f"{kind}: steps {steps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--damages", type=int, default=24)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of runs, by comma")
    options = parser.parse_args()
    kinds, chance = options.kinds.split(","), random.Random(options.seed)
    if unknown := set(kinds) - KINDS.keys():
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder)
        seconds, expected = {}, {}
        for kind in dict.fromkeys([*kinds, *(["full"] if options.damages else [])]):
            begun = time.perf_counter()
            if start_run(folder, f"{kind}-undisturbed").wait():
                raise SystemExit(f"The undisturbed run of {kind} failed.")
            seconds[kind] = time.perf_counter() - begun
            expected[kind] = outcome(folder / "runs" / f"{kind}-undisturbed")

        same, seen = 0, Counter()
        for i, kind in zip(range(options.runs), cycle(kinds), strict=False):
            seen += kill_and_resume(folder, f"{kind}-{i}", seconds[kind], chance)
            same += equal(expected[kind], outcome(folder / "runs" / f"{kind}-{i}"))
            print(f"{i + 1} runs, {dict(seen)}: {same} bitwise equal", flush=True)

        stopped, good = folder / "runs" / "stopped", 0
        if options.damages:
            shutil.copytree(folder / "runs" / "full-undisturbed", stopped)
            shutil.rmtree(stopped / "final")
            assert (checkpoints_of(stopped)[-1] / OPTIMIZER).exists()
        for i in range(options.damages):
            kind = ("truncated", "flipped", "missing", "empty")[i % 4]
            answer = damage_and_resume(folder, stopped, f"damaged-{i}", kind, chance)
            good += answer == "ok"
            print(
                f"{i + 1} damages: {good} found and passed over" + ("" if answer == "ok" else f"; {answer}"), flush=True
            )
    print("\n| fault | times | what was left |\n|---|---|---|")
    print(
        f"| SIGKILL at a random moment | {seen['kills']}, every run at least once, {seen['inside a save']} in a save "
        f"| {same} of {options.runs} runs bitwise equal |"
    )
    print(
        f"| newest checkpoint damaged | {options.damages} | {good} of {options.damages} went on from the one before |"
    )
    raise SystemExit(same != options.runs or good != options.damages)


if __name__ == "__main__":
    main()
