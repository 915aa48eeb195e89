"""Shards of tensors that several ranks hold, such as those of FSDP2 and tensor parallelism.

Such a tensor is a ``DTensor``: each rank holds a shard. Averaging is elementwise, so that each rank
averages its shard, and whole tensors are needed only when they are stored.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard, cast

from phema_cli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def rank() -> int:
    """The rank of this process; 0 if it is the only one."""
    import torch.distributed

    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if group else 0


def fsdp_module() -> type[FSDPModule] | None:
    """The class of modules that FSDP2 shards; None in a torch before 2.6."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        return None
    return FSDPModule


def reshard(model: torch.nn.Module) -> None:
    """Have FSDP2 put the shards that are trained in the place of gathered parameters.

    It leaves the gathered ones there after a forward pass without a backward pass.
    """
    # If nobody has imported it, no module is of that class.
    if "torch.distributed.fsdp" in sys.modules and (kind := fsdp_module()) is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds a part of it, or a copy that the ranks keep equal."""
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, which may be all of it."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def as_part_of(like: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """``part`` as this rank's part of a tensor that is split as ``like`` is."""
    if not is_sharded(like):
        return part
    mesh, placements = like.device_mesh, like.placements
    return type(like).from_local(part, mesh, placements, shape=like.shape, stride=like.stride())


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor from all ranks' parts, on this rank; every rank must call it."""
    if not is_sharded(tensor):
        return tensor
    # Shards may lie on the CPU while the ranks communicate through their accelerators.
    shard = tensor.to_local().to(tensor.device_mesh.device_type)
    gathered: torch.Tensor = cast("DTensor", as_part_of(tensor, shard)).full_tensor()
    return gathered


def part_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's part of ``tensor``, split as ``like`` is.

    Args:
        tensor: whole, or split as ``like`` is; of its shape.
        like: the model's tensor.

    Raises:
        UsageError: the tensor is split in another way.
    """
    if is_sharded(tensor):
        split = (tensor.device_mesh, tensor.placements)
        if not is_sharded(like) or split != (like.device_mesh, like.placements):
            raise UsageError(
                "the state and the model are split over ranks in different ways",
                remedy="load it into state_dict(sharded=True) by torch.distributed.checkpoint",
            )
        return tensor.to_local()
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import Replicate

    mesh = like.device_mesh
    copies = [Replicate() for _ in range(mesh.ndim)]
    everywhere = type(like).from_local(tensor.to(mesh.device_type), mesh, copies)
    return everywhere.redistribute(placements=like.placements).to_local()
