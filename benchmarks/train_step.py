"""One training step, side by side: Vitrine against transformers.Trainer and TRL's SFTTrainer, on the same records.

    python benchmarks/train_step.py                       DistilGPT-2's real shape, full fine-tune
    python benchmarks/train_step.py --lora                rank 8, against peft on the same records
    python benchmarks/train_step.py --only ours,fair      some of the contenders
    python benchmarks/train_step.py --shape Qwen2.5-0.5B --lora

Each contender lives in a process of its own, so that its peak memory is its own. On a CPU they take turns: a round is a
few steps of each, and the ratios are taken within a round, so a machine that slows down slows all of them. On a GPU one
comes after the other, for a card may not hold them all. Weights are random (the shape is what counts), records real
LF-Amazon where the shared assets are, else the example catalogue, in the order of train.py for all.

    seed       transformers.Trainer as the seed's notebook had it: everything padded to 256, loss on every token that is
               not padding, a [PAD] token added, dropout 0.1, fused AdamW
    fair       the same Trainer made fair: padded to the longest of the batch, dropout 0, loss on the answer
    liger      fair, with Liger's kernels (pip install liger-kernel; a GPU)
    sft        trl.SFTTrainer with its defaults (padded to the longest; bf16 and gradient checkpointing are on)
    sft-plain  the same without gradient checkpointing
    packed     trl.SFTTrainer with packing=True
    unsloth    its model in trl.SFTTrainer (pip install unsloth; a GPU; not GPT-2)
    ours       train.py itself, from its first line to its last

A contender whose packages are not here gets a line that says so. Timed are the steps after the first, from the end of
that one to the end of the last; the device is waited for there and nowhere else. MFU: useful FLOPs (`needed_flops`)
against the rate of large matrix products.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ASSETS = Path(os.environ.get("VITRINE_ASSETS", ROOT.parent / "shared" / "assets"))
CONTENDERS = ("seed", "fair", "sft", "packed", "ours")
LORA_CONTENDERS = ("fair", "ours")
ON_A_GPU = ("seed", "fair", "liger", "sft", "sft-plain", "packed", "unsloth", "ours")
BATCH, MAX_LENGTH, SEED = 16, 256, 42

sys.path.insert(0, str(ROOT))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed steps a round, after one that is not timed [1]")
    parser.add_argument("--only", default="", help="contenders, separated by commas")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--shape", default="DistilGPT-2", help="of benchmarks/shapes.py, with random weights")
    parser.add_argument("--micro_batch_tokens", type=int, default=0, help="0: as train.py chooses")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="the rounds of all contenders go here too")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # with model/ and data/
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    on_gpu = pick_device(options).type == "cuda"
    default = LORA_CONTENDERS if options.lora and not on_gpu else ON_A_GPU if on_gpu else CONTENDERS
    names = options.only.split(",") if options.only else default
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), options)
        rounds = one_by_one(names, options, folder) if on_gpu else in_turns(names, options, folder)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1), encoding="utf-8")
    print(table(rounds))


def in_turns(names: list[str], options: argparse.Namespace, folder: str) -> dict[str, list[dict]]:
    workers, rounds = {name: start(name, folder) for name in names}, {name: [] for name in names}
    for number in range(options.rounds):
        for name in [name for name in names if name in workers]:
            if not one_round(name, number, workers[name], rounds[name]):
                workers.pop(name).kill()
    for worker in workers.values():
        finish(worker)
    return rounds


def one_by_one(names: list[str], options: argparse.Namespace, folder: str) -> dict[str, list[dict]]:
    rounds: dict[str, list[dict]] = {name: [] for name in names}
    for name in names:
        worker = start(name, folder)
        all(one_round(name, number, worker, rounds[name]) for number in range(options.rounds))
        finish(worker)
    return rounds


def start(name: str, folder: str) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--worker", name, "--folder", folder]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def one_round(name: str, number: int, worker: subprocess.Popen, results: list[dict]) -> bool:
    """Ask a contender for a round. A failure is one, too: the last it says."""
    try:
        worker.stdin.write("round\n")
        worker.stdin.flush()
        results.append(json.loads(worker.stdout.readline()))
    except (OSError, ValueError):
        results.append({"failed": f"ended with exit code {worker.wait()}"})
    print(f"round {number + 1} {name}: {results[-1]}", file=sys.stderr)
    return "failed" not in results[-1]


def finish(worker: subprocess.Popen) -> None:
    worker.stdin.close()
    worker.wait()


def table(rounds: dict[str, list[dict]]) -> str:
    """Medians over the rounds; `ours is` compares within each round and takes the median of the ratios."""
    lines = [
        "| | answer tokens/s | records/s | ours is | peak memory | ours takes | first loss | MFU |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = [r for r in rounds.get("ours", ()) if "failed" not in r]
    for name, results in rounds.items():
        if "failed" in results[-1]:
            lines.append(f"| {name} | {results[-1]['failed']} | | | | | | |")
            continue
        speed = [r["answer_tokens"] / r["seconds"] for r in results]
        records = [r["records"] / r["seconds"] for r in results]
        faster = memory = "-"
        if ours and name != "ours":
            ratios = [o["answer_tokens"] / o["seconds"] / s for o, s in zip(ours, speed, strict=True)]
            faster = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"
            memory = f"{max(r['peak'] for r in ours) / max(r['peak'] for r in results):.2f}x"
        mfu = statistics.median(r["flops"] / r["seconds"] / r["gemm_rate"] for r in results)
        reserved = max(r.get("reserved", 0) for r in results)
        peak = f"{max(r['peak'] for r in results) / 2**30:.2f} GB" + (f" ({reserved / 2**30:.2f})" if reserved else "")
        lines.append(
            f"| {name} | {statistics.median(speed):.0f} | {statistics.median(records):.2f} | {faster} "
            f"| {peak} | {memory} | {results[0]['loss']:.4f} | {mfu:.0%} |"
        )
    if any(r.get("reserved") for results in rounds.values() for r in results):
        lines.append("\nPeak memory: of tensors, in brackets what torch's allocator held.")
    return "\n".join(lines)


# ---- what all of them get -------------------------------------------------------------------------------------------


def write_folder(folder: Path, options: argparse.Namespace) -> None:
    """model/: the shape with random weights, and a tokenizer; data/: as many records as a round takes."""
    import torch
    from shapes import SHAPES
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = SHAPES[options.shape]()
    if config.model_type == "gpt2":
        config.activation_function = "gelu_new"  # as it is stored; train.py computes it in one kernel
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    some = real_records()
    count = BATCH * (options.steps + 1)
    for split, number in (("train", count), ("val", 1), ("test", 0)):
        lines = [json.dumps(some[i % len(some)] | {"uid": str(i)}, ensure_ascii=False) for i in range(number)]
        (folder / "data" / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def real_records() -> list[dict[str, str]]:
    """Cleaned records, real ones where they are."""
    from catalogue.clean import clean

    real = ASSETS / "products" / "lf_amazon_500.json"
    if real.exists():
        source = [(r["instruction"], r["output"]) for r in json.loads(real.read_text(encoding="utf-8"))]
    else:
        with gzip.open(ROOT / "examples" / "catalogue.json.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.startswith('{"uid"') and line.rstrip().endswith("}")]
        source = [(r["title"], r["content"]) for r in lines]
    cleaned = [{"uid": "", "title": clean(t), "content": clean(c)} for t, c in source]
    return [r for r in cleaned if len(r["content"]) >= 20 and r["title"]]


def tokenizer():
    from transformers import AutoTokenizer

    from text.bpe import train_bpe

    folder = ASSETS / "gpt2-tokenizer"
    if folder.exists():
        return AutoTokenizer.from_pretrained(folder)
    return train_bpe((r["content"] for r in real_records()), 16_000)


def steps_of_train(options: argparse.Namespace) -> list[list[dict[str, str]]]:
    """The records of each step, as train.py takes them."""
    from text.stream import RecordFile, records_of_steps

    file = RecordFile(options.folder / "data" / "train.jsonl")
    return list(records_of_steps(file, BATCH, SEED, 0, options.steps + 1))


def pick_device(options: argparse.Namespace):
    import torch

    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    return torch.device(wanted)


def gemm_rate(device) -> float:
    """FLOP/s of large matrix products in the precision of training: the floor that a step can at best stand on."""
    import torch

    from model.linear import times_transposed

    if device.type == "cuda":
        a = torch.randn(8192, 8192, device=device, dtype=torch.float16)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for number in range(60):
            if number == 10:  # until then it warms up
                begin.record()
            a @ a
        end.record()
        end.synchronize()
        return 50 * 2 * 8192**3 / (begin.elapsed_time(end) / 1000)
    a, b = torch.randn(2048, 768), torch.randn(3072, 768)

    def rate(product) -> float:
        rates = []
        for _ in range(8):
            start = time.perf_counter()
            for _ in range(5):
                product(a, b)
            rates.append(5 * 2 * 2048 * 768 * 3072 / (time.perf_counter() - start))
        return statistics.median(rates[2:])

    return max(rate(torch.nn.functional.linear), rate(times_transposed))


def needed_flops(model, rows, lora: bool) -> float:
    """FLOPs that the records of a step need: 6 a weight and token in the blocks (4 with LoRA, whose frozen weights
    have no gradient), as many in the head for the tokens that are predicted. The attention scores, 2 % here, and what
    a contender spends on padding are not counted: this is useful work."""
    from model.lora import blocks_of

    head = model.get_output_embeddings().weight.numel()
    blocks = sum(p.numel() for p in blocks_of(model).parameters() if p.ndim == 2)
    tokens = sum(len(row.ids) for row in rows)
    answers = sum(len(row.ids) - row.first_supervised for row in rows)
    return (4 if lora else 6) * (blocks * tokens + head * answers)


# ---- the contenders, each in its own process ------------------------------------------------------------------------


def work(options: argparse.Namespace) -> None:
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")  # the libraries print what they like
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    contender = ours(options) if options.worker == "ours" else trainer(options.worker, options)
    for _ in sys.stdin:
        try:
            answer = next(contender)
        except ImportError as error:
            answer = {"failed": f"not here: {error.name or error}"}
        except Exception as error:  # of a peer: a line of the table, not its end
            answer = {"failed": f"{type(error).__name__}: {str(error)[:80]}".replace("|", "/")}
        print(json.dumps(answer), file=results, flush=True)


def result(seconds: float, batches: list, loss: float, model, options) -> dict:
    """`batches`: the rows of each timed step; `seconds` all of them took."""
    import torch

    from run.device import peak_memory

    device = pick_device(options)
    entry = {
        "seconds": seconds,
        "records": sum(len(rows) for rows in batches),
        "answer_tokens": sum(len(row.ids) - row.first_supervised for rows in batches for row in rows),
        "flops": sum(needed_flops(model, rows, options.lora) for rows in batches),
        "peak": peak_memory(device),
        "loss": loss,
    }
    if device.type == "cuda":
        entry["reserved"] = torch.cuda.max_memory_reserved(device)
    return entry | {"gemm_rate": gemm_rate(device)}


def ours(options: argparse.Namespace):
    """train.py in a process of its own for each round, its log read afterwards."""
    from model.load import load_model, load_tokenizer
    from run.metrics import read_metrics
    from text.batch import Encoder
    from text.template import QA

    encoder = Encoder(load_tokenizer(options.folder / "model"), QA, MAX_LENGTH)
    batches = [encoder.rows(records) for records in steps_of_train(options)]
    answer_tokens = [sum(len(row.ids) - row.first_supervised for row in rows) for rows in batches]
    shape, number = load_model(options.folder / "model"), 0
    extra = ["--lora"] if options.lora else []
    extra += ["--micro_batch_tokens", str(options.micro_batch_tokens)] if options.micro_batch_tokens else []
    while True:
        number += 1
        command = ["--model", options.folder / "model", "--data", options.folder / "data", "--run_name", number]
        command += ["--output_dir", options.folder / "runs", "--max_steps", len(batches), "--device", options.device]
        command += ["--batch_size", BATCH, "--max_length", MAX_LENGTH, "--seed", SEED, "--logging_steps", 10**6]
        command += ["--question_share", 0]  # the same prompts as the others have
        subprocess.run([sys.executable, ROOT / "train.py", *map(str, command), *extra], check=True)
        log = read_metrics(options.folder / "runs" / str(number) / "metrics.jsonl")
        seconds, begun = 0.0, log[0]["step"]
        for entry in log[1:]:
            seconds += sum(answer_tokens[begun : entry["step"]]) / entry["answer_tokens_per_second"]
            begun = entry["step"]
        memory = {"peak": log[-1]["peak_memory_bytes"], "reserved": log[-1].get("reserved_memory_bytes", 0)}
        yield result(seconds, batches[1:], log[0]["loss"], shape, options) | memory


def with_peft(model, conv1d: bool):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", fan_in_fan_out=conv1d, task_type="CAUSAL_LM")
    )


def trainer(name: str, options: argparse.Namespace):
    """transformers.Trainer or TRL's SFTTrainer, called again for each round."""
    if name == "unsloth":
        from unsloth import FastLanguageModel  # first of all: it changes the others as it is imported
    import torch
    import transformers
    from peers import NOTEBOOK_DROPOUT, add_padding_token, collator, common_arguments, in_order, load_peer
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from text.batch import Encoder
    from text.template import QA

    if name == "liger":
        import liger_kernel  # noqa: F401  else the Trainer would say it in a sentence of its own
    transformers.utils.logging.set_verbosity_error()
    device, folder = pick_device(options), str(options.folder / "model")
    if name == "unsloth":
        model, tok = FastLanguageModel.from_pretrained(folder, max_seq_length=MAX_LENGTH, load_in_4bit=False)
        if options.lora:
            model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=16)
    else:
        model, tok = load_peer(folder, NOTEBOOK_DROPOUT if name == "seed" else 0.0)
        if options.lora:
            model = with_peft(model, conv1d=model.config.model_type == "gpt2")
    encoder, by_step = Encoder(tok, QA, MAX_LENGTH), steps_of_train(options)
    common = common_arguments(BATCH, options.steps + 1, on_gpu=device.type == "cuda")

    class Clock(TrainerCallback):
        """Seconds from the end of the first step to the end of the last."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (1, args.max_steps) and device.type == "cuda":
                torch.cuda.synchronize()
            if state.global_step == 1:
                self.start = time.perf_counter()
            self.seconds = time.perf_counter() - self.start

    losses: list[float] = []

    def recording(cls):
        class Recording(in_order(cls)):
            def training_step(self, *args, **kwargs):
                loss = super().training_step(*args, **kwargs)
                losses.append(loss)
                return loss

        return Recording

    steps = [encoder.rows(records) for records in by_step]
    rows, all_records, clock = [r for s in steps for r in s], [r for s in by_step for r in s], Clock()
    if name in ("seed", "fair", "liger"):
        pad = add_padding_token(model, tok) if name == "seed" else tok.eos_token_id
        collate = collator(pad, MAX_LENGTH if name == "seed" else None, loss_on_prompt=name == "seed")
        args = TrainingArguments(**common, remove_unused_columns=False, use_liger_kernel=name == "liger")
        it = recording(Trainer)(model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[clock])
    else:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        tok.pad_token = tok.eos_token
        data = Dataset.from_list(
            [{"prompt": QA.prompt_for(r["title"]), "completion": QA.answer_for(r["content"])} for r in all_records]
        )
        plain = {"gradient_checkpointing": False} if name == "sft-plain" else {}
        args = SFTConfig(**common, **plain, max_length=MAX_LENGTH, packing=name == "packed")
        it = recording(SFTTrainer)(model=model, args=args, train_dataset=data, processing_class=tok, callbacks=[clock])
        steps = None

    seen: list[int] = []  # answer tokens of each step, from the labels that the trainer used
    original = it.compute_loss

    def counting(model, inputs, *args, **kwargs):
        if steps is None:  # reads the device: not for those whose batches are known
            seen.append(int((inputs["labels"] != -100).sum()))
        return original(model, inputs, *args, **kwargs)

    it.compute_loss = counting
    while True:
        seen.clear()
        it.train()
        entry = result(clock.seconds, steps[1:] if steps else [], losses[0].item(), it.model, options)
        if steps is None:
            entry["answer_tokens"] = sum(seen[1:])
            mean = sum(len(r.ids) - r.first_supervised for r in rows) / len(rows)
            entry["records"] = entry["answer_tokens"] / mean
            entry["flops"] = needed_flops(it.model, rows, options.lora) * entry["records"] / len(rows)
        yield entry


if __name__ == "__main__":
    OPTIONS = parse()
    if OPTIONS.worker:
        work(OPTIONS)
    else:
        main(OPTIONS)
