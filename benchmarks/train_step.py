"""One training step, side by side: Vitrine against transformers.Trainer and TRL's SFTTrainer, on the same records.

    python benchmarks/train_step.py                     DistilGPT-2's real shape, full fine-tune
    python benchmarks/train_step.py --lora              rank 8, against peft on the same records
    python benchmarks/train_step.py --only ours,fair    some of the contenders

Each contender lives in a process of its own, so that its peak memory is its own. They take turns: a round is a few
steps of each, and the ratios are taken within a round, so a machine that slows down slows all of them. Weights are
random (the shape is what counts), records real LF-Amazon where the shared assets are, else the example catalogue.

    seed    transformers.Trainer as the seed's notebook had it: everything padded to 256, loss on every token that is
            not padding, a [PAD] token added, dropout 0.1, fused AdamW
    fair    the same Trainer made fair: padded to the longest of the batch, dropout 0, loss on the answer
    sft     trl.SFTTrainer with its defaults (padded to the longest; bf16 and gradient checkpointing are on)
    packed  trl.SFTTrainer with packing=True
    peft    only with --lora: peft's layers in our flat step and chunked loss
    ours    flat batches and the chunked loss, as train.py runs them

Every round begins with the same records. MFU: useful FLOPs (`needed_flops`) against the rate of a large matrix product,
by MKL or by oneDNN, whichever is faster here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ASSETS = Path(os.environ.get("VITRINE_ASSETS", ROOT.parent / "shared" / "assets"))
CONTENDERS = ("seed", "fair", "sft", "packed", "ours")
LORA_CONTENDERS = ("fair", "peft", "ours")
BATCH, MAX_LENGTH = 16, 256

sys.path.insert(0, str(ROOT))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed steps a round, after one that is not timed [1]")
    parser.add_argument("--only", default="", help="contenders, separated by commas")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--model", default="", help="a model folder; default: DistilGPT-2's shape, random weights")
    parser.add_argument("--micro_batch_tokens", type=int, default=0, help="0: as train.py chooses")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    names = options.only.split(",") if options.only else (LORA_CONTENDERS if options.lora else CONTENDERS)
    workers = {name: start(name) for name in names}
    rounds: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name, worker in workers.items():
            worker.stdin.write("round\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                sys.exit(f"{name} has died: see its error above.")
            rounds[name].append(json.loads(line))
            print(f"round {number + 1} {name}: {rounds[name][-1]}", file=sys.stderr)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    print(table(rounds))


def start(name: str) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--worker", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def table(rounds: dict[str, list[dict]]) -> str:
    """Medians over the rounds; `ours is` compares within each round and takes the median of the ratios."""
    lines = [
        "| | answer tokens/s | records/s | ours is | peak memory | ours takes | first loss | MFU |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = rounds.get("ours")
    for name, results in rounds.items():
        speed = [r["answer_tokens"] / r["seconds"] for r in results]
        records = [r["records"] / r["seconds"] for r in results]
        faster = memory = "-"
        if ours and name != "ours":
            ratios = [o["answer_tokens"] / o["seconds"] / s for o, s in zip(ours, speed, strict=True)]
            faster = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"
            memory = f"{max(r['peak'] for r in ours) / max(r['peak'] for r in results):.2f}x"
        mfu = statistics.median(r["flops"] / r["seconds"] / r["gemm_rate"] for r in results)
        lines.append(
            f"| {name} | {statistics.median(speed):.0f} | {statistics.median(records):.2f} | {faster} "
            f"| {max(r['peak'] for r in results) / 2**30:.2f} GB | {memory} | {results[0]['loss']:.4f} | {mfu:.0%} |"
        )
    return "\n".join(lines)


# ---- the contenders, each in its own process ------------------------------------------------------------------------


def work(options: argparse.Namespace) -> None:
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")  # the libraries print what they like
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    contender = ours(options) if options.worker in ("ours", "peft") else trainer(options.worker, options)
    for _ in sys.stdin:
        print(json.dumps(next(contender)), file=results, flush=True)


def records() -> list[dict[str, str]]:
    """Cleaned records, real ones where they are."""
    import gzip

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
    return train_bpe((r["content"] for r in records()), 16_000)


def distilgpt2(options: argparse.Namespace, dropout: float):
    """The same random weights in every process."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    from model.load import set_dropout

    torch.manual_seed(0)
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        set_dropout(model.config, dropout)
        return model
    config = GPT2Config(n_layer=6)
    set_dropout(config, dropout)
    return GPT2LMHeadModel(config)


def pick_device(options: argparse.Namespace):
    import torch

    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    return torch.device(wanted)


def gemm_rate(device) -> float:
    """FLOP/s of a large matrix product in the precision of training: the floor that a step can at best stand on."""
    import torch

    from model.linear import times_transposed

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    a, b = torch.randn(2048, 768, device=device, dtype=dtype), torch.randn(3072, 768, device=device, dtype=dtype)

    def rate(product) -> float:
        rates = []
        for _ in range(8):
            start = time.perf_counter()
            for _ in range(5):
                product(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            rates.append(5 * 2 * 2048 * 768 * 3072 / (time.perf_counter() - start))
        return statistics.median(rates[2:])

    return max(rate(torch.nn.functional.linear), rate(times_transposed))


def needed_flops(model, rows, lora: bool) -> float:
    """FLOPs that the records of a step need: 6 a weight and token in the blocks (4 with LoRA, whose frozen weights
    have no gradient), as many in the head for the tokens that are predicted. The attention scores, 2 % here, and what
    a contender spends on padding are not counted: this is useful work."""
    head = model.get_output_embeddings().weight.numel()
    blocks = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "wte" not in n and "wpe" not in n)
    tokens = sum(len(row.ids) for row in rows)
    answers = sum(len(row.ids) - row.first_supervised for row in rows)
    return (4 if lora else 6) * (blocks * tokens + head * answers)


def result(seconds: float, batches: list, loss: float, model, options) -> dict:
    """`batches`: the rows of each timed step; `seconds` all of them took."""
    from run.device import peak_memory

    device = next(model.parameters()).device
    return {
        "seconds": seconds,
        "records": sum(len(rows) for rows in batches),
        "answer_tokens": sum(len(row.ids) - row.first_supervised for rows in batches for row in rows),
        "flops": sum(needed_flops(model, rows, options.lora) for rows in batches),
        "gemm_rate": gemm_rate(device),
        "peak": peak_memory(device),
        "loss": loss,
    }


def step_records(number: int, all_records: list) -> list:
    return [all_records[(number * BATCH + i) % len(all_records)] for i in range(BATCH)]


def ours(options: argparse.Namespace):
    """train.py's loop without logging and saving; as "peft" with peft's layers in the place of ours."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    from model.attention import use_flat_attention
    from model.linear import use_onednn
    from model.lora import Lora, wrap
    from model.loss import summed_loss
    from run.device import keep_freed_memory, pick_machine
    from text.batch import Encoder, step_batches
    from text.template import QA

    machine = pick_machine(options.device)
    keep_freed_memory(machine.device)
    model = distilgpt2(options, dropout=0.0)
    for block in getattr(model.base_model, "h", ()):  # as load_model has it: the same formula in one kernel
        block.mlp.act = torch.nn.GELU(approximate="tanh")
    if options.worker == "peft":
        with_peft(model)  # puts its layers into the model
    elif options.lora:
        wrap(model, Lora(r=8, alpha=16))
    use_onednn(model)
    use_flat_attention(model)
    model.to(machine.device).train()
    encoder, all_records = Encoder(tokenizer(), QA, MAX_LENGTH), records()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01, fused=True)
    scaler = machine.grad_scaler()
    budget = options.micro_batch_tokens or (4096 if machine.device.type == "cuda" else 1024)

    def step(batch) -> float:
        total = torch.zeros((), device=machine.device)
        for micro_batch in batch.prepared:
            with machine.autocast():
                loss = summed_loss(model, micro_batch.to(machine.device))
            scaler.scale(loss / batch.supervised).backward()
            total += loss.detach()
        scaler.unscale_(optimizer)
        clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return total / batch.supervised

    first_loss = None
    rounds = [step_records(i, all_records) for i in range(options.steps + 1)]
    while True:
        batches = step_batches(rounds, encoder, budget)
        losses = [step(next(batches))]
        first_loss = first_loss if first_loss is not None else losses[0].item()
        start = time.perf_counter()
        for batch in batches:
            losses.append(step(batch))
        last = losses[-1].item()  # waits for the device
        seconds = time.perf_counter() - start
        assert last == last, "the loss is not a number"
        yield result(seconds, [encoder.rows(r) for r in rounds[1:]], first_loss, model, options)


def with_peft(model):
    from peft import LoraConfig, get_peft_model

    names = ["c_attn", "c_proj", "c_fc"]
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names, fan_in_fan_out=True))


def trainer(name: str, options: argparse.Namespace):
    """transformers.Trainer or TRL's SFTTrainer, called again for each round."""
    import torch
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from text.batch import Encoder
    from text.template import QA

    transformers.utils.logging.set_verbosity_error()
    device = pick_device(options)
    tok = tokenizer()
    encoder, all_records = Encoder(tok, QA, MAX_LENGTH), records()
    model = distilgpt2(options, dropout=0.1 if name == "seed" else 0.0)
    if options.lora:
        model = with_peft(model)
    common = {
        "output_dir": "unused",
        "per_device_train_batch_size": BATCH,
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "max_steps": options.steps + 1,
        "optim": "adamw_torch_fused",
        "fp16": device.type == "cuda",
        "use_cpu": device.type == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }

    class Clock(TrainerCallback):
        """Seconds from the end of the first step to the end of the last, and the loss of the very first."""

        def on_step_end(self, args, state, control, **kwargs):
            if device.type == "cuda":
                torch.cuda.synchronize()
            if state.global_step == 1:
                self.start = time.perf_counter()
            self.seconds = time.perf_counter() - self.start

    losses: list[float] = []

    def recording(cls):
        class Recording(cls):
            def _get_train_sampler(self, *args):
                return torch.utils.data.SequentialSampler(self.train_dataset)

            def training_step(self, *args, **kwargs):
                loss = super().training_step(*args, **kwargs)
                losses.append(loss)
                return loss

        return Recording

    rows = encoder.rows(all_records)
    if name in ("seed", "fair"):
        if name == "seed":
            tok.add_special_tokens({"pad_token": "[PAD]"})
            model.resize_token_embeddings(len(tok))

        def collate(batch):
            longest = MAX_LENGTH if name == "seed" else max(len(row.ids) for row in batch)
            pad = tok.pad_token_id if name == "seed" else tok.eos_token_id
            first = [1 if name == "seed" else row.first_supervised for row in batch]
            ids = [row.ids + [pad] * (longest - len(row.ids)) for row in batch]
            labels = [
                [-100] * f + row.ids[f:] + [-100] * (longest - len(row.ids))
                for f, row in zip(first, batch, strict=True)
            ]
            mask = [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in batch]
            return {k: torch.tensor(v) for k, v in (("input_ids", ids), ("labels", labels), ("attention_mask", mask))}

        args = TrainingArguments(**common, remove_unused_columns=False)
        clock = Clock()
        it = recording(Trainer)(model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[clock])
        steps = [rows[i * BATCH : (i + 1) * BATCH] for i in range(options.steps + 1)]
    else:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        tok.pad_token = tok.eos_token
        data = Dataset.from_list(
            [{"prompt": QA.prompt_for(r["title"]), "completion": QA.answer_for(r["content"])} for r in all_records]
        )
        args = SFTConfig(**common, max_length=MAX_LENGTH, packing=name == "packed")
        clock = Clock()
        it = recording(SFTTrainer)(model=model, args=args, train_dataset=data, processing_class=tok, callbacks=[clock])
        steps = None

    seen: list[int] = []  # answer tokens of each step, from the labels that the trainer used
    original = it.compute_loss

    def counting(model, inputs, *args, **kwargs):
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
