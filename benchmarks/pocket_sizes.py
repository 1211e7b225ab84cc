"""Which size of pocket learns most in equal minutes from 17,000 records, some of them real.

    python benchmarks/pocket_sizes.py                                 an hour of one core
    python benchmarks/pocket_sizes.py --old ../before                 and pocket as it was: a checkout of 55240bc
    python benchmarks/pocket_sizes.py --only "small 4" --only "medium 4 --lr 2e-3"

    old      four layers of 192, AdamW at 2e-3, each word of the prompt a token of its own
    small    python train.py --model pocket
    medium   the same with four layers of 320
    large    the same with six layers of 448 and a vocabulary of twice the size

The real records are LF-Amazon's and those of gift cards, where the shared assets are (VITRINE_ASSETS, else
../shared/assets): 2,047, of which less than half have a description. The others are made as the example catalogue is,
with another seed. A contender's minutes are the processor's (`time.process_time`), on one thread: as many steps as fit
by its own step, which is measured before, in turns. What comes before the first step and after the last is not counted.

Nats are for each character of the held-out answers, without their end token: a token of a larger vocabulary says more.
Of fewer records the answers are those of generate.py too, the best of eight tries.
"""

import argparse
import json
import math
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from quality import ASSETS, ONE_THREAD, REAL, ROOT, Clock, answer_bits, held_out

PRODUCTS, OTHER_SEED = 16_550, 7  # of the generator: with the real ones about 17,000 records are left
MAX_LENGTH, SEED, TIMED_STEPS = 256, 42, 16
SHAPES = {"medium": (4, 320, 10, 4096), "large": (6, 448, 14, 8192)}  # layers, width, heads, vocabulary
OLD = ("old 1", "old 4")
TODAY = ("small 1", "small 4", "medium 4", "small 12", "medium 12", "large 12")
ASKED, TRIED = 300, 40  # held-out records of a kind, at most; those that are tried eight times
COLUMNS = ("nats a character", "repeated 4-grams", "stops", "facts", "repeated 4-grams, best of 8", "facts, best of 8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, metavar="FOLDER", help="a checkout of pocket as it was")
    parser.add_argument("--only", action="append", metavar="NAME MINUTES [OPTIONS]", help="these, and so trained")
    parser.add_argument("--rounds", type=int, default=2, help="in which steps are timed in turns; medians count [2]")
    parser.add_argument("--folder", type=Path, help="data and runs stay there; data that are there are taken")
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # a training, as `clocked` has it
    options = parser.parse_args()
    names = [line.split()[0] for line in options.only or ()]
    if unknown := set(names) - {"small", *SHAPES, *(["old"] if options.old else [])}:
        parser.error(f"{unknown.pop()} is no size of pocket; old needs --old.")
    return options


def main(options: argparse.Namespace) -> None:
    contests = [line.split() for line in options.only or (*(OLD if options.old else ()), *TODAY)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        if not (folder / "data").is_dir():
            make_data(folder)
        commands = {}
        for name, _, *how in contests:
            commands[name, *how] = [options.old if name == "old" else ROOT, *start(name, folder), *how]
        times = {key: [] for key in commands}
        for _ in range(options.rounds):
            for key, command in commands.items():
                with tempfile.TemporaryDirectory() as runs:
                    times[key].append(trained(command, folder, Path(runs), "timed", TIMED_STEPS))
        print(f"| | minutes | steps | of held-out records | {' | '.join(COLUMNS)} |\n|---|---:|---:|---|", end="")
        print("---:|" * len(COLUMNS))
        for name, minutes, *how in contests:
            key, run = (name, *how), "-".join([name, minutes, *how])
            steps = round(60 * float(minutes) / statistics.median(times[key]))
            took = steps * trained(commands[key], folder, folder / "runs", run, steps) / 60
            for kind, cells in measured(folder / "runs" / run, folder).items():
                print(f"| {' '.join(key)} | {took:.1f} | {steps:,} | {kind} | {' | '.join(cells)} |", flush=True)


# ---- data and first weights -----------------------------------------------------------------------------------------


def make_data(folder: Path) -> None:
    real = [ASSETS / "products" / name for name in REAL.values()]
    generator = ("--products", PRODUCTS, "--seed", OTHER_SEED, "--output_dir", folder)
    run("examples/make_catalogue.py", *generator)
    splits = ("--attributes", "auto", "--val_share", 0.02, "--test_share", 0.1)
    run("data_prep.py", *real, folder / "catalogue.json.gz", *splits, "--output_dir", folder / "data")


def start(name: str, folder: Path) -> list:
    """What train.py is told to begin with, so that only the shape is another than pocket's."""
    if name not in SHAPES:
        return ["--model", "pocket", *(["--optim", "adamw"] if name == "old" else [])]
    import torch
    from transformers import GPT2LMHeadModel

    from model.load import pocket_model, save_model
    from text.bpe import train_bpe
    from text.stream import RecordFile
    from text.template import QA

    layers, width, heads, vocabulary = SHAPES[name]
    tokenizer = train_bpe(map(QA.text_of, RecordFile(folder / "data" / "train.jsonl")), vocabulary, QA.phrases)
    config = pocket_model(tokenizer, MAX_LENGTH, SEED).config
    config.update({"n_layer": layers, "n_embd": width, "n_head": heads})
    torch.manual_seed(SEED)
    save_model(GPT2LMHeadModel(config), tokenizer, folder / name)
    return ["--model", folder / name, "--optim", "muon", "--lr", "3e-3", "--context_share", 0.1]


# ---- training -------------------------------------------------------------------------------------------------------


def trained(command: list, folder: Path, runs: Path, name: str, steps: int) -> float:
    """A run of train.py in a process of its own. Returns the processor's seconds for a step of it."""
    root, *how = command
    never = ("--eval_steps", 10**6, "--save_steps", 10**6, "--max_eval_samples", 100)
    how += ["--data", folder / "data", "--output_dir", runs, "--run_name", name, "--device", "cpu"]
    with tempfile.TemporaryDirectory() as temporary:
        seconds = Path(temporary) / "seconds"
        run(Path(__file__), "--worker", seconds, root, *how, "--max_steps", steps, *never)
        return float(seconds.read_text(encoding="utf-8"))


def clocked(seconds: str, root: str, *command: str) -> None:
    """The train.py of the checkout `root`; into the file `seconds` goes what the processor took for a step."""
    clock, steps = Clock(), int(command[command.index("--max_steps") + 1])
    sys.path[:] = [root, *(path for path in sys.path if path != str(ROOT))]
    sys.argv = ["train.py", *command]
    try:
        runpy.run_path(str(Path(root) / "train.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    Path(seconds).write_text(str(clock.step_seconds(steps)), encoding="utf-8")


def run(script: str | Path, *args) -> None:
    command = [sys.executable, ROOT / script, *map(str, args)]
    subprocess.run(command, check=True, env=ONE_THREAD, stdout=subprocess.DEVNULL)


# ---- what was learned -----------------------------------------------------------------------------------------------


def measured(run: Path, folder: Path) -> dict[str, list[str]]:
    """The cells of COLUMNS, of the real and of the generated records that are held out."""
    import torch

    from catalogue.claims import Claims
    from catalogue.index import Catalogue
    from model.sample import Sampling
    from run.candidates import Prompt, Writer
    from run.loading import load
    from text.metrics import fact_rates, load_facts, repetition_rate
    from text.stream import given
    from text.template import load_template

    torch.set_num_threads(1)
    facts, claims = load_facts(folder / "facts.json.gz"), Claims(Catalogue(folder / "data"))
    template, cells = load_template(run / "final"), {}
    model, encoder = load(run / "final", template, MAX_LENGTH)
    writers = (
        (ASKED, Writer(model, encoder, Sampling(greedy=True), None)),
        (TRIED, Writer(model, encoder, Sampling(temperature=1.0, no_repeat_ngram_size=4), claims, 8)),
    )
    records = held_out(folder / "data", encoder)
    kinds = {
        "real": [r for r in records if r["uid"] not in facts][:ASKED],
        "generated": [r for r in records if r["uid"] in facts][:ASKED],
    }
    answers, texts = {}, {}
    for kind, of_it in kinds.items():
        prompts = encoder.prompts([template.asked(record) for record in of_it])
        asked = [Prompt(ids, [given(r)], i) for i, (ids, r) in enumerate(zip(prompts, of_it, strict=True))]
        for most, writer in writers:
            answers[kind, most] = list(writer.write(asked[:most]))
            texts[kind, most] = [answer.text for answer in answers[kind, most]]
    for kind, of_it in kinds.items():
        bits, characters = answer_bits(model, encoder, of_it)
        stops = statistics.mean(answer.stopped for answer in answers[kind, ASKED])
        cells[kind] = [f"{sum(bits) * math.log(2) / sum(characters):.4f}"]
        for most in (ASKED, TRIED):
            rates = fact_rates(of_it[:most], texts[kind, most], facts, ())
            cells[kind] += [f"{repetition_rate(texts[kind, most]):.1%}", *([f"{stops:.0%}"] if most == ASKED else [])]
            cells[kind].append(f"{rates['fact_rate']:.1%}" if rates else "")
    some = {kind: list(zip(of_it, texts[kind, TRIED], strict=False))[:5] for kind, of_it in kinds.items()}
    (folder / f"{run.name}.json").write_text(json.dumps(some, indent=1, ensure_ascii=False), encoding="utf-8")
    return cells


if __name__ == "__main__":
    OPTIONS = parse()
    if OPTIONS.worker:
        clocked(*OPTIONS.worker)
    else:
        main(OPTIONS)
