"""Several processes at one batch: rows and gradients of all of them, and decoder layers that they share out.

Every process of ``accelerate launch`` holds an equal part of each batch. The losses are those of the whole batch:
the answer loss weighs a process by its number of answer tokens, and the contrastive terms see the tokens of all
processes (`rows_of_all`), so that a run does not depend on how many processes share it.

With ``ACCELERATE_USE_FSDP`` (config/accelerate/fsdp.yaml) every process keeps a part of each decoder layer's weights
(`shard_layers`), and gathers a layer when it computes it. What is small stays whole in every process: embeddings,
vision tower, adapters, routers and users.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.nn.functional import all_gather
from torch.distributed.tensor import DTensor, distribute_tensor


def state() -> PartialState:
    """Accelerate's record of this process among the others; a launcher's choice of CPUs counts from the start."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def processes() -> int:
    """How many processes work together; 1 outside a launcher."""
    return state().num_processes


def sharding() -> bool:
    """Whether the launcher asked for sharded layers."""
    return processes() > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP")


def rows_of_all(own: Tensor) -> Tensor:
    """The rows (B, ...) of all processes, in the order of the processes: (processes * B, ...); differentiable.

    A loss that every process computes from them is the loss of the whole batch; the mean over processes of its
    gradients, which `average_gradients` takes, is that loss's gradient. B must be equal in all processes.
    """
    return own if processes() == 1 else torch.cat(all_gather(own))


def share_of_all(count: int, device: torch.device) -> float | Tensor:
    """A process's count over the mean count of the processes: the weight of its mean in the mean over processes."""
    if processes() == 1:
        return 1.0
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return count * processes() / total


def sum_over_all(own: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without a gradient."""
    if processes() > 1:
        dist.all_reduce(own)
    return own


def agreed(flag: bool) -> bool:
    """Whether it is true in all processes."""
    if processes() == 1:
        return flag
    found = torch.tensor(int(flag), device=state().device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return bool(found)


# --- gradients ----------------------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds (sharing its memory); any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in full; call it in all processes at once. Any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copies a full tensor into one that may be sharded."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replaces the gradients by their mean over processes, dense ones in one message. Those of sharded layers are
    averaged by the backward pass. A sparse one becomes one over the rows of all."""
    world = processes()
    if world == 1:
        return
    dense = [p for p in parameters if not isinstance(p, DTensor) and (p.grad is None or not p.grad.is_sparse)]
    for parameter in dense:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if dense:
        flat = torch.cat([p.grad.flatten().float() for p in dense])
        dist.all_reduce(flat)
        for parameter, mean in zip(dense, (flat / world).split([p.numel() for p in dense]), strict=True):
            parameter.grad.copy_(mean.view_as(parameter))
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = _sparse_mean(parameter.grad.coalesce(), world)


def _sparse_mean(gradient: Tensor, world: int) -> Tensor:
    """The mean over processes of gradients that are sparse in their rows; shorter ones repeat a row with zeros."""
    rows, values = gradient.indices()[0], gradient.values()
    longest = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - len(rows)
    rows = rows_of_all(torch.cat([rows, rows[:1].expand(missing)]))
    values = rows_of_all(torch.cat([values, values.new_zeros(missing, *values.shape[1:])]))
    return torch.sparse_coo_tensor(rows[None], values / world, gradient.shape).coalesce()


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients so that their common norm is at most ``limit``; returns the norm before. As
    torch.nn.utils.clip_grad_norm_, for dense, sparse and sharded gradients together."""
    own, shared = [], []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            parameter.grad = gradient = gradient.coalesce()
        target = shared if isinstance(gradient, DTensor) else own
        target.append(gradient.values() if gradient.is_sparse else local(gradient))
    device = parameters[0].device
    norm = torch.nn.utils.get_total_norm(own).to(device) if own else torch.zeros((), device=device)
    if shared:
        squares = torch.nn.utils.get_total_norm(shared).square()
        dist.all_reduce(squares)
        norm = (norm.square() + squares.to(device)).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*own, *shared):
        gradient.mul_(factor.to(gradient.device))
    return norm


# --- sharded layers -----------------------------------------------------------------------------------------------


@cache
def mesh(device_type: str) -> DeviceMesh:
    """All processes, among which layers are shared out; the first call is one of all processes together."""
    return init_device_mesh(device_type, (processes(),))


def shard_layers(layers: nn.ModuleList, among: DeviceMesh, compute: torch.dtype) -> None:
    """Leaves in every process its part of each decoder layer's weights, on the mesh's device (FSDP2, fully_shard).

    Layers are gathered one by one in forward and backward passes, in ``compute`` precision, and their gradients
    averaged in float32. Needs no other process, so that processes can load a large model in turn.
    """
    stored = next(layers.parameters()).dtype
    precision = MixedPrecisionPolicy(
        param_dtype=None if stored == compute else compute, reduce_dtype=torch.float32, cast_forward_inputs=True
    )
    for layer in layers:
        fully_shard(layer, mesh=among, mp_policy=precision)


def in_turn() -> Iterator[None]:
    """``for _ in in_turn(): work`` does the work in one process after the other."""
    for turn in range(processes()):
        if turn == state().process_index:
            yield
        state().wait_for_everyone()
