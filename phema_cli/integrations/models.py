"""An average in a model: for good, or for as long as an evaluation takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from phema_cli.api import Average, average, taking
from phema_cli.errors import UsageError, listed
from phema_cli.tracker import PowerEMA
from phema_cli.tracker.model import WRAPPERS, find_slots, unwrapped
from phema_cli.tracker.sharding import local, part_of, reshard

if TYPE_CHECKING:
    import torch

_Model = TypeVar("_Model", bound="torch.nn.Module")
#: what can be put into a model: tensors by name, all at once or one after the other.
Weights: TypeAlias = (
    "Average | PowerEMA | Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]"
)


@taking(average)
def load_into(model: torch.nn.Module, average: Average) -> torch.nn.Module:
    """Fill a model with an average, tensor by tensor: ``load_into(model, "ckpts/", gamma=7)``.

    Parameters and persistent buffers keep their places, types and devices; no second copy of the
    model is made. Names must be the same, up to wrappers (``module.``, ``_orig_mod.``). Names,
    shapes and kinds of numbers are checked before the first tensor is written. Of a model that is
    sharded every rank calls this, and reads all tensors.

    Args:
        model: what is filled, on its devices.
        average: what :func:`phema_cli.average` takes: ``paths``, and options as keywords.

    Returns:
        The model itself.

    Raises:
        UsageError: the model has other tensors than the average; it is as it was. Or what
            :func:`phema_cli.average` refuses.
        PhemaError: snapshots can't be read, or hold values that are not finite. Where that shows
            only in the values, some tensors of the model are new by then, and a note says so.
    """
    places = _Places(model)
    places.check(average.like)
    try:
        for name, value in average:
            places.put(name, value)
            # Not held while the next one is made.
            del value
    except BaseException as error:
        error.add_note("the model now holds a part of the average: load it again")
        raise
    return model


@contextmanager
def swapped(model: _Model, average: Weights) -> Iterator[_Model]:
    """Put an average into a model for an evaluation, and take it out again.

    ``with swapped(model, average("ckpts/", gamma=7)): ...``. Afterwards, also after an exception,
    each parameter and persistent buffer has the bits that it had before, whatever the evaluation
    did to it. The tensors stay where they are, so that optimizers, compiled code and wrappers need
    not know. The model's own values are kept beside it meanwhile: memory for one copy of it. The
    mode of the model is not changed: call ``model.eval()``. Do not update a :class:`PowerEMA` of
    the model inside. A model may be swapped again inside.

    Args:
        model: what is evaluated, on its devices.
        average: what :func:`phema_cli.average` returns, ``ema.average(5)`` of a ``PowerEMA``, the
            ``PowerEMA`` itself if it has one gamma, a state dict, or pairs of a name and a tensor.

    Yields:
        The model.

    Raises:
        UsageError: the model has other tensors than the average.
        PhemaError: as ``average`` raises while it is read. The model is as it was.
    """
    if isinstance(average, str | os.PathLike):
        raise UsageError(
            "an average is needed, and no path",
            where=average,
            remedy="pass phema_cli.average(paths, gamma=7)",
        )
    places = _Places(model)
    if isinstance(average, PowerEMA):
        average = _only(average)
    known = average.like if isinstance(average, Average) else average
    if isinstance(known, Mapping):
        places.check(known)
    kept: dict[str, torch.Tensor] = {}
    try:
        for name, value in average.items() if isinstance(average, Mapping) else average:
            places.keep(name, kept)
            places.put(name, value)
            del value
        places.check_none_missing(kept)
        yield model
    finally:
        places.restore(kept)


def _only(ema: PowerEMA) -> Mapping[str, torch.Tensor]:
    """The one average of a PowerEMA."""
    if len(ema.gammas) > 1:
        raise UsageError(
            f"{ema!r} has {len(ema.gammas)} averages",
            remedy=f"pass one: its average({ema.gammas[0]:g})",
        )
    return ema.average(ema.gammas[0])


class _Places:
    """Where a model has the tensors of its state dict.

    Args:
        model: on its devices, in any wrappers.

    Raises:
        UsageError: a tensor can't be written to: it has no values yet, or FSDP1 or ZeRO-3 hold it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = unwrapped(model)
        reshard(self._model)
        self._slots, aliases = find_slots(self._model, "filled")
        # The first name of each tensor, by all of its names.
        self._first = {name: aliases.get(name, name) for name in self._slots}
        plain: dict[str, list[str]] = {}
        for name in self._first:
            plain.setdefault(_plain(name), []).append(name)
        self._plain = {name: own[0] for name, own in plain.items() if len(own) == 1}

    def check(self, given: Mapping[str, torch.Tensor]) -> None:
        """Refuse tensors that are not those of the model, by name, shape or kind of numbers.

        Raises:
            UsageError: it names them.
        """
        found = {name: self._find(name) for name in given}
        lacking = [name for name, first in found.items() if first is None]
        if lacking:
            raise UsageError(
                f"the model has no {listed(lacking)}",
                remedy="make the model that the snapshots are of, or leave tensors out with drop",
            )
        self.check_none_missing(found.values())
        for name, value in given.items():
            self._check_fits(name, value)

    def check_none_missing(self, found: Iterable[str | None]) -> None:
        """Refuse an average without some tensors of the model, whose first names are given."""
        there = set(found)
        missing = [n for n in dict.fromkeys(self._first.values()) if n not in there]
        if missing:
            raise UsageError(
                f"the average has no {listed(missing)}",
                remedy="make the model that the snapshots are of",
            )

    def keep(self, name: str, kept: dict[str, torch.Tensor]) -> None:
        """Copy what the model has under a name, unless it is kept already."""
        first = self._find(name)
        if first is not None and first not in kept:
            kept[first] = local(self._slots[first].tensor().detach()).clone()

    def put(self, name: str, value: torch.Tensor) -> None:
        """Write a tensor into its place, in the model's type.

        Raises:
            UsageError: the model has none of that name, shape and kind, or its type can't hold the
                values.
        """
        import torch

        tensor = self._check_fits(name, value)
        place, part = local(tensor), part_of(value, tensor)
        with torch.no_grad():
            place.copy_(part)
        narrow = (
            value.is_floating_point()
            and torch.finfo(tensor.dtype).max < torch.finfo(value.dtype).max
        )
        if narrow and not bool(place.isfinite().all()) and bool(part.isfinite().all()):
            raise UsageError(
                f"{name} has values that are too large for the model's {tensor.dtype}",
                remedy="convert the model to a type with a larger range",
            )

    def restore(self, kept: Mapping[str, torch.Tensor]) -> None:
        """Write back what :meth:`keep` has kept."""
        import torch

        # A forward pass may have put whole parameters in the place of shards.
        reshard(self._model)
        with torch.no_grad():
            for first, value in kept.items():
                local(self._slots[first].tensor()).copy_(value)

    def _find(self, name: str) -> str | None:
        """The first name of the model's tensor that is meant by a name."""
        return self._first.get(name if name in self._first else self._plain.get(_plain(name), ""))

    def _check_fits(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The model's tensor for a value."""
        first = self._find(name)
        if first is None:
            raise UsageError(f"the model has no {name}")
        tensor = self._slots[first].tensor()
        if value.shape != tensor.shape:
            raise UsageError(
                f"{name} has the shape {list(value.shape)} in the average "
                f"and {list(tensor.shape)} in the model"
            )
        if _kind(value) != _kind(tensor):
            raise UsageError(
                f"{name} is {value.dtype} in the average and {tensor.dtype} in the model"
            )
        return tensor


def _plain(name: str) -> str:
    """A tensor's name without wrappers."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _kind(tensor: torch.Tensor) -> tuple[bool, bool, bool]:
    """What numbers a tensor holds: none of another kind becomes one of these without harm."""
    return tensor.is_floating_point(), tensor.is_complex(), str(tensor.dtype) == "torch.bool"
