"""What a training on the CPU holds in RAM, step by step: does the process grow?

    python benchmarks/resident.py                              60 steps of DistilGPT-2's shape, five minutes
    LD_PRELOAD=... MALLOC_CONF=... python benchmarks/resident.py     with another allocator, as docs/FAULTS.md has it

It starts `python train.py` on weights of that shape made at random, with a line of the log for each step, and reads
the process from outside whenever such a line has come. The allocator is the one that the environment names. GPT-2's
tokenizer is taken from the shared assets (VITRINE_ASSETS, else ../shared/assets).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from quality import ASSETS, ROOT

WARM_UP = 10  # steps, after which the process should stay as large as it is
SHOWN = (1, 2, 4, 8, 10, 20, 40, 60, 100, 200)


def main(steps: int, data: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "shape")
        command = [sys.executable, ROOT / "train.py", "--model", folder / "shape", "--output_dir", folder]
        command += ["--run_name", "run", "--max_steps", steps, "--logging_steps", 1, "--device", "cpu"]
        command += ["--data", data.resolve()] if data else []
        resident, logged = watch([str(part) for part in command], folder / "run/metrics.jsonl")
    settled = [count for step, count in resident.items() if step >= WARM_UP]
    print("resident MB after step:", ", ".join(f"{s} {resident[s] / 1e6:,.0f}" for s in SHOWN if s in resident))
    print(f"from step {WARM_UP} to {max(resident)}: {max(settled) / min(settled) - 1:.1%} between least and most")
    print(f"seconds a step: {sum(entry['seconds'] for entry in logged[1:]) / len(logged[1:]):.2f}")
    print(f"the log's last line: peak {logged[-1]['peak_memory_bytes'] / 1e6:,.0f} MB")


def make_model(folder: Path) -> None:
    """DistilGPT-2's shape with weights made at random, beside GPT-2's tokenizer."""
    from shapes import SHAPES
    from transformers import GPT2LMHeadModel

    GPT2LMHeadModel(SHAPES["DistilGPT-2"]()).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((ASSETS / "gpt2-tokenizer" / name).read_bytes())


def watch(command: list[str], metrics: Path) -> tuple[dict[int, int], list[dict]]:
    """Run it -> bytes resident when the line of each step was seen, and those lines."""
    training = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    process, resident, logged = psutil.Process(training.pid), {}, []
    while training.poll() is None:
        time.sleep(0.05)
        logged = read(metrics)
        if logged and logged[-1]["step"] not in resident and process.is_running():
            resident[logged[-1]["step"]] = process.memory_info().rss
    if training.returncode:
        sys.exit(training.returncode)
    return resident, logged


def read(metrics: Path) -> list[dict]:
    """The whole lines that are there."""
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.exists() else []
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--data", type=Path, help="a prepared folder; without it what train.py takes by itself")
    options = parser.parse_args()
    if options.steps < WARM_UP:
        parser.error(f"--steps is {WARM_UP} at least.")
    if not (ASSETS / "gpt2-tokenizer").is_dir():
        parser.error(f"{ASSETS / 'gpt2-tokenizer'} is not here; VITRINE_ASSETS names the folder of the assets.")
    main(options.steps, options.data)
