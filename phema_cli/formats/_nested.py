"""The dict of weights inside a nested checkpoint: asked for, known by its name, or the only one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from phema_cli.errors import InputError

Leaf = TypeVar("Leaf")

#: the key that means the top level, where dicts of tensors lie below it too.
TOP = "."
#: where trainers keep averaged weights, most telling first: timm, k-diffusion, others.
AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
#: Lightning's WeightAveraging stores the average as ``state_dict`` and says so by this neighbour.
_LIGHTNING = ("averaging_state", "state_dict")
#: dicts whose names begin so are a trainer's state, never weights.
_TRAINER = ("optim", "opt.", "opt_", "scheduler", "lr_scheduler", "scaler", "averaging_state")
_OFFERED = 8


class Weights(NamedTuple, Generic[Leaf]):
    """Tensors by name, and the dotted key under which they lie; None for the top level."""

    tensors: dict[str, Leaf]
    key: str | None


def find_weights(content: object, key: str | None, path: Path, leaf: type[Leaf]) -> Weights[Leaf]:
    """The dict of weights inside what a file holds.

    Args:
        content: nested dicts with tensors somewhere.
        key: dotted name of the dict; ``.`` is the top level. Where none is given, it is where
            trainers keep averages, or else the only dict of tensors that is no trainer's state.
        path: the file, for messages.
        leaf: the type that stands for a tensor.

    Raises:
        InputError: there is no such dict, or several could be meant.
    """
    candidates = dict(_dicts(content, leaf))
    if key is not None:
        return Weights(_asked_for(content, candidates, key, path, leaf), key)
    for known in _known(content):
        inside = [name for name in candidates if name == known or name.startswith(f"{known}.")]
        if len(inside) == 1:
            return Weights(candidates[inside[0]], inside[0])
    weights = {n: state for n, state in candidates.items() if not n.startswith(_TRAINER)}
    if len(weights) == 1:
        name, state = next(iter(weights.items()))
        return Weights(state, None if name == TOP else name)
    if not weights:
        raise InputError("holds no dict of tensors", where=path, remedy="leave it out: --exclude")
    raise InputError(
        f"holds {len(weights)} dicts of tensors",
        where=path,
        remedy=f"pass --key with one of {_listed(weights)}",
    )


def inside(content: object, key: str) -> object:
    """What lies under a dotted key, None where nothing does; names may themselves have dots."""
    for k, v in content.items() if isinstance(content, dict) else ():
        if key == str(k):
            return v
        if key.startswith(f"{k}.") and (found := inside(v, key.removeprefix(f"{k}."))) is not None:
            return found
    return None


def _known(content: object) -> tuple[str, ...]:
    """Keys that averaged weights would have in this content."""
    neighbour, average = _LIGHTNING
    if isinstance(content, dict) and neighbour in content:
        return (average, *AVERAGED)
    return AVERAGED


def _asked_for(
    content: object,
    candidates: Mapping[str, dict[str, Leaf]],
    key: str,
    path: Path,
    leaf: type[Leaf],
) -> dict[str, Leaf]:
    """The tensors under the user's key."""
    if key in candidates:
        return candidates[key]
    found = inside(content, key)
    if found is None:
        raise InputError(f"no key {key!r}", where=path, remedy=_offer(candidates))
    if state := _tensors(found, leaf):
        return state
    raise InputError(f"no tensors under key {key!r}", where=path, remedy=_offer(candidates))


def _tensors(value: object, leaf: type[Leaf]) -> dict[str, Leaf]:
    """The entries of a dict that are tensors under a text key."""
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, leaf)}


def _dicts(content: object, leaf: type[Leaf]) -> Iterator[tuple[str, dict[str, Leaf]]]:
    """Dotted names of the dicts that hold tensors: the top level and, below it, the outermost."""
    if top := _tensors(content, leaf):
        yield TOP, top
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        prefix, value = waiting.pop()
        if not isinstance(value, dict) or id(value) in seen:
            continue
        seen.add(id(value))
        below = []
        for k, v in value.items():
            if state := _tensors(v, leaf):
                yield f"{prefix}{k}", state
            else:
                below.append((f"{prefix}{k}.", v))
        waiting += below[::-1]


def _listed(candidates: Mapping[str, object]) -> str:
    """Names, of many only the first."""
    more = len(candidates) - _OFFERED
    return ", ".join(list(candidates)[:_OFFERED]) + (f" and {more} others" if more > 0 else "")


def _offer(candidates: Mapping[str, object]) -> str:
    """What keys there are instead."""
    nested = {name: state for name, state in candidates.items() if name != TOP}
    return f"there are {_listed(nested)}" if nested else "it holds no nested dicts of tensors"
