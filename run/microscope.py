"""Pictures of optimizer steps from outside: torch's own hooks see what passes, and nothing of a step is done here.

A hook that only looks changes no number, so the steps are to the last bit those of a run without it.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model.lora import LoraLinear, blocks_of, linear_layers, lora_layers
from model.loss import head_of
from run.device import Machine
from text.batch import FlatBatch, Row, StepBatch

FORWARD, LOSS, BACKWARD = "forward, through the blocks", "head and loss, with their gradient", "backward, and clipping"
PIECES = 8192  # of the vocabulary at once
UPDATE, AROUND = "the optimizer's update", "moving the batch, and what looks after the loop"


@dataclass
class Forward:
    """One micro-batch on its way through the model."""

    ids: Tensor  # (T,) as the model got them
    hidden: Tensor  # (T, d) the last hidden states
    gradient: Tensor | None = None  # (T, d) of the loss by them, as it came back; in fp16 times the loss scale
    kept: dict[int, int] = field(default_factory=dict)  # bytes that are kept for the backward, by address
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of what the modules give, by their names


@dataclass
class AdamW:
    """One number of the weights on its way through AdamW: before the update, and after it."""

    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    t: int  # updates, this one included
    w: float
    g: float  # clipped
    m: float
    v: float
    w_after: float = 0.0
    m_after: float = 0.0
    v_after: float = 0.0


@dataclass
class Matrix:
    """One matrix on its way through Muon: before the update, and after it."""

    lr: float
    weight_decay: float
    w: Tensor
    g: Tensor  # clipped
    momentum: Tensor
    w_after: Tensor | None = None


@dataclass
class Picture:
    """One optimizer step."""

    number: int
    batch: StepBatch
    micro_batches: list[FlatBatch]
    row: Row  # the record that is looked at
    micro_batch: int  # where it stands: in which micro-batch,
    start: int  # and from which of its tokens on
    learning_rate: float = 0.0
    forwards: list[Forward] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    scale: float = 1.0  # of the loss, in fp16
    logits: Tensor | None = None  # (V,) at the place that predicts the record's first supervised token
    d_hidden: Tensor | None = None  # (d,) what (p - onehot) / S is for the hidden state of that place
    norms: dict[str, float] = field(default_factory=dict)  # of the clipped gradients, by layer
    kinds: dict[str, float] = field(default_factory=dict)  # the same by the last word of the weights' names
    gradient_bytes: int = 0
    state_bytes: int = 0
    adamw: AdamW | None = None
    matrix: Matrix | None = None
    lora: tuple[Tensor, Tensor, Tensor] | None = None  # x (in,), y and s B A x (out,) of one token in that layer
    strays: list[str] = field(default_factory=list)  # frozen weights that have a gradient: there should be none
    skipped: bool = False

    @property
    def place(self) -> int:
        """In its micro-batch, the one that predicts the record's first supervised token."""
        return self.start + max(self.row.first_supervised, 1) - 1

    @property
    def target(self) -> int:
        return self.row.ids[max(self.row.first_supervised, 1)]


class Microscope:
    """Takes a `Picture` of what happens inside `with looking_at(picture)`."""

    def __init__(
        self,
        machine: Machine,
        model: PreTrainedModel,
        optimizer: torch.optim.AdamW,
        scaler: torch.amp.GradScaler,
        token: int,
    ):
        """`token`: whose row of the head has the number that is followed, if the head is AdamW's."""
        self.machine, self.model, self.optimizer, self.scaler = machine, model, optimizer, scaler
        self.names = {p: name for name, p in model.named_parameters()}
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        mine = getattr(optimizer, "hidden", set())  # Muon's
        others, head = [p for p in trained if p not in mine], model.get_output_embeddings().weight
        self.matrix = next((p for p in reversed(trained) if p in mine), None)
        is_head = any(p is head for p in others)
        self.weight = head if is_head else others[-1] if others else None
        self.place: tuple[int, ...] = (token, 0) if is_head else (0,) * self.weight.ndim if others else ()
        self.lora_name, self.lora = next(reversed(lora_layers(model).items()), ("", None))
        self.picture: Picture | None = None
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._doing, self._since = AROUND, 0.0

    @contextmanager
    def looking_at(self, picture: Picture) -> Iterator[None]:
        base, optimizer, self.picture = self.model.base_model, self.optimizer, picture
        block = blocks_of(self.model)[0]
        shown = {"embeddings": self.model.get_input_embeddings()}
        shown |= {f"block 0, {name}": block.get_submodule(name) for name in linear_layers(block)}
        handles = [module.register_forward_hook(self._shape_of(name)) for name, module in shown.items()]
        handles.append(base.register_forward_pre_hook(self._forward_begins, with_kwargs=True))
        handles.append(base.register_forward_hook(self._forward_ends, with_kwargs=True))
        handles.append(optimizer.register_step_pre_hook(self._update_begins))
        handles.append(optimizer.register_step_post_hook(self._update_ends))
        if self.lora:
            handles.append(self.lora.register_forward_hook(self._lora_passed))
        self._doing, self._since = AROUND, time.perf_counter()
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
            self._now(AROUND)
        finally:
            self.picture = None
            for handle in handles:
                handle.remove()

    def _now(self, doing: str) -> None:
        """From here on the time is that of `doing`."""
        if self.machine.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.picture.seconds[self._doing] += now - self._since
        self._doing, self._since = doing, now

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if self._doing in (FORWARD, LOSS) and storage.data_ptr() not in self._weights:
            self.picture.forwards[-1].kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def _shape_of(self, name: str) -> Callable:
        def passed(module, inputs, output: Tensor) -> None:
            if torch.is_grad_enabled():  # not in a validation
                self.picture.forwards[-1].shapes[name] = tuple(output.shape)

        return passed

    def _forward_begins(self, module, inputs, options: dict) -> None:
        if torch.is_grad_enabled():
            self._now(FORWARD)
            self.picture.forwards.append(Forward(options["input_ids"][0].detach(), torch.empty(0)))

    def _forward_ends(self, module, inputs, options, output) -> None:
        if not torch.is_grad_enabled():
            return
        self._now(LOSS)
        forward, hidden = self.picture.forwards[-1], output.last_hidden_state
        forward.hidden = hidden[0].detach()

        def came_back(gradient: Tensor) -> None:
            self._now(BACKWARD)
            forward.gradient = gradient[0].detach().clone()

        hidden.register_hook(came_back)

    def _lora_passed(self, layer: LoraLinear, inputs, output: Tensor) -> None:
        if torch.is_grad_enabled():
            x = inputs[0][0, -1].detach().clone()
            self.picture.lora = x, output[0, -1].detach().clone(), correction_of(layer, x)

    def _update_begins(self, optimizer, inputs, options) -> None:
        picture = self.picture
        if self._doing == UPDATE:  # Muon's step calls AdamW's, and each calls the hooks
            return
        self._now(UPDATE)
        # Of attempts for which memory was not enough nothing is told.
        picture.forwards = picture.forwards[-len(picture.micro_batches) :]
        picture.scale = self.scaler.get_scale()
        picture.learning_rate = optimizer.param_groups[0]["lr"]
        layers, kinds = Counter(), Counter()
        for p, name in self.names.items():
            if p.grad is not None:
                square = torch.linalg.vector_norm(p.grad, dtype=torch.float64).item() ** 2
                layers[layer_of(name)] += square
                kinds[name.rpartition(".")[2]] += square
                picture.gradient_bytes += p.grad.nbytes
        picture.norms = {name: square**0.5 for name, square in layers.items()}
        picture.kinds = {name: square**0.5 for name, square in kinds.items()}
        picture.strays = [name for p, name in self.names.items() if not p.requires_grad and p.grad is not None]
        self._look_at_the_logits(picture)
        if self.weight is not None:
            picture.adamw = self._adamw()
        if self.matrix is not None:
            state, group = optimizer.state[self.matrix], self._group_of(self.matrix)
            w, g = self.matrix.detach().clone(), self.matrix.grad.clone()
            before = state["momentum"].clone() if state else torch.zeros_like(w)
            picture.matrix = Matrix(group["lr"], group["weight_decay"], w, g, before)
        self._since = time.perf_counter()  # looking is no part of the update

    def _update_ends(self, optimizer, inputs, options) -> None:
        picture = self.picture
        self._now(UPDATE)
        picture.skipped = bool(getattr(optimizer, "found_inf", None))
        picture.state_bytes = sum(
            x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor) and x.ndim
        )
        if picture.adamw:
            number, state = picture.adamw, optimizer.state[self.weight]
            number.w_after = self._at(self.weight)
            number.m_after, number.v_after = self._at(state["exp_avg"]), self._at(state["exp_avg_sq"])
        if picture.matrix:
            picture.matrix.w_after = self.matrix.detach().clone()
        self._doing, self._since = AROUND, time.perf_counter()

    def _adamw(self) -> AdamW:
        group, state = self._group_of(self.weight), self.optimizer.state[self.weight]
        m, v = (self._at(state[key]) if state else 0.0 for key in ("exp_avg", "exp_avg_sq"))
        t, (beta1, beta2) = int(state["step"]) + 1 if state else 1, group["betas"]
        w, g = self._at(self.weight), self._at(self.weight.grad)
        return AdamW(group["lr"], group["weight_decay"], beta1, beta2, group["eps"], t, w, g, m, v)

    def _group_of(self, weight: Tensor) -> dict:
        return next(group for group in self.optimizer.param_groups if any(p is weight for p in group["params"]))

    def _at(self, tensor: Tensor) -> float:
        """The number that is followed."""
        return tensor.detach()[self.place].item()

    def _look_at_the_logits(self, picture: Picture) -> None:
        """Before the weights move: the logits of one place from the hidden state that passed there, and what their
        gradient is for it. In fp32, some pieces at a time: a frozen head lies in half precision and may be large."""
        hidden = picture.forwards[picture.micro_batch].hidden[picture.place].clone().requires_grad_()
        with torch.enable_grad(), self.machine.autocast():
            rows, head = head_of(self.model, hidden[None])
        parts = head.detach().split(PIECES)
        logits = torch.cat([part.float() @ rows[0].detach().float() for part in parts])
        d_logits = logits_gradient(logits, picture.target, picture.batch.supervised)
        d_row = sum(d @ part.float() for d, part in zip(d_logits.split(PIECES), parts, strict=True))
        (d_hidden,) = torch.autograd.grad(rows, hidden, d_row[None].to(rows.dtype))
        picture.logits, picture.d_hidden = logits, d_hidden.float()


@torch.no_grad()
def correction_of(layer: LoraLinear, x: Tensor) -> Tensor:
    """s B (A x) by hand, in fp32 and without dropout: (in,) -> (out,)."""
    return layer.lora.scaling * (layer.lora_B @ (layer.lora_A @ x.float()))


def logits_gradient(logits: Tensor, target: int, supervised: int) -> Tensor:
    """(p - onehot) / S, (V,): the gradient, by the logits of one place, of the mean loss over S supervised tokens."""
    d_logits = logits.softmax(dim=0)
    d_logits[target] -= 1
    return d_logits / supervised


def layer_of(name: str) -> str:
    """transformer.h.3.attn.c_attn.weight -> transformer.h.3; what stands in no block by its own module's name."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 2)
    return ".".join(parts[: number + 1])
