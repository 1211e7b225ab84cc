"""How much memory a step takes, said before the first one.

    weights + gradients + the optimizer's moments   known from the parameters
    activations                                     measured on two small micro-batches, they grow with the tokens
    one chunk of logits                             measured there too, it grows with the rows of the chunk

What CUDA and the libraries hold is not in the plan: the free memory that it is compared with is read after they came.
All sizes are bytes. Only the activations depend on the micro-batch, so one that fits is found before the first step.
"""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from weakref import finalize

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from model.cross_entropy import CHUNK_ROWS
from model.half import computable_on
from model.loss import summed_loss
from run.device import Machine
from text.batch import blank_batch

HEADROOM = 0.92  # of the free memory that a plan may fill: allocators round up and leave gaps
PROBE_TOKENS = (32, 96)


class OutOfMemory(RuntimeError):
    """Not even one record at a time fits."""

    exit_code = 4


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes; the last two for each token of a micro-batch."""

    weights: int
    gradients: int
    optimizer: int
    logits: int  # a chunk of them, and what else the loss has at once
    embedding_gradient: int  # dense, beside the gradient of the head that it is added to
    kept: int  # by any forward pass: half-precision copies of the weights, the head's gradient
    activations_per_token: float  # kept by a forward pass for its backward
    backward_per_token: float  # taken by the backward of one layer, while the activations are still there

    def peak(self, micro_batch_tokens: int, accumulating: bool) -> int:
        """Of a step, when the backward of its last micro-batch begins or, if that is more, when it ends.

        `accumulating`: the step has several micro-batches, so the gradients of the earlier ones are there too.
        """
        passing = max(self.logits, self.backward_per_token * micro_batch_tokens)
        beginning = self.kept + self.activations_per_token * micro_batch_tokens + passing
        ending = self.gradients + self.embedding_gradient
        return int(self.weights + self.optimizer + max(beginning + self.gradients * accumulating, ending))

    def rows(self, micro_batch_tokens: int, step_tokens: int, free: int) -> list[tuple[str, str]]:
        """The plan for the screen; the parts add up to the first row."""
        accumulating = micro_batch_tokens < step_tokens
        peak = self.peak(micro_batch_tokens, accumulating)
        passing = peak - self.weights - self.optimizer - self.gradients
        return [
            ("memory", f"{gigabytes(peak)} at most; {gigabytes(self.room(free))} can be used"),
            ("  weights", gigabytes(self.weights)),
            ("  gradients", gigabytes(self.gradients)),
            ("  optimizer", gigabytes(self.optimizer)),
            ("  activations", f"{gigabytes(passing)}, {micro_batch_tokens:,} tokens at a time, and a chunk of logits"),
        ]

    def adds(self, micro_batch_tokens: int, step_tokens: int) -> int:
        """Bytes that training takes at most beside the weights, which are there before it."""
        return self.peak(micro_batch_tokens, micro_batch_tokens < step_tokens) - self.weights

    def process_row(self, held: int, micro_batch_tokens: int, step_tokens: int) -> tuple[str, str]:
        """For a CPU: what the system shows before training, `held` bytes, the weights among them; and what comes."""
        adds = gigabytes(self.adds(micro_batch_tokens, step_tokens))
        return "process", f"{gigabytes(held)} before training, which adds {adds} of tensors at most"

    def room(self, free: int) -> int:
        """Bytes that a step may take when `free` are free beside the weights that are there already."""
        return int(free * HEADROOM) + self.weights

    def largest_micro_batch(self, free: int, longest_record: int, at_most: int) -> int:
        """`longest_record` tokens, doubled while they fit into `free` bytes beside the weights that are there already.

        Raises `OutOfMemory`, naming the cheapest ways out, when one record of `longest_record` tokens is too much.
        """
        room = self.room(free)
        if self.peak(longest_record, accumulating=True) > room:
            raise OutOfMemory(
                f"A step takes {self.peak(longest_record, True) / 2**30:.1f} GB with a single record of "
                f"{longest_record} tokens at a time, and {room / 2**30:.1f} GB can be used. {WAYS_OUT}"
            )
        fitting = longest_record
        while fitting < at_most and self.peak(2 * fitting, accumulating=True) <= room:
            fitting *= 2
        return min(fitting, at_most)


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.2f} GB"


WAYS_OUT = "The cheapest ways out, in this order: close other programs, --lora, --load_in_4bit, a shorter --max_length."


def plan_memory(model: PreTrainedModel, machine: Machine) -> MemoryPlan:
    """What a step of `model`, which is in training mode and takes flat batches, will take on `machine`.

    In training mode because only then dropout and checkpointing take what they will take. Draws random numbers. A model
    that is still on the host is measured there, with the layout of the loss and with numbers of the size that it will
    have on the machine.
    """
    here = machine if machine.device.type == model.device.type else machine.on_host()
    with computable_on(here.device, model):
        return _measured(model, here, machine.device.type)


def _measured(model: PreTrainedModel, here: Machine, device_type: str) -> MemoryPlan:
    def forward(tokens: int) -> Tensor:
        with here.autocast():
            return summed_loss(model, blank_batch(2, tokens // 2).to(here.device), device_type=device_type)

    head = model.get_output_embeddings().weight
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    few, many = PROBE_TOKENS
    little, much = seen_in_forward(model, few, forward), seen_in_forward(model, many, forward)
    per_token, again = (much.total - little.total) / (many - few), 0.0
    widest = max(much.kept - little.kept)
    if model.is_activation_checkpointing:  # then each block is computed again for its backward, and kept meanwhile
        model.activation_checkpointing_disable()
        all_little, all_much = seen_in_forward(model, few, forward), seen_in_forward(model, many, forward)
        model.activation_checkpointing_enable({"use_reentrant": False})
        widest = max(all_much.kept - all_little.kept)
        again = ((all_much.total - all_little.total) / (many - few) - per_token) / model.config.num_hidden_layers
    chunk_per_token = (much.passing - little.passing) / (many - few)
    return MemoryPlan(
        weights=sum(bytes_of(p) for p in parameters),
        gradients=4 * trainable,
        optimizer=8 * trainable,
        logits=int(much.passing + chunk_per_token * (CHUNK_ROWS[device_type] - many)),
        embedding_gradient=4 * head.numel() if head.requires_grad else 0,
        kept=int(little.total - per_token * few),
        activations_per_token=per_token,
        # The widest layer's output and its input have a gradient at the same time.
        backward_per_token=2 * widest / many + again,
    )


def bytes_of(weight: Tensor) -> int:
    """Its own, and for 4-bit weights those of the scales of their blocks and of the scales of those."""
    scales, count = getattr(weight, "quant_state", None), weight.nbytes
    while scales is not None:
        count, scales = count + scales.absmax.nbytes, scales.state2
    return count


@dataclass(frozen=True)
class Forward:
    """What one forward pass takes, in bytes."""

    kept: Counter[int]  # the sizes of what is kept for its backward: each storage once, the weights themselves not
    passing: int  # the most that lived at once, beside what is there at the end: the loss and its logits

    @property
    def total(self) -> int:
        return sum(self.kept.elements())


def seen_in_forward(model: PreTrainedModel, tokens: int, forward: Callable[[int], Tensor]) -> Forward:
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # its address is not given to another while it is alive
        return tensor

    accounting = TensorAccounting()
    with accounting, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward(tokens)  # alive until the accounting is read
        passing = accounting.peak - accounting.now
    del loss
    return Forward(Counter(kept.values()), passing)


def load_kernels(model: PreTrainedModel, machine: Machine) -> None:
    """A small forward, backward and step. CUDA loads each kernel at its first use, into memory that the allocator knows
    nothing of; after this, free memory is what it will be. Draws random numbers."""
    with machine.autocast():
        loss = summed_loss(model, blank_batch(2, max(PROBE_TOKENS) // 2).to(machine.device))
    loss.backward()
    model.zero_grad(set_to_none=True)
    single = torch.nn.Parameter(torch.zeros(1, device=machine.device))
    single.grad = torch.zeros_like(single)
    torch.optim.AdamW([single], fused=True).step()


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take. On CUDA the blocks that torch holds for nothing are given back first:
    the driver counts them as taken."""
    if device.type == "cuda":
        gc.collect()  # 4-bit weights refer to their layer and it to them
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def stay_on_the_card(device: torch.device) -> None:
    """Cap torch at what is free now. Without it drivers on Windows spill into RAM, at a hundredth of the speed,
    instead of reporting that memory is out."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (free * 0.97 + held) / total), device)


class TensorAccounting(TorchDispatchMode):
    """Counts the bytes of all tensors made inside `with`, and the most that lived at once: `peak`.

    What a CPU has instead of `torch.cuda.max_memory_allocated`. Scratch space inside a kernel is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def count(self, tensors) -> None:
        """Tensors that existed before."""
        for tensor in tensors:
            self._count(tensor.untyped_storage())

    def _count(self, storage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
