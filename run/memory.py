"""How much memory a step takes, said before the first one, and what is done when it was not enough.

    weights + gradients + AdamW's two moments       known from the parameters
    activations                                     measured on two small micro-batches, they grow with the tokens
    one chunk of logits                             measured there too, it grows with the rows of the chunk

What CUDA and the libraries hold is not in the plan: the free memory that it is compared with is read after they came.
All sizes are bytes. Only the activations depend on the micro-batch, so the largest one that fits can be computed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from weakref import finalize

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

T = TypeVar("T")
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
            ("  AdamW", gigabytes(self.optimizer)),
            ("  activations", f"{gigabytes(passing)}, {micro_batch_tokens:,} tokens at a time, and a chunk of logits"),
        ]

    def room(self, free: int) -> int:
        """Bytes that a step may take when `free` are free beside the weights that are there already."""
        return int(free * HEADROOM) + self.weights

    def largest_micro_batch(self, free: int, longest_record: int, at_most: int) -> int:
        """Tokens of the largest micro-batch that fits into `free` bytes beside the weights that are there already.

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


def plan_memory(model: PreTrainedModel, head: Tensor, chunk_rows: int, forward: Callable[[int], Tensor]) -> MemoryPlan:
    """`forward(tokens)` is the loss of a micro-batch of that many tokens; `head` (V, d) makes the logits of a chunk.

    `model` is in training mode: only then its dropout and its checkpointing take what they will take.
    """
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
        logits=int(much.passing + chunk_per_token * (chunk_rows - many)),
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


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def stay_on_the_card(device: torch.device) -> None:
    """Cap torch at what is free now. Without it drivers on Windows spill into RAM, at a hundredth of the speed,
    instead of reporting that memory is out."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, (free * 0.97 + held) / total), device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of the device, or of the CPU's allocator, which has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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


def smaller_micro_batch(error: RuntimeError, tokens: int, records_each: float, sharded: bool = False) -> int:
    """Half of `tokens` after an out-of-memory error; any other error is raised again.

    Raises `OutOfMemory` when the micro-batches could not be any smaller: they hold one record each. And when the model
    is `sharded`: the other ranks wait in the middle of the same micro-batch, and it cannot be begun again.
    """
    if not is_out_of_memory(error):
        raise error
    if sharded:
        raise OutOfMemory(f"Out of memory. Go on with --resume --micro_batch_tokens {tokens // 2}, or more processes.")
    if records_each == 1:
        raise OutOfMemory(f"Out of memory with one record at a time. The last checkpoint is whole. {WAYS_OUT}")
    return tokens // 2


def with_less_when_full(compute: Callable[[int], T], tokens: int, smallest: int, sharded: bool = False) -> T:
    """`compute(tokens)`, and after an out-of-memory error with half as many, down to `smallest`.

    Raises `OutOfMemory` when not even those fit, or at once if the model is `sharded`. For what has no state to take
    back: a validation.
    """
    while True:
        try:
            return compute(tokens)
        except RuntimeError as error:
            tokens = smaller_micro_batch(error, tokens, max(1.0, tokens / smallest), sharded)


def get_random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of torch on the CPU and, if it is one, on the GPU: what dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
