"""The tensors of a model in training: where it keeps them, their names, and shards of them.

A tensor of FSDP2 or tensor parallelism is a ``DTensor``: each rank holds a shard. Averaging is
elementwise, so that each rank averages its shard, and whole tensors are needed only to be stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from phema_cli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

#: what wrappers of submodules add to the names, and the model's own state dict leaves out.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the model keeps a tensor: fetched anew each time, since models replace them."""

    holder: dict[str, Any]
    key: str

    def held(self) -> torch.Tensor:
        """What the model holds there now.

        Raises:
            UsageError: it holds nothing there any more.
        """
        tensor: torch.Tensor | None = self.holder.get(self.key)
        if tensor is None:
            raise UsageError(
                f"the model has no {self.key} any more where it had one",
                remedy="make PowerEMA after changing the model",
            )
        return tensor

    @property
    def is_frozen(self) -> bool:
        """Whether it holds a parameter that is not trained; raises as :meth:`held` does."""
        import torch

        tensor = self.held()
        return isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``."""
    import torch

    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            return model


def slots(model: torch.nn.Module) -> tuple[dict[str, Slot], dict[str, tuple[Slot, str]]]:
    """Every tensor of the state dict once, by its first name; of tied ones the other names.

    Those come with where the model keeps the tensor under that name, and with its first name.

    Raises:
        UsageError: a tensor is of a kind that can't be averaged or stored.
    """
    found: dict[str, Slot] = {}
    ties: dict[str, tuple[Slot, str]] = {}
    first: dict[int, str] = {}
    for name, slot in _walk(model):
        tensor = slot.holder[slot.key]
        if id(tensor) in first:
            ties[name] = slot, first[id(tensor)]
        else:
            _check(name, tensor)
            first[id(tensor)] = name
            found[name] = slot
    return found, ties


def _walk(model: torch.nn.Module) -> Iterator[tuple[str, Slot]]:
    """Name and slot of every parameter and persistent buffer, in the state dict's order."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for wrapper in _WRAPPERS:
            dot = dot.replace(wrapper, "")
        # The set of buffers that stay out of the state dict has no public name.
        hidden = module._non_persistent_buffers_set  # noqa: SLF001
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)  # noqa: SLF001
        for holder in holders:
            for key, tensor in holder.items():
                if tensor is not None and not (holder is module._buffers and key in hidden):  # noqa: SLF001
                    yield dot + key, Slot(holder, key)


def _check(name: str, tensor: torch.Tensor) -> None:
    """Refuse what is not the tensor itself, by the marks that its library leaves."""
    from torch.nn.parameter import is_lazy

    if hasattr(tensor, "ds_id"):
        what, remedy = "is sharded by DeepSpeed ZeRO-3", "use ZeRO-2, or FSDP2 (fully_shard)"
    elif name.endswith("_flat_param") or hasattr(tensor, "_fsdp_flattened"):
        what, remedy = "is flattened by FSDP1", "use FSDP2 (fully_shard)"
    elif is_lazy(tensor):
        what, remedy = "has no shape yet", "run a batch through the model first"
    elif tensor.is_meta:
        what, remedy = "is on the meta device", "make PowerEMA when the model has its weights"
    elif is_sharded(tensor) and _fsdp_module() is None:
        what, remedy = "is a DTensor of a torch before 2.6", "take a newer torch"
    elif is_sharded(tensor) and any(p.is_partial() for p in tensor.placements):
        what, remedy = "is a sum over ranks that is not made", "redistribute it"
    else:
        return
    raise UsageError(f"{name} {what}, which is not averaged", remedy=remedy)


def _fsdp_module() -> type[FSDPModule] | None:
    """The class of modules that FSDP2 shards; torch has it there since 2.6."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        return None
    return FSDPModule


def reshard(model: torch.nn.Module) -> None:
    """Have FSDP2 put the shards that are trained back in the place of gathered parameters.

    It leaves the gathered ones there after a forward pass that no backward pass followed.
    """
    # Where nobody has imported it, no module is of that kind.
    if "torch.distributed.fsdp" in sys.modules and (kind := _fsdp_module()) is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Whether each rank holds a part of it, or a copy that the ranks keep together."""
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, which may be all of it."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def with_shard(like: torch.Tensor, shard: torch.Tensor) -> torch.Tensor:
    """``shard`` as the part that this rank holds of a tensor that is split as ``like`` is."""
    if not is_sharded(like):
        return shard
    mesh, placements = like.device_mesh, like.placements
    return type(like).from_local(shard, mesh, placements, shape=like.shape, stride=like.stride())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor from all ranks' parts, on this rank; every rank must call it."""
    if not is_sharded(tensor):
        return tensor
    # Shards may be kept on the CPU where the ranks talk through their accelerators.
    shard = tensor.to_local().to(tensor.device_mesh.device_type)
    found: torch.Tensor = cast("DTensor", with_shard(tensor, shard)).full_tensor()
    return found


def shard_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of ``tensor`` that this rank holds of ``like``.

    Args:
        tensor: whole, or split as ``like`` is; of its shape.
        like: the model's tensor.

    Raises:
        UsageError: the tensor is split otherwise.
    """
    if is_sharded(tensor):
        split = (tensor.device_mesh, tensor.placements)
        if not is_sharded(like) or split != (like.device_mesh, like.placements):
            raise UsageError(
                "the state is split over ranks otherwise than the model is",
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
