"""Names for snapshots that are lists: those of a reference checkpoint of the same model."""

from __future__ import annotations

from dataclasses import replace

from phema_cli.errors import InputError
from phema_cli.formats.base import Checkpoint, Extent

#: what modules register as buffers; lists of parameters lack them.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq")
_SAVE = "torch.save(model.state_dict(), 'names.pt')"


def give_names(checkpoint: Checkpoint, reference: Checkpoint | None) -> Checkpoint:
    """The checkpoint with the reference's names for its tensors, which must fit one by one.

    Args:
        checkpoint: a list of a model's parameters, in the model's order.
        reference: a state dict of that model, in its own order; None where none was given.

    Raises:
        InputError: there is no reference, its order is lost, or it does not fit.
    """
    if reference is None:
        raise InputError(
            f"holds {len(checkpoint.tensors)} tensors without names",
            where=checkpoint.path,
            remedy=f"pass --names-from FILE, made by {_SAVE}",
        )
    if reference.format != "torch" or reference.unnamed:
        raise InputError(
            "does not list tensors in the model's order",
            where=reference.path,
            remedy=f"make the file for --names-from by {_SAVE}",
        )
    names = _parameters(reference, len(checkpoint.tensors))
    if len(names) != len(checkpoint.tensors):
        raise InputError(
            f"holds {len(checkpoint.tensors)} tensors, and the names in {reference.path.name} are "
            f"{len(names)}",
            where=checkpoint.path,
            remedy="give a state dict of parameters alone, of the same model",
        )
    tensors: dict[str, Extent] = {}
    for name, (number, extent) in zip(names, checkpoint.tensors.items(), strict=True):
        if reference.tensors[name].shape != extent.shape:
            raise InputError(
                f"tensor {number} has shape {list(extent.shape)}, and {name} in "
                f"{reference.path.name} has {list(reference.tensors[name].shape)}",
                where=checkpoint.path,
                remedy="pass --names-from with a state dict of the same model",
            )
        tensors[name] = replace(extent, name=name)
    return replace(checkpoint, tensors=tensors, unnamed=False)


def _parameters(reference: Checkpoint, count: int) -> list[str]:
    """Names of the reference's parameters: tied ones once, buffers only if the count wants them."""
    ties = reference.ties
    names = [n for n, e in reference.tensors.items() if n not in ties and e.dtype.kind == "float"]
    if len(names) == count:
        return names
    return [n for n in names if not n.endswith(_BUFFERS)]
