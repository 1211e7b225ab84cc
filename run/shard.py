"""A model that is too large for one card, in parts: `torchrun --nproc_per_node=N train.py --shard`.

PyTorch's `fully_shard` (FSDP2): each rank holds an N-th of weights, gradients and AdamW's moments. A block is gathered
when its turn comes and given back after it, so all ranks have to take the same steps in the same order. What is saved
is gathered first: a checkpoint is the same Hugging Face folder for any number of ranks, sharded or not.
"""

from collections.abc import Callable
from dataclasses import replace
from types import MethodType

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from model.half import embeddings_in_fp32, norms_in_fp32
from model.lora import blocks_of
from run.device import Machine
from run.memory import MemoryPlan
from run.ranks import Ranks, whole


def divided(plan: MemoryPlan, model: PreTrainedModel, ranks: int, dtype: torch.dtype) -> MemoryPlan:
    """What one of the ranks takes, by the plan of the whole model: its part of the state, and what is gathered for a
    while, in `dtype`: two blocks, one of them ahead of its turn, and all that is outside of the blocks, with their
    gradients."""
    sizes = [
        sum(p.numel() * min(p.element_size(), dtype.itemsize) for p in block.parameters()) for block in blocks_of(model)
    ]
    whole_size = sum(p.numel() * min(p.element_size(), dtype.itemsize) for p in model.parameters())
    gathered = whole_size - sum(sizes) + 2 * max(sizes)
    # The whole model's forward keeps a copy in half precision of each fp32 matrix; here that is what is gathered.
    trained = [p for block in blocks_of(model) for p in block.parameters() if p.dtype == torch.float32 and p.ndim > 1]
    copies = sum(dtype.itemsize * p.numel() for p in trained) if dtype != torch.float32 else 0
    return replace(
        plan,
        weights=plan.weights // ranks,
        gradients=plan.gradients // ranks,
        optimizer=plan.optimizer // ranks,
        kept=max(0, plan.kept - copies) + gathered + gathered * plan.gradients // plan.weights,
    )


def parallelize(model: PreTrainedModel, loss_fn: Callable, machine: Machine, ranks: Ranks) -> Callable:
    """Collective. Divide `model` among the ranks, onto their devices, block by block; returns `loss_fn(model, batch)`
    for it. What is not sharded stays as it is.

    Gradients are summed over the ranks, not averaged: the loss is divided by the tokens of all of them already. In half
    precision the weights are gathered so, half of the bytes on their way; cast by autocast after they came, the copies
    would stay for the backward, and with them the whole model on each rank.
    """
    if not ranks.sharded:
        return loss_fn
    mesh, policy = init_device_mesh(machine.device.type, (ranks.size,)), MixedPrecisionPolicy(cast_forward_inputs=False)
    if machine.dtype != torch.float32:
        policy = replace(policy, param_dtype=machine.dtype, reduce_dtype=torch.float32)
        embeddings_in_fp32(model)
        norms_in_fp32(model)
    for part in (*blocks_of(model), model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    # The loss passes the model's own forward by; a registered method gathers the embeddings and the head like one.
    model.sharded_loss = MethodType(loss_fn, model)
    register_fsdp_forward_method(model, "sharded_loss")
    return lambda model, batch: model.sharded_loss(batch)


def reshard(model: torch.nn.Module) -> None:
    """Give back what a forward pass without a backward has gathered: until then `parameters()` are other tensors than
    those that the optimizer has, and its moments are found of none of them."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def all_whole(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Collective if the model is sharded: `whole`, one after the other, into the memory of the host.

    `keep`: on the rank that saves them. What is one tensor under two names stays one: tied weights are saved once.
    """
    kept: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in kept:
            full = whole(tensor.detach())
            kept[id(tensor)] = (full.cpu() if isinstance(tensor, DTensor) else full) if keep else None
    return {name: kept[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor, where and as `parameter` is: on its device, and divided as it is."""
    value = value.detach().to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
