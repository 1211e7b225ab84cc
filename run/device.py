"""The machine: which device, which precision, how much memory."""

import ctypes
import os
import platform
import shutil
import sys
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch


class EnvironmentFault(RuntimeError):
    """This machine, as it is installed, cannot do what was asked."""

    exit_code = 3


@dataclass(frozen=True)
class Machine:
    device: torch.device
    precision: str  # fp32, fp16 or bf16
    name: str  # for the screen
    hint: str = ""  # one sentence, where something is probably not as the owner wants it

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]

    def autocast(self) -> AbstractContextManager:
        """Mixed precision over fp32 master weights; in fp32 a context that does nothing."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def on_host(self) -> "Machine":
        """For what is computed before a model is moved to its devices: the CPU, with numbers of as many bytes."""
        precision = "bf16" if self.precision == "fp16" and self.device.type != "cpu" else self.precision
        return replace(self, device=torch.device("cpu"), precision=precision)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Keeps small fp16 gradients from vanishing; in every other precision it passes numbers through."""
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        # It makes its scale at its first use. A rank without a record in the first step would have none to unscale by.
        scaler.scale(torch.zeros((), device=self.device))
        return scaler


def pick_machine(device: str = "auto", precision: str = "auto", stored: str = "") -> Machine:
    """`stored`: what the weights of the model are saved in, as "bfloat16", where that is known.

    On a GPU auto is fp16, which each has and which is the more exact, and bf16 for weights that were trained in it if
    the GPU computes in it natively: such a model may have numbers beyond fp16's 65,504. Raises `EnvironmentFault` when
    the wanted device or precision is not to be had.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise EnvironmentFault(f"--device cuda: {why_no_cuda() or 'no NVIDIA GPU was found.'}")
    if device == "cpu" or not has_cuda:
        if precision == "fp16":
            raise EnvironmentFault("fp16 needs an NVIDIA GPU. Leave --precision at auto, or choose fp32.")
        hint = "" if device == "cpu" else why_no_cuda()
        precision = "fp32" if precision == "auto" else precision
        return Machine(torch.device("cpu"), precision, f"CPU, {torch.get_num_threads()} threads", hint)

    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise EnvironmentFault("This GPU has no bf16. Leave --precision at auto: fp16 is as good here.")
    if precision == "auto":
        precision = "bf16" if stored == "bfloat16" and has_bf16 else "fp16"
    # cuDNN's attention, first in the order of newer cards, makes a plan for each new shape, which is each step here.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Long sums (50,257 terms in the head's) stay in fp32; by default cuBLAS may add up parts of them in half precision.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    index = torch.cuda.current_device()  # under torchrun each process has chosen its own
    properties = torch.cuda.get_device_properties(index)
    name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"
    return Machine(torch.device("cuda", index), precision, name)


def keep_freed_memory(device: torch.device) -> None:
    """On Linux and the CPU: let the C library keep large blocks that were freed, for the next step to take again.

    Each step takes and frees the same blocks. Given back, they come again as fresh pages, one fault for each 4 KB.
    """
    libc = _glibc(device)
    # Older ones refuse more than 32 MB, and must not be told half of it: either call ends their own adaptation.
    if libc and (libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory(device: torch.device) -> None:
    """The end of `keep_freed_memory`: blocks of 8 MB and more come from the system and go back to it. The process then
    grows less, at the cost of a sixth of its speed. For when what was kept lies in too many pieces. Another allocator
    needs neither (docs/FAULTS.md)."""
    if libc := _glibc(device):
        libc.mallopt(M_MMAP_THRESHOLD, 2**23)
        libc.malloc_trim(0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _glibc(device: torch.device) -> ctypes.CDLL | None:
    """The C library, where the memory of `device` is its business."""
    is_here = device.type == "cpu" and sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if is_here else None


def why_no_cuda() -> str:
    """One sentence when an NVIDIA driver is there but this torch cannot use it; else nothing."""
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""  # no driver, or somebody hides the GPU on purpose
    if torch.version.cuda is None:
        where = "on Windows pip's default torch is CPU-only" if sys.platform == "win32" else "this torch is CPU-only"
        return (
            f"An NVIDIA driver is here, but {where}: install the CUDA build with the command from "
            "pytorch.org/get-started/locally, then start again."
        )
    return (
        f"An NVIDIA driver is here, but this torch, made for CUDA {torch.version.cuda}, cannot use it: most often the "
        "driver is too old. Update it, or install the build for an older CUDA from pytorch.org/get-started/locally."
    )


def held_memory(device: torch.device) -> int:
    """Bytes, now: on CUDA those of tensors, else what this process holds in RAM, as `top` and task managers show it."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def begin_peak(device: torch.device) -> None:
    """From here on `peak_memory` is that of what follows. macOS and Windows cannot: there it is the process's life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a /proc that cannot be written: the whole life here too
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc: resets the high-water mark


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that tensors took at once, else the most that this process held in RAM.

    Since `begin_peak`, where that can be.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "linux":  # not ru_maxrss: a process inherits that of the one that started it
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
