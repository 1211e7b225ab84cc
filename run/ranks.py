"""Many processes for one run: `torchrun --nproc_per_node=N train.py`, on PyTorch's own DistributedDataParallel.

Every rank holds the whole model, computes its share of a step's records, and the gradients are summed. The loss is a
sum that is divided once, by the tokens of all ranks, so without dropout the step is the same one for any number of
ranks. A single process passes through here without any effect.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from run.cli import LOST_RANK
from run.device import EnvironmentFault


class RankLost(RuntimeError):
    """Another process of the run has ended, so this one cannot go on."""

    exit_code = 3


def start_ranks(device: str = "auto") -> "Ranks":
    """The place of this process among those that torchrun started; without torchrun a single one.

    Raises `EnvironmentFault` when there are fewer GPUs than processes, `RankLost` when another does not come.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Ranks()
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            there = f"There are {torch.cuda.device_count()} GPUs here"
            raise EnvironmentFault(f"{there}: torchrun --nproc_per_node at most that many, or --device cpu.")
        torch.cuda.set_device(local)
        if dist.is_nccl_available():  # not on Windows, where gloo sums what lies on the devices too, through the host
            backend = "cpu:gloo,cuda:nccl"  # what the host has to tell the other hosts does not wait for the devices
    with lost_rank_is_a_sentence():
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    if rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  rank 0 speaks for all
    return Ranks(rank, size)


@contextmanager
def lost_rank_is_a_sentence() -> Iterator[None]:
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if hasattr(error, "exit_code"):
            raise
        raise RankLost(LOST_RANK) from error


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    size: int = 1
    sharded: bool = False  # each rank has only a part of the model (run/shard.py): all compute in step with one another

    @property
    def command(self) -> str:
        """What starts as many processes again."""
        return "python" if self.size == 1 else f"torchrun --nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"

    @property
    def is_main(self) -> bool:
        """Rank 0 writes and speaks."""
        return self.rank == 0

    def share(self, items: list) -> list:
        """Every size-th item: this rank's part of work whose order does not matter. Of a sharded model, everything:
        its ranks have to do the same."""
        return items if self.sharded else items[self.rank :: self.size]

    def collect(self, mine: list) -> list:
        """Collective. The results of `share`d work from all ranks, in the order of the items."""
        if self.sharded:
            return mine
        parts = self.gather(mine)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def gather(self, mine) -> list:
        """Collective. What each rank has, by rank."""
        if self.size == 1:
            return [mine]
        everyone = [None] * self.size
        with lost_rank_is_a_sentence():
            dist.all_gather_object(everyone, mine)
        return everyone

    def from_main(self, compute: Callable):
        """Collective. What `compute()` returns on rank 0, where alone it is called."""
        answer = [compute() if self.is_main else None]
        if self.size > 1:
            with lost_rank_is_a_sentence():
                dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def as_many(self, micro_batches: list, idle) -> list:
        """Collective if the model is sharded. Filled up with `idle` to the number that the busiest rank has."""
        if not self.sharded:
            return micro_batches
        return micro_batches + [idle] * (max(self.gather(len(micro_batches))) - len(micro_batches))

    def any(self, flag: bool) -> bool:
        """Collective. Whether any rank says yes: all must leave the loop after the same step."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        with lost_rank_is_a_sentence():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, value: float, weight: float) -> float:
        """Collective. The mean of every rank's value, each with its own weight."""
        pairs = self.gather((value, weight))
        return sum(v * w for v, w in pairs) / max(1, sum(w for _, w in pairs))

    def gradient_all_reduce(self, model: torch.nn.Module) -> Callable[[Tensor], None]:
        """Collective, and so is what it returns, to be called between the last backward and the clipping: it sums over
        the ranks the gradients, and the 0-dim tensor that it gets. After this call every rank has rank 0's weights.

        The micro-batches run past DistributedDataParallel; one empty backward through it at the end of the step does
        the sum, in its buckets. So ranks may have different numbers of micro-batches, or none, and one that runs out
        of memory may begin its part of the step again in smaller pieces. The price is that the sum does not overlap
        with the backward.
        """
        if self.size == 1:
            return lambda loss_sum: None
        if self.sharded:  # the gradients are summed already, where they are divided
            return self.sum
        with lost_rank_is_a_sentence():
            closing = DistributedDataParallel(_Closing(model))

        def all_reduce_gradients(loss_sum: Tensor) -> None:
            with lost_rank_is_a_sentence():
                closing().backward()
                # The mean over the ranks, made a sum again: the loss is already divided by the tokens of all ranks.
                torch._foreach_mul_([p.grad for p in model.parameters() if p.requires_grad], self.size)
                self.sum(loss_sum)

        return all_reduce_gradients

    def clip_grad_norm_(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> Tensor:
        """Collective if the model is sharded. torch's own; 0 clips nothing. Returns the norm before clipping, ()."""
        return whole(torch.nn.utils.clip_grad_norm_(parameters, max_norm or math.inf))

    def sum(self, value: Tensor) -> None:
        """Collective. The sum over the ranks, in place."""
        with lost_rank_is_a_sentence():
            dist.all_reduce(value)


def whole(tensor: Tensor) -> Tensor:
    """Collective for a tensor of which each rank has a part: gathered. Any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class _Closing(torch.nn.Module):
    """0 as a function of all trainable weights."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        return _Zero.apply(*(p for p in self.model.parameters() if p.requires_grad))


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *weights: Tensor) -> Tensor:
        ctx.shapes = [weight.shape for weight in weights]
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return tuple(gradient.new_zeros(()).expand(shape) for shape in ctx.shapes)  # takes no memory
