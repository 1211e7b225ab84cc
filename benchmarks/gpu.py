"""What can only be seen on a GPU, in one table: the peers, the memory plan, precisions, an overflow, and small cards.

    python benchmarks/gpu.py                 about 8 minutes on one NVIDIA card
    python benchmarks/gpu.py --rehearse      the same code on the CPU with tiny shapes, without the peers

A small card is the allocator's cap on a larger one. Weights are random: only shapes matter here.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch
from shapes import TINY, build
from torch.nn.utils import clip_grad_norm_

from model.lora import Lora
from model.loss import summed_loss
from run.device import Machine, pick_machine
from run.memory import TensorAccounting, plan_memory
from text.batch import blank_batch

GB = 2**30
LORA = Lora(r=8, alpha=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("There is no NVIDIA GPU here, or this torch is a CPU build. The code itself: --rehearse")
    machine = pick_machine("cpu" if options.rehearse else "cuda")
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    print(f"{machine.name}; {versions}; {time.strftime('%Y-%m-%d')}\n")
    if not options.rehearse:
        for extra in ((), ("--lora",)):
            command = [sys.executable, str(ROOT / "benchmarks" / "train_step.py"), "--device", "cuda", "--steps", "10"]
            subprocess.run([*command, *extra], check=False)
            print(flush=True)
    print("| check | expected | seen |\n|---|---|---|")
    for check in (plan_against_measured, precisions, overflow, small_cards):
        for name, expected, seen in check(machine, options.rehearse):
            print(f"| {name} | {expected} | {seen} |", flush=True)


def step(model, optimizer, scaler, machine: Machine, micro_batches: list) -> float:
    """One optimizer step as in train.py; returns the mean loss."""
    tokens, total = sum(len(batch.targets) for batch in micro_batches), 0.0
    for batch in micro_batches:
        with machine.autocast():
            loss = summed_loss(model, batch.to(machine.device))
        scaler.scale(loss / tokens).backward()
        total += loss.item()
    scaler.unscale_(optimizer)
    clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total / tokens


def adamw(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5, fused=True)


def peak_of(machine: Machine, model, optimizer, work) -> int:
    """Bytes of tensors that lived at once during `work()`."""
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    accounting = TensorAccounting()
    accounting.count([*model.parameters(), *(v for state in optimizer.state.values() for v in state.values())])
    with accounting:
        work()
    return accounting.peak


def plan_against_measured(machine: Machine, tiny: bool):
    for lora in (False, True):
        model = build("DistilGPT-2", machine, TINY if tiny else {}, LORA if lora else None)
        optimizer, scaler = adamw(model), machine.grad_scaler()
        plan = plan_memory(model, machine)
        for records in (4, 16):
            batches = [blank_batch(records, 256)] * 2
            step(model, optimizer, scaler, machine, batches)  # makes the optimizer's state

            def work(batches=batches, model=model, optimizer=optimizer, scaler=scaler) -> None:
                step(model, optimizer, scaler, machine, batches)

            seen = peak_of(machine, model, optimizer, work)
            planned = plan.peak(256 * records, accumulating=True)
            name = f"plan, {'LoRA' if lora else 'full'}, {256 * records:,} tokens at a time"
            yield name, f"{planned / GB:.2f} GB, within 15 %", f"{seen / GB:.2f} GB ({planned / seen - 1:+.0%})"


def precisions(machine: Machine, tiny: bool):
    losses = {}
    on_cpu = machine.device.type == "cpu"
    has_bf16 = on_cpu or torch.cuda.is_bf16_supported(including_emulation=False)
    for precision in ("fp32", *(() if on_cpu else ("fp16",)), *(("bf16",) if has_bf16 else ())):
        this = pick_machine(machine.device.type, precision)
        model = build("DistilGPT-2", this, TINY if tiny else {})
        optimizer, scaler = adamw(model), this.grad_scaler()
        losses[precision] = [step(model, optimizer, scaler, this, [blank_batch(4, 128)]) for _ in range(10)]
    for precision, values in losses.items():
        apart = max(abs(a - b) / b for a, b in zip(values, losses["fp32"], strict=True))
        seen = f"{values[0]:.4f} … {values[-1]:.4f}, {apart:.2%} apart"
        yield f"10 losses in {precision}", "within 1 % of fp32", seen


def overflow(machine: Machine, tiny: bool):
    if machine.device.type == "cpu":
        yield "fp16 overflow", "skipped, scale recovers", "only on a GPU"
        return
    model = build("DistilGPT-2", machine, TINY if tiny else {})
    optimizer, scaler = adamw(model), torch.amp.GradScaler("cuda", init_scale=2.0**40)
    before, scales = model.transformer.ln_f.weight.detach().clone(), []
    for _ in range(40):
        step(model, optimizer, scaler, machine, [blank_batch(2, 64)])
        scales.append(scaler.get_scale())
        if scales[-1] == scales[-2:][0] and len(scales) > 1:
            break
    moved = not torch.equal(before, model.transformer.ln_f.weight)
    finite = all(p.isfinite().all() for p in model.parameters())
    scale = f"2^{int(scales[-1]).bit_length() - 1}"
    seen = f"{len(scales) - 1} steps skipped, scale {scale}, weights finite: {finite}, moved: {moved}"
    yield "fp16 overflow at scale 2^40", "skipped, scale recovers, weights finite", seen


def small_cards(machine: Machine, tiny: bool):
    cards = (
        ("DistilGPT-2", 3, False, False),
        ("DistilGPT-2", 6, False, False),
        ("Qwen2.5-0.5B", 6, True, False),
        ("Mistral-7B", 8, True, True),
    )
    for shape, gigabytes, lora, four_bit in cards:
        kind = "4-bit LoRA" if four_bit else "LoRA" if lora else "full fine-tune"
        try:
            yield (
                f"{shape}, {kind}, 16 x 256",
                f"inside {gigabytes} GB",
                on_card(machine, tiny, shape, gigabytes, lora, four_bit),
            )
        except torch.OutOfMemoryError:
            yield f"{shape}, {kind}, 16 x 256", f"inside {gigabytes} GB", "does not fit"
        except ImportError:
            yield f"{shape}, {kind}, 16 x 256", f"inside {gigabytes} GB", "needs pip install bitsandbytes"


def on_card(machine: Machine, tiny: bool, shape: str, gigabytes: int, lora: bool, four_bit: bool) -> str:
    on_gpu = machine.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(machine.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * GB / total))
    try:
        model = build(shape, machine, TINY if tiny else {}, LORA if lora else None, four_bit)
        if four_bit:
            model.activation_checkpointing_enable({"use_reentrant": False})
        optimizer, scaler = adamw(model), machine.grad_scaler()
        micro_batches = [blank_batch(4, 256)] * 4

        def work() -> None:
            for _ in range(2):
                step(model, optimizer, scaler, machine, micro_batches)

        return f"peak {peak_of(machine, model, optimizer, work) / GB:.2f} GB"
    finally:
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)


if __name__ == "__main__":
    main()
