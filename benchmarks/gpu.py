"""What can only be seen on a GPU, part by part: one table and one JSON file.

    python benchmarks/gpu.py --first-hour            everything below but the long `steps`, in at most 9 minutes
    python benchmarks/gpu.py --parts loop,profile    some of it
    python benchmarks/gpu.py --parts steps           side by side with the peers, some minutes more
    python benchmarks/gpu.py --rehearse              the same code on the CPU with tiny shapes

    tests      pytest tests/test_gpu.py
    loop       200 steps of train.py, DistilGPT-2 and LoRA on Qwen2.5-0.5B in fp16 and bf16: skipped steps, and every
               wait for the device that is not one of the log
    profile    20 steps of train.py: the kernels that take the most time, which attention it is, the idle share
    loss       the loss by rows in chunks of 512, 1,024 and 2,048, by tiles, torch's linear_cross_entropy, Liger's
    attention  the grid beside torch's varlen_attn
    cards      train.py on cards of 6, 8 and 12 GB, with what CUDA and a desktop take there; an out-of-memory
               error in the middle of a step
    plan       what the plan says beside what the allocator saw
    resume     a run that was interrupted beside one that was not, with dropout
    steps      benchmarks/train_step.py, full and LoRA

Weights are random: only shapes matter. Every part but `tests` and `loss` runs the page itself, in a process of its own;
a part that fails is a line of the table. A small card is a limit on a larger one.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
from shapes import SHAPES, TINY
from torch.nn.attention import SDPBackend, sdpa_kernel

from run.device import peak_memory, pick_machine
from run.metrics import read_metrics

GB = 2**30
TAKEN = 0.9 * GB  # by CUDA itself, cuBLAS and the desktop, on a card that is somebody's only one
PARTS = ("tests", "loop", "profile", "loss", "attention", "cards", "plan", "resume")
Row = tuple[str, str, str]  # what was looked at, what is expected, what was seen


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-hour", action="store_true", help="all parts but steps")
    parser.add_argument("--parts", default="", help="some of them, separated by commas")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="[gpu.json]")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("There is no NVIDIA GPU here, or this torch is a CPU build. The code itself: --rehearse")
    machine = pick_machine("cpu" if options.rehearse else "cuda")
    about = f"{machine.name}; torch {torch.__version__}, CUDA {torch.version.cuda}; {time.strftime('%Y-%m-%d')}"
    parts = options.parts.split(",") if options.parts else PARTS if options.first_hour or options.rehearse else ()
    if not parts:
        sys.exit("Which parts? --first-hour, or some of: " + ", ".join((*PARTS, "steps")))
    if unknown := [part for part in parts if part not in (*PARTS, "steps")]:
        sys.exit(f"{', '.join(unknown)} is no part. There are: {', '.join((*PARTS, 'steps'))}")
    rows: list[Row] = []
    print(f"{about}\n\n| check | expected | seen |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Page(Path(folder), options.rehearse)
        for part in parts:
            begun = time.perf_counter()
            for row in failing_is_a_row(part, globals()[f"part_{part}"](page)):
                rows.append(row)
                print(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |", flush=True)
            rows.append((f"part {part}", "", f"{time.perf_counter() - begun:.0f} s"))
            print(f"| {' | '.join(rows[-1])} |", flush=True)
            options.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1), encoding="utf-8")
    print(f"\nSaved {options.out}.")


def failing_is_a_row(part: str, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except Exception as error:  # the other parts go on; this one says what it said
        yield f"part {part}", "", f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


# -- train.py, watched ------------------------------------------------------------------------------------------------


class Page:
    """Runs train.py on a shape, in a process of its own; `rehearsed` on the CPU with a tiny one."""

    def __init__(self, folder: Path, rehearsed: bool):
        self.folder, self.rehearsed, self.runs = folder, rehearsed, 0
        self.device = torch.device("cpu" if rehearsed else "cuda")

    def model(self, shape: str) -> Path:
        """A folder with that shape in random weights, made once."""
        from train_step import tokenizer
        from transformers import AutoModelForCausalLM

        folder = self.folder / shape
        if not folder.exists():
            config, tok = SHAPES[shape](), tokenizer()
            changes = TINY | {"vocab_size": len(tok)} if self.rehearsed else {}
            for key in changes.keys() & {*config.to_dict(), *config.attribute_map}:
                setattr(config, key, changes[key])
            if self.rehearsed and getattr(config, "layer_types", None):
                config.layer_types = config.layer_types[: config.num_hidden_layers]
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tok.save_pretrained(folder)
        return folder

    def data(self) -> Path:
        from train_step import real_records

        folder = self.folder / "data"
        if not folder.exists():
            folder.mkdir()
            for split, some in (("train", real_records()), ("val", real_records()[:20]), ("test", [])):
                lines = [json.dumps(r | {"uid": str(i)}, ensure_ascii=False) for i, r in enumerate(some)]
                (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder

    def train(self, shape: str, steps: int, *options: str, **watch) -> dict:
        """What `watched_run` saw; "code", the exit code; "said", the end of its output; "log", its metrics."""
        self.runs += 1
        name = watch.pop("name", str(self.runs))
        seen = self.folder / f"seen-{self.runs}.json"
        command = ["--resume", str(self.folder / "runs" / name)] if watch.pop("resume", False) else [
            "--model", str(self.model(shape)), "--data", str(self.data()), "--run_name", name,
            "--output_dir", str(self.folder / "runs"), "--device", self.device.type, "--logging_steps", "20",
            "--eval_steps", "100000", "--save_steps", "100000", "--max_steps", str(steps),
        ]  # fmt: skip
        job = {"command": [*command, *options], "seen": str(seen), **watch}
        done = subprocess.run(
            [sys.executable, __file__, "--worker", json.dumps(job)], capture_output=True, text=True, encoding="utf-8"
        )
        result = {"code": done.returncode, "said": done.stdout + done.stderr}
        with suppress(OSError):
            result |= json.loads(seen.read_text(encoding="utf-8"))
        log = self.folder / "runs" / name / "metrics.jsonl"
        return result | {"log": read_metrics(log) if log.exists() else []}

    def loss_of(self, result: dict) -> str:
        if not result["log"]:
            return f"exit code {result['code']}: {' '.join(result['said'].split())[-200:]}"
        first, last = result["log"][0], result["log"][-1]
        speed = f"{last['answer_tokens_per_second']:.0f} answer tokens/s"
        return f"loss {first['loss']:.3f} -> {last['loss']:.3f}, {speed}, peak {last['peak_memory_bytes'] / GB:.2f} GB"


def watched_run(job: dict) -> int:
    """train.py's `main` with eyes on it; what they see goes to a JSON file. `card_gb`: a card of that size.
    `syncs`: count the waits for the device. `profile`: of 20 steps. `stop_at`: as Ctrl-C after that step.
    `cold`: without the warm-up. `turing`: attention by the kernels that those cards have."""
    import signal
    import warnings

    import train
    from run.config import parse_train
    from run.log import MetricLogger
    from run.micro_batch import MicroBatcher

    seen, on_gpu = {"syncs": {}}, torch.cuda.is_available() and "cpu" not in job["command"]
    if on_gpu and job.get("card_gb"):
        total = torch.cuda.get_device_properties(0).total_memory

        def free_on_the_card(device=None) -> tuple[int, int]:
            return max(0, int(job["card_gb"] * GB - TAKEN) - torch.cuda.memory_reserved(device)), total

        torch.cuda.mem_get_info = free_on_the_card
    progress_bar = MetricLogger.progress_bar

    def watched(self, loader):
        for number, batch in enumerate(progress_bar(self, loader)):
            if number == 20 and job.get("syncs") and on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            if number == 20 and job.get("profile"):
                seen["profile"] = profiler().__enter__()
            if number == 40 and job.get("profile"):
                seen["profile"] = read_profile(seen["profile"])
            if number == job.get("stop_at"):
                signal.raise_signal(signal.SIGINT)
            yield batch
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
            seen["scale_and_skips"] = [self.state.overflows, self.state.skipped_steps]
            seen["reserved"] = torch.cuda.max_memory_reserved()

    def count(message, category, filename, lineno, file=None, line=None) -> None:
        if "synchronizing" in str(message):
            place = f"{Path(filename).name}:{lineno}"
            seen["syncs"][place] = seen["syncs"].get(place, 0) + 1

    MetricLogger.progress_bar = watched
    if job.get("cold"):  # so that memory runs out in a step and not before the first
        MicroBatcher.warm_up = lambda *args: None
    turing = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if job.get("turing") else nullcontext()
    if job.get("syncs"):
        warnings.simplefilter("always")
        warnings.showwarning = count
    try:
        with turing:
            return train.main(parse_train(job["command"]))
    finally:
        seen["peak"] = peak_memory(torch.device("cuda" if on_gpu else "cpu"))
        Path(job["seen"]).write_text(json.dumps(seen, default=str), encoding="utf-8")


def profiler():
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    watching = torch.profiler.profile(activities=activities)
    watching.begun = time.perf_counter()
    return watching


def read_profile(watching) -> dict:
    """The kernels by the time they took, in ms a step, and the share of the time in which none ran."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - watching.begun
    watching.__exit__(None, None, None)
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = [event for event in watching.key_averages() if event.device_type == kind]
    times = {e.key: (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 20 / 1000 for e in events}
    top = dict(sorted(times.items(), key=lambda item: -item[1])[:20])
    return {"ms_a_step": seconds / 20 * 1000, "busy_ms_a_step": sum(times.values()), "top": top}


# -- the parts --------------------------------------------------------------------------------------------------------


def part_tests(page: Page) -> Iterator[Row]:
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "test_gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT)
    yield "tests/test_gpu.py", "all pass", done.stdout.strip().splitlines()[-1]


def part_loop(page: Page) -> Iterator[Row]:
    lora = ("--lora", "--learning_rate", "1e-4")
    kinds = [("DistilGPT-2", "fp16", ()), ("Qwen2.5-0.5B", "fp16", lora), ("Qwen2.5-0.5B", "bf16", lora)]
    for shape, precision, options in kinds:
        precision = precision if page.device.type == "cuda" else "fp32"
        steps = 200 if page.device.type == "cuda" else 22
        seen = page.train(shape, steps, "--precision", precision, *options, syncs=True)
        name = f"{steps} steps, {shape}{' LoRA' * bool(options)}, {precision}"
        yield name, "learns", page.loss_of(seen)
        overflows = [entry["overflows"] for entry in seen["log"]]
        late = overflows[-1] - next((e["overflows"] for e in seen["log"] if e["step"] >= 20), 0) if overflows else "?"
        skipped = seen["log"][-1]["skipped_steps"] if seen["log"] else "?"
        yield f"{name}: steps skipped", "none after the first 20", f"{late} overflows after them, {skipped} bad numbers"
        yield f"{name}: waits", "of the log and of the guard's event alone", json.dumps(seen.get("syncs"))
        yield f"{name}: reserved", "near the peak", f"{seen.get('reserved', 0) / GB:.2f} GB"


def part_profile(page: Page) -> Iterator[Row]:
    for shape, options in (("DistilGPT-2", ()), ("Qwen2.5-0.5B", ("--lora",))):
        run = page.train(shape, 45, *options, profile=True)
        profile = run.get("profile")
        if not isinstance(profile, dict):
            yield f"profile of {shape}", "", f"none was made: exit code {run['code']}, {run['said'][-300:]}"
            continue
        busy, all_ms = profile["busy_ms_a_step"], profile["ms_a_step"]
        seen = f"{all_ms:.1f} ms a step, kernels {busy:.1f} ms: idle {1 - busy / all_ms:.0%}"
        yield f"20 steps of {shape}{' LoRA' * bool(options)}", "idle under 10 %", seen
        for kernel, milliseconds in profile["top"].items():
            yield "  kernel", "", f"{milliseconds:.2f} ms  {kernel[:100]}"
        attention = [key for key in profile["top"] if re.search("fmha|flash|attention|cudnn", key, re.IGNORECASE)]
        yield f"attention of {shape}", "fmha_cutlass on Turing, flash from Ampere on", ", ".join(attention)[:200]


def timed(work, device: torch.device, repeat: int) -> tuple[float, float]:
    """Milliseconds of one `work()`, the median of `repeat`, and the GB that it took at most."""
    work()
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    for _ in range(repeat):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    taken = (torch.cuda.max_memory_allocated() - held) / GB if device.type == "cuda" else 0.0
    return sorted(times)[len(times) // 2] * 1000, taken


def part_loss(page: Page) -> Iterator[Row]:
    from model.cross_entropy import linear_cross_entropy

    rows, width, vocabulary = (64, 32, 500) if page.rehearsed else (1946, 768, 50257)
    dtype, repeat = (torch.bfloat16, 2) if page.rehearsed else (torch.float16, 20)
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=page.device, requires_grad=True)
    weight = torch.nn.Parameter(0.02 * torch.randn(vocabulary, width, device=page.device))
    targets = torch.randint(0, vocabulary, (rows,), device=page.device)

    def by_torch(chunked: bool):
        from torch.nn import functional as F

        if chunked:
            in_chunks = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=min(1024, rows))
            half = hidden.to(dtype), weight.to(dtype)
            return F.linear_cross_entropy(*half, targets, reduction="sum", options=in_chunks)
        return F.cross_entropy(F.linear(hidden.to(dtype), weight.to(dtype)).float(), targets, reduction="sum")

    def liger():
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(hidden.to(dtype), weight.to(dtype), targets, reduction="sum")

    variants = {
        f"by rows, {chunk:,} at a time": lambda chunk=chunk: linear_cross_entropy(
            hidden, weight, targets, chunk, device_type="cuda"
        )
        for chunk in (512, 1024, 2048)
    }
    variants |= {
        "by tiles": lambda: linear_cross_entropy(hidden, weight, targets, device_type="cpu"),
        "torch, all the logits": lambda: by_torch(False),
        "torch's linear_cross_entropy": lambda: by_torch(True),
        "Liger": liger,
    }
    exact = None
    for name, loss_of in variants.items():

        def step(loss_of=loss_of):
            hidden.grad = weight.grad = None
            with torch.autocast(page.device.type, dtype=dtype):
                loss = loss_of()
            loss.backward()

        try:
            milliseconds, taken = timed(step, page.device, repeat)
        except (ImportError, RuntimeError, AttributeError, TypeError) as error:
            yield f"loss {name}", "", f"not here: {' '.join(str(error).split())[:120]}"
            continue
        exact = weight.grad.clone() if exact is None else exact
        apart = ((weight.grad - exact).norm() / exact.norm()).item()
        yield (
            f"loss {name}",
            "1,024 rows the quickest",
            f"{milliseconds:.2f} ms, {taken:.2f} GB, {apart:.1e} apart",
        )


def part_attention(page: Page) -> Iterator[Row]:
    from train_step import real_records
    from transformers import AutoTokenizer

    from model.attention import Segments, flat_attention
    from text.batch import Encoder, flatten
    from text.template import QA

    encoder = Encoder(AutoTokenizer.from_pretrained(page.model("DistilGPT-2")), QA, 256)
    batch = flatten(encoder.rows(real_records()[:16])).to(page.device)
    segments = Segments(batch.slot, len(batch.lengths), max(batch.lengths))
    module, tokens, dtype = torch.nn.Module(), len(batch.ids), torch.bfloat16 if page.rehearsed else torch.float16
    q, k, v = (torch.randn(1, 12, tokens, 64, device=page.device, dtype=dtype, requires_grad=True) for _ in range(3))

    def on_grid():
        flat_attention(module, q, k, v, None, segments)[0].sum().backward()

    yield "attention on the grid, 16 records, forward and backward", "", f"{timed(on_grid, page.device, 20)[0]:.2f} ms"
    try:
        from torch.nn.attention.varlen import varlen_attn

        ends = torch.tensor([0, *batch.lengths], device=page.device, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        longest = max(batch.lengths)

        def flat():
            rows = (x[0].transpose(0, 1) for x in (q, k, v))
            varlen_attn(*rows, ends, ends, longest, longest, window_size=(-1, 0)).sum().backward()

        yield "torch's varlen_attn", "if quicker on sm80: take it", f"{timed(flat, page.device, 20)[0]:.2f} ms"
    except (ImportError, RuntimeError, TypeError) as error:
        yield "torch's varlen_attn", "if quicker on sm80: take it", f"not here: {' '.join(str(error).split())[:120]}"


def part_cards(page: Page) -> Iterator[Row]:
    kinds = [
        ("DistilGPT-2", 3, ()), ("DistilGPT-2", 6, ()), ("Qwen2.5-0.5B", 6, ("--lora",)),
        ("TinyLlama-1.1B", 8, ("--lora", "--load_in_4bit")), ("Qwen2.5-0.5B", 12, ("--lora",)),
    ]  # fmt: skip
    for shape, gigabytes, options in kinds[: 2 if page.rehearsed else None]:
        steps, turing = 3 if page.rehearsed else 40, gigabytes == 6  # an RTX 2060
        seen = page.train(shape, steps, *options, card_gb=gigabytes, turing=turing)
        inside = f"inside {gigabytes - TAKEN / GB:.1f} GB"
        reserved = f", reserved {seen.get('reserved', 0) / GB:.2f} GB"
        yield f"{shape} {' '.join(options)} on a card of {gigabytes} GB", inside, page.loss_of(seen) + reserved
    full = page.train("DistilGPT-2", 6, "--micro_batch_tokens", "60000", "--batch_size", "400", card_gb=4, cold=True)
    halved = full["said"].count("Out of memory: from here on")
    yield (
        "a step of 400 records on a card of 4 GB, all at once",
        "out of memory, halved, exit 0",
        (f"halved {halved} times, exit code {full['code']}, {page.loss_of(full)}"),
    )


def part_plan(page: Page) -> Iterator[Row]:
    for shape, options in (("DistilGPT-2", ()), ("DistilGPT-2", ("--lora",)), ("Qwen2.5-0.5B", ("--lora",))):
        seen = page.train(shape, 12, *options)
        planned = re.search(r"memory +([\d.]+) GB at most", (seen["said"]))
        peak = f"{seen.get('peak', 0) / GB:.2f} GB, reserved {seen.get('reserved', 0) / GB:.2f} GB"
        yield f"plan of {shape} {' '.join(options)}", f"{planned[1] if planned else '?'} GB, within 15 %", peak


def part_resume(page: Page) -> Iterator[Row]:
    options = ("--dropout", "0.1", "--batch_size", "8")
    page.train("DistilGPT-2", 30, *options, name="whole")
    page.train("DistilGPT-2", 30, *options, name="parts", stop_at=12)
    page.train("DistilGPT-2", 30, name="parts", resume=True)
    whole, parts = (read_metrics(page.folder / "runs" / name / "metrics.jsonl")[-1] for name in ("whole", "parts"))
    same = whole["loss"] == parts["loss"] and whole["grad_norm"] == parts["grad_norm"]
    seen = f"{'equal' if same else 'not equal'}: loss {whole['loss']!r} and {parts['loss']!r}"
    yield "30 steps, and 12 and 18 of them, dropout 0.1", "equal to the last bit, or to the sixth digit", seen


def part_steps(page: Page) -> Iterator[Row]:
    for extra in ([], ["--lora"], ["--lora", "--shape", "Qwen2.5-0.5B"]):
        command = [sys.executable, str(ROOT / "benchmarks" / "train_step.py"), "--device", page.device.type]
        command += ["--steps", "30", "--rounds", "2", *extra]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        print(done.stdout or done.stderr[-2000:], flush=True)
        for line in done.stdout.splitlines()[2:]:
            yield f"train_step.py {' '.join(extra)}", "at least 3x the first", line.strip("| ").replace("|", ";")


if __name__ == "__main__":
    OPTIONS = parse()
    if OPTIONS.worker:
        sys.exit(watched_run(json.loads(OPTIONS.worker)))
    main(OPTIONS)
