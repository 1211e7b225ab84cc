"""What is learned from equal records, and in equal minutes: the notebook that this began as, made fair, and train.py.

    python benchmarks/quality.py                            about a quarter of an hour on one idle core
    python benchmarks/quality.py --catalogues gift --steps 20 --minutes 0.2
    python benchmarks/quality.py --lr 1e-3 --seeds 3

    notebook   transformers.Trainer as the notebook had it: everything padded to 256 tokens, records of more dropped,
               loss on the prompt too, no end token, dropout 0.1, a learning rate of 5e-5
    fair       the same Trainer made fair: padded to the longest of the batch, longer records cut at a sentence's end,
               loss on the answer and an end token, dropout 0, and the rate, warm-up and order of ours. A step is the
               computation of `ours` (tests/test_parity.py); ours asks for a fifth of the records by a question
    ours       python train.py --model FOLDER --data FOLDER --lr 2e-3
    muon       the same with --optim muon, which the Trainer does not have

All begin with the same weights: no DistilGPT-2 can be had without a download, so a GPT-2 of pocket's shape is trained
by train.py on the English half of the example catalogue, as plain text: it knows no contender's prompt. Its vocabulary
is made of the training texts of all catalogues, as a large model's is of all kinds of text. Where real weights lie in
a folder, `--model FOLDER` takes those. They are trained on

    lf-amazon  500 real records, and
    gift       1,547 real ones of gift cards, where the shared assets are (VITRINE_ASSETS, else ../shared/assets);
    example    the Portuguese half of the example catalogue, where the facts of the products are known.

Bits per character are those of the answer's own characters, given its prompt: the notebook's model, which has never
seen an end token, loses nothing by it. A step's time is what it takes of the processor (`time.process_time`), on one
thread, measured in turns: other work beside it slows that too, by a half and more, but all alike. Equal minutes are as
many steps of each as fit by its own step; what comes before the first step and after the last is not counted, for
anybody.
"""

import argparse
import json
import math
import os
import random
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
ASSETS = Path(os.environ.get("VITRINE_ASSETS", ROOT.parent / "shared" / "assets"))
REAL = {"lf-amazon": "lf_amazon_500.json", "gift": "meta_Gift_Cards.json.gz"}
CATALOGUES, PEERS = (*REAL, "example"), ("notebook", "fair")
OURS = {"ours": [], "muon": ["--optim", "muon"]}  # and what is said to train.py besides
BATCH, MAX_LENGTH, TEST_SHARE = 16, 256, 0.2
TIMED_STEPS = 8  # of a round
PLAIN = 'prompt = "{title}"\nanswer = "\\n{content}"\n'  # the base's texts
WARMUP, NOTEBOOK_RATE = 0.03, 5e-5
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

sys.path.insert(0, str(ROOT))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24, help="for equal records, of 16 each [24]")
    parser.add_argument("--minutes", type=float, help="for equal minutes; default: what the notebook's --steps take")
    parser.add_argument("--rounds", type=int, default=1, help="in which all are timed in turns; medians count [1]")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak, of all but the notebook's recipe [2e-3]")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each: other orders, other dropout [1]")
    parser.add_argument("--held_out", type=int, default=60, help="records that are measured on, at most [60]")
    parser.add_argument("--model", type=Path, help="the weights that all begin with, a folder; default: trained here")
    parser.add_argument("--base_steps", type=int, default=300, help="of their training here [300]")
    parser.add_argument("--catalogues", default=",".join(CATALOGUES), help="separated by commas")
    parser.add_argument("--only", default=",".join((*PEERS, *OURS)), help="contenders, separated by commas")
    parser.add_argument("--json", type=Path, help="all results go here too")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # a training, as `trained` describes it
    options = parser.parse_args()
    for named, known in ((options.catalogues, CATALOGUES), (options.only, (*PEERS, *OURS))):
        if unknown := set(named.split(",")) - set(known):
            parser.error(f"{unknown.pop()} is none of {', '.join(known)}.")
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"--model: {options.model} is no folder with weights.")
    if min(options.rounds, options.seeds, options.held_out, options.base_steps) < 1 or options.steps < 2:
        parser.error("--steps is 2 at least; --rounds, --seeds, --held_out and --base_steps are 1.")
    return options


def main(options: argparse.Namespace) -> None:
    names, results = options.only.split(","), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        catalogues = write_catalogues(folder / "data", options.catalogues.split(","), options.held_out)
        base = (options.model or make_base(folder, catalogues, options.base_steps)).resolve()
        for catalogue in catalogues:
            data, of_it = folder / "data" / catalogue, []
            for seed in range(options.seeds):
                begun = {"catalogue": catalogue, "data": str(data), "base": str(base), "lr": options.lr, "seed": seed}
                of_it += contest(begun, names, options.steps, options.minutes, options.rounds)
            print(f"\n{table(of_it, about(base, data))}\n", flush=True)
            results += of_it
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def contest(begun: dict, names: list[str], steps: int, minutes: float | None, rounds: int) -> list[dict]:
    """Each contender for `steps`, then each for as many steps as `minutes` allow it; without them, as many as fit into
    what the first contender takes for `steps`."""
    specs = [begun | {"contender": name, "options": OURS.get(name, [])} for name in names]
    times = [[in_a_process(spec | {"steps": TIMED_STEPS, "timed": True}) for spec in specs] for _ in range(rounds)]
    medians = [statistics.median(one["step_seconds"] for one in of_it) for of_it in zip(*times, strict=True)]
    seconds = minutes * 60 if minutes else steps * medians[0]
    results = []
    for spec, step_seconds in zip(specs, medians, strict=True):
        fitting, measured = steps_within(seconds, step_seconds), {"step_seconds": step_seconds}
        by_records = trained(spec | {"steps": steps}) | measured
        by_minutes = by_records if fitting == steps else trained(spec | {"steps": fitting}) | measured
        results += [by_records | {"equal": "records"}, by_minutes | {"equal": "minutes", "minutes": seconds / 60}]
    return results


def steps_within(seconds: float, step_seconds: float) -> int:
    """How many steps fit, to the nearest; two at least, for a single one has no measured time."""
    return max(2, round(seconds / step_seconds))


def trained(spec: dict) -> dict:
    """`spec` trained and measured, which is said: `spec` with the results."""
    result = in_a_process(spec)
    name, steps, bits = spec["contender"], spec["steps"], bits_per_character(result)
    print(f"{spec['catalogue']}, {name}: {steps} steps, {bits:.3f} bits per character", file=sys.stderr, flush=True)
    return result


def in_a_process(spec: dict) -> dict:
    """What `work` makes of `spec` in a process of its own, on one thread: `spec` with the results."""
    with tempfile.TemporaryDirectory() as temporary:
        path, log = Path(temporary) / "spec.json", Path(temporary) / "log"
        path.write_text(json.dumps(spec | {"out": temporary}), encoding="utf-8")
        with log.open("w", encoding="utf-8") as file:
            command = [sys.executable, str(Path(__file__)), "--worker", str(path)]
            code = subprocess.run(command, env=ONE_THREAD, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            sys.exit(f"{spec['contender']} ended with exit code {code}:\n{log.read_text(encoding='utf-8')[-2000:]}")
        return spec | json.loads((Path(temporary) / "result.json").read_text(encoding="utf-8"))


# ---- the table ------------------------------------------------------------------------------------------------------


def table(results: list[dict], about: dict) -> str:
    """Of one catalogue, `about` which some figures stand below; means over the seeds."""
    columns = ("steps", "s/step", "bits per character", "stops", "chrF", "repeated 4-grams", "facts")
    lines = [f"| {results[0]['catalogue']} | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    sentences = []
    for equal in ("records", "minutes"):
        some = [r for r in results if r["equal"] == equal]
        how = f"equal minutes: {mean_of(some, 'minutes'):.2f}" if equal == "minutes" else "equal records"
        lines.append(f"| **{how}** |" + " |" * len(columns))
        for name in dict.fromkeys(r["contender"] for r in some):
            of_it = [r for r in some if r["contender"] == name]
            cells = [f"{mean_of(of_it, 'steps'):.0f}", f"{mean_of(of_it, 'step_seconds'):.2f}"]
            cells += [f"{statistics.mean(map(bits_per_character, of_it)):.3f}", f"{mean_of(of_it, 'stopped'):.0%}"]
            cells += [f"{mean_of(of_it, 'chrf'):.1f}", f"{mean_of(of_it, 'repetition_rate'):.1%}"]
            cells += [f"{mean_of(of_it, 'fact_rate'):.1%}" if "fact_rate" in of_it[0] else ""]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        sentences += [f"At {how.partition(':')[0]} {sentence}" for sentence in compared(some)]
    sentences += [
        f"{about['records']} held-out records; before training {about['before']:.3f} bits per character.",
        f"Of the catalogue's own answers {about['stopped']:.0%} end within {MAX_LENGTH} tokens; "
        f"repeated 4-grams {about['repetition_rate']:.1%}.",
    ]
    return "\n".join([*lines, "", *sentences])


def mean_of(results: list[dict], key: str) -> float:
    return statistics.mean(result[key] for result in results)


def bits_per_character(result: dict) -> float:
    return sum(result["bits"]) / sum(result["characters"])


def compared(results: list[dict]) -> list[str]:
    """What ours has of the others' bits per character, and the interval of 95 %, over the records of all seeds."""
    bits = {r["contender"]: [] for r in results}
    for result in results:
        bits[result["contender"]] += result["bits"]
    pairs = [(ours, other) for ours in OURS for other in PEERS if ours in bits and other in bits]
    return [
        f"{ours} has {sum(bits[ours]) / sum(bits[other]):.3f} ({low:.3f} to {high:.3f}) of the bits of {other}."
        for ours, other in pairs
        for low, high in [ratio_interval(bits[ours], bits[other])]
    ]


def ratio_interval(ours: list[float], others: list[float]) -> tuple[float, float]:
    """The interval of 95 % of sum(ours) / sum(others): the records are drawn again, both numbers of each together."""
    draw, pairs, ratios = random.Random(0), list(zip(ours, others, strict=True)), []
    for _ in range(1000):
        drawn = draw.choices(pairs, k=len(pairs))
        ratios.append(sum(a for a, _ in drawn) / sum(b for _, b in drawn))
    ratios.sort()
    return ratios[25], ratios[974]


# ---- what all of them get -------------------------------------------------------------------------------------------


def write_catalogues(folder: Path, names: list[str], held_out: int) -> list[str]:
    """A data folder for each of `names` that is to be had, and `english` for the base. Returns those names.

    Splits are data_prep.py's: by title, near duplicates out, so what is held out was seen by nobody. A training split
    is a multiple of a step's records, so that each step of all contenders has the same ones.
    """
    from catalogue.judge import Options
    from catalogue.prepare import prepare
    from run.data import EXAMPLE_CATALOGUE, EXAMPLE_OPTIONS
    from text.question import language_of

    def splits(source: Path, options: Options) -> dict[str, list[dict]]:
        prepare([source], folder / "raw", options)
        files = {split: (folder / "raw" / f"{split}.jsonl").read_text(encoding="utf-8") for split in ("train", "test")}
        return {split: [json.loads(line) for line in text.split("\n") if line] for split, text in files.items()}

    def write(name: str, records: dict[str, list[dict]]) -> None:
        train = records["train"][: len(records["train"]) // BATCH * BATCH]
        (folder / name).mkdir(parents=True)
        for split, some in (("train", train), ("val", []), ("test", records["test"][:held_out])):
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in some)
            (folder / name / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        print(f"{name}: {len(train)} records to train on", file=sys.stderr)

    example = splits(EXAMPLE_CATALOGUE, EXAMPLE_OPTIONS)
    for name, language in (("english", "en"), ("example", "pt")):
        of_it = {
            split: [r for r in some if language_of(f"{r['title']} {r['content']}") == language]
            for split, some in example.items()
        }
        write(name, of_it)
    there = [name for name in names if name == "example"]
    for name in [name for name in names if name in REAL]:
        source = ASSETS / "products" / REAL[name]
        if not source.exists():
            print(f"{name}: {source} is not here; VITRINE_ASSETS names the folder.", file=sys.stderr)
            continue
        write(name, splits(source, Options(test_share=TEST_SHARE, val_share=0, catalogue=False)))
        there.append(name)
    return [name for name in names if name in there]


def make_base(folder: Path, catalogues: list[str], steps: int) -> Path:
    """The weights that all begin with: `first` is random, `runs/base/final` is trained on English as plain text."""
    from model.load import POCKET_VOCABULARY, pocket_model, save_model
    from text.bpe import train_bpe
    from text.stream import RecordFile
    from text.template import choose_template

    template = folder / "plain.toml"
    template.write_text(PLAIN, encoding="utf-8")
    plain = choose_template(str(template))
    files = [RecordFile(folder / "data" / name / "train.jsonl") for name in ("english", *catalogues)]
    texts = (plain.text_of(file[i]) for file in files for i in range(len(file)))
    tokenizer = train_bpe(texts, POCKET_VOCABULARY)
    model = pocket_model(tokenizer, MAX_LENGTH, seed=42)
    save_model(model, tokenizer, folder / "first")
    command = ["--model", folder / "first", "--data", folder / "data" / "english", "--template", template]
    command += ["--loss_on", "all", "--question_share", 0, "--optim", "muon", "--lr", 4e-3, "--max_steps", steps]
    command += ["--output_dir", folder / "runs", "--run_name", "base", "--device", "cpu"]
    train = [sys.executable, str(ROOT / "train.py")]
    subprocess.run([*train, *map(str, command)], check=True, env=ONE_THREAD, stdout=sys.stderr)
    base = folder / "runs" / "base" / "final"
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["activation_function"] = "gelu_new"  # as GPT-2's are stored; train.py computes it in one kernel
    (base / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return base


# ---- one training, in its own process -------------------------------------------------------------------------------


def work(path: Path) -> None:
    from text.template import QA

    spec = json.loads(path.read_text(encoding="utf-8"))
    out, base, data = (Path(spec[name]) for name in ("out", "base", "data"))
    is_ours, clock = spec["contender"] in OURS, Clock()
    final = (by_train if is_ours else by_trainer)(spec, base, data, out)
    result = {} if spec.get("timed") else measured(final, data, QA.stop if is_ours else ())
    result["step_seconds"] = clock.step_seconds(spec["steps"])
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


class Clock:
    """The processor's time after each step of whatever optimizer there is in this process."""

    def __init__(self):
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        self.times: list[float] = []
        self._within = 0  # steps that have begun: Muon's step takes AdamW's, and the hooks are called for both
        register_optimizer_step_pre_hook(self._begins)
        register_optimizer_step_post_hook(self._ends)

    def _begins(self, *_) -> None:
        self._within += 1

    def _ends(self, *_) -> None:
        self._within -= 1
        if not self._within:
            self.times.append(time.process_time())

    def step_seconds(self, steps: int) -> float:
        """Mean of the last `steps` but the first of them."""
        times = self.times[-steps:]
        return (times[-1] - times[0]) / (len(times) - 1)


def by_train(spec: dict, base: Path, data: Path, out: Path) -> Path:
    """train.py itself, from its first line to its last."""
    command = ["--model", base, "--data", data, "--output_dir", out, "--run_name", "run", "--device", "cpu"]
    command += ["--lr", spec["lr"], "--max_steps", spec["steps"], "--seed", spec["seed"], *spec["options"]]
    sys.argv = ["train.py", *map(str, command)]
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    return out / "run" / "final"


def by_trainer(spec: dict, base: Path, data: Path, out: Path) -> Path:
    """transformers.Trainer: `notebook` or `fair`."""
    from peers import NOTEBOOK_DROPOUT, add_padding_token, collator, common_arguments, in_order, load_peer
    from transformers import Trainer, TrainingArguments

    from text.stream import RecordFile

    notebook, count = spec["contender"] == "notebook", spec["steps"] * BATCH
    model, tokenizer = load_peer(base, NOTEBOOK_DROPOUT if notebook else 0.0)
    rows = (notebook_rows if notebook else fair_rows)(tokenizer, RecordFile(data / "train.jsonl"), spec["seed"], count)
    pad = add_padding_token(model, tokenizer) if notebook else tokenizer.eos_token_id
    recipe = {"learning_rate": NOTEBOOK_RATE} if notebook else {"learning_rate": spec["lr"], "warmup_steps": WARMUP}
    arguments = TrainingArguments(
        **common_arguments(BATCH, spec["steps"], on_gpu=False) | recipe | {"seed": spec["seed"]},
        remove_unused_columns=False,
    )
    collate = collator(pad, MAX_LENGTH if notebook else None, loss_on_prompt=notebook)
    trainer = in_order(Trainer)(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    trainer.save_model(str(out / "final"))
    tokenizer.save_pretrained(out / "final")
    return out / "final"


def fair_rows(tokenizer, file, seed: int, count: int) -> list:
    """The records of `count` / 16 steps of train.py, in its order, as it encodes them."""
    from text.batch import Encoder
    from text.stream import records_of_steps
    from text.template import QA

    encoder = Encoder(tokenizer, QA, MAX_LENGTH)
    return [row for step in records_of_steps(file, BATCH, seed, 0, count // BATCH) for row in encoder.rows(step)]


def notebook_rows(tokenizer, file, seed: int, count: int) -> list:
    """As many rows in the same order, without end tokens; records of more than 256 tokens are passed over."""
    from text.batch import Encoder
    from text.stream import records_of_steps
    from text.template import QA

    # With room for one more token; a row that was cut does not end with the end token.
    encoder, rows, epoch = Encoder(tokenizer, QA, MAX_LENGTH + 1), [], len(file) // BATCH
    for number, step in enumerate(records_of_steps(file, BATCH, seed, 0, sys.maxsize), start=1):
        rows += [replace(r, ids=r.ids[:-1]) for r in encoder.rows(step) if r.ids[-1] == encoder.end_token]
        if len(rows) >= count:
            return rows[:count]
        if number == epoch and not rows:
            raise SystemExit("No record has 256 tokens or less.")


# ---- what was learned -----------------------------------------------------------------------------------------------


def measured(weights: Path, data: Path, stop: tuple[str, ...]) -> dict:
    """The held-out answers of a model: what its own code would write, and how likely the catalogue's are to it."""
    from sacrebleu import corpus_chrf

    from model.sample import Sampling, generate
    from run.loading import load
    from text.answer import decode, stop_rule
    from text.metrics import fact_rates, load_facts, repetition_rate
    from text.template import QA

    model, encoder = load(weights, QA, MAX_LENGTH)
    records = held_out(data, encoder)
    bits, characters = answer_bits(model, encoder, records)
    prompts = encoder.prompts([QA.asked(record) for record in records])
    sampling = Sampling(max_new_tokens=MAX_LENGTH, greedy=True)  # an answer ends where the context does
    answers = generate(model, prompts, encoder.end_token, sampling, stop_rule=stop_rule(encoder.tokenizer, stop))
    texts = [decode(encoder.tokenizer, answer.ids, stop) for answer in answers]
    return {
        "bits": bits,
        "characters": characters,
        "stopped": sum(answer.stopped for answer in answers) / len(answers),
        "chrf": corpus_chrf(texts, [[record["content"] for record in records]]).score,
        "repetition_rate": repetition_rate(texts, 4),
        "answers": texts,
    } | fact_rates(records, texts, load_facts(ROOT / "examples" / "facts.json.gz"), ())


def held_out(data: Path, encoder) -> list[dict]:
    """The records of the test split; not those whose prompt leaves no room for an answer."""
    from text.stream import RecordFile

    file = RecordFile(data / "test.jsonl")
    records = [file[i] for i in range(len(file))]
    return [record for record, row in zip(records, encoder.rows(records), strict=True) if row.characters]


def answer_bits(model, encoder, records: list[dict]) -> tuple[list[float], list[int]]:
    """-log2 p of each record's answer, without its end token, given its prompt; and its characters."""
    import torch

    from model.attention import use_flat_attention
    from model.loss import summed_loss
    from text.batch import flatten

    use_flat_attention(model)
    rows = [without_end(row, encoder.end_token) for row in encoder.rows(records)]
    with torch.no_grad():
        return [float(summed_loss(model, flatten([row]))) / math.log(2) for row in rows], [r.characters for r in rows]


def without_end(row, end_token: int):
    """A row without its end token; one that was cut has none."""
    return replace(row, ids=row.ids[:-1]) if row.ids[-1] == end_token else row


def about(base: Path, data: Path) -> dict:
    """Of a catalogue: how likely its held-out answers are to the weights that all begin with, how many of them end
    within the context, and what they repeat."""
    from run.loading import load
    from text.metrics import repetition_rate
    from text.template import QA

    model, encoder = load(base, QA, MAX_LENGTH)
    records = held_out(data, encoder)
    bits, characters = answer_bits(model, encoder, records)
    return {
        "records": len(records),
        "before": sum(bits) / sum(characters),
        "stopped": sum(row.ids[-1] == encoder.end_token for row in encoder.rows(records)) / len(records),
        "repetition_rate": repetition_rate([record["content"] for record in records], 4),
    }


if __name__ == "__main__":
    OPTIONS = parse()
    if OPTIONS.worker:
        work(OPTIONS.worker)
    else:
        main(OPTIONS)
