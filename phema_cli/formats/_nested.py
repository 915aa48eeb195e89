"""The dict of weights inside a nested checkpoint: asked for, known by its name, or the only one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from phema_cli.errors import InputError
from phema_cli.formats._hidden import refuse_beside, refuse_hidden
from phema_cli.pickles import Inert

Leaf = TypeVar("Leaf")

#: the key that means the top level, where dicts of tensors lie below it too.
TOP = "."
#: where trainers keep averaged weights, most telling first: timm, k-diffusion, others.
AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "shadow_params")
#: Lightning's WeightAveraging stores the average as ``state_dict`` and says so by this neighbour.
_LIGHTNING = ("averaging_state", "state_dict")
#: dicts whose names begin so are a trainer's state, never weights.
_TRAINER = ("optim", "opt.", "opt_", "scheduler", "lr_scheduler", "scaler", "averaging_state")
_OFFERED = 8
# Dicts nested deeper are nobody's, nor are longer names of dicts.
_DEEPEST = 50
_LONGEST = 1000
_DIGITS = 9


class Weights(NamedTuple, Generic[Leaf]):
    """Tensors by name, or by number where they have none.

    Attributes:
        tensors: in the order in which they are listed.
        key: the dotted key under which they lie; None for the top level.
        unnamed: whether they are a list.
    """

    tensors: dict[str, Leaf]
    key: str | None
    unnamed: bool = False


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
        UnsafePickleError: there may be, hidden behind unknown code.
    """
    refuse_hidden(content if key is None else inside(content, key), path, _of_trainer)
    weights = _chosen(content, key, path, leaf)
    chosen = content if weights.key in {None, TOP} else inside(content, str(weights.key))
    refuse_beside(chosen, path, leaf, _of_trainer)
    return weights


def _of_trainer(name: object) -> bool:
    """Whether what goes by that name is a trainer's state."""
    return isinstance(name, str) and name.startswith(_TRAINER)


def _chosen(content: object, key: str | None, path: Path, leaf: type[Leaf]) -> Weights[Leaf]:
    """The dict that is meant."""
    named = dict(_groups(content, leaf, _tensors))
    lists = dict(_groups(content, leaf, _numbered))
    both = lists | named
    if key is not None:
        tensors = _asked_for(content, both, key, path, leaf)
        return Weights(tensors, key, key not in named and not _tensors(inside(content, key), leaf))
    for known in _known(content):
        under = [name for name in both if name == known or name.startswith(f"{known}.")]
        if len(under) == 1:
            return Weights(both[under[0]], under[0], under[0] not in named)
    weights = {n: state for n, state in (named or lists).items() if not _of_trainer(n)}
    if len(weights) == 1:
        name, state = next(iter(weights.items()))
        return Weights(state, None if name == TOP else name, not named)
    if not weights:
        raise InputError("holds no dict of tensors", where=path, remedy="leave it out: --exclude")
    raise InputError(
        f"holds {len(weights)} dicts of tensors",
        where=path,
        remedy=f"pass --key with one of {_listed(weights)}",
    )


def inside(content: object, key: str) -> object:
    """What lies under a dotted key, None where nothing does; names may themselves have dots."""
    waiting: list[tuple[object, str]] = [(content, key)]
    # What holds itself has more dotted keys than can be tried.
    seen: set[tuple[int, int]] = set()
    while waiting:
        node, rest = waiting.pop()
        if (id(node), len(rest)) in seen:
            continue
        seen.add((id(node), len(rest)))
        if (found := _entry(node, rest)) is not None:
            return found
        dots = [i for i, character in enumerate(rest) if character == "."]
        waiting += [(_entry(node, rest[:i]), rest[i + 1 :]) for i in reversed(dots)]
    return None


def _entry(node: object, name: str) -> object:
    """What a dict or a list holds by that name or number, None where it holds nothing."""
    number = int(name) if name.isdecimal() and len(name) <= _DIGITS else -1
    if isinstance(node, Inert) and node.listed:
        node = node.listed
    if isinstance(node, dict):
        return node.get(name, node.get(number))
    return node[number] if isinstance(node, list) and 0 <= number < len(node) else None


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
    if state := _tensors(found, leaf) or _numbered(found, leaf):
        return state
    raise InputError(f"no tensors under key {key!r}", where=path, remedy=_offer(candidates))


def _tensors(value: object, leaf: type[Leaf]) -> dict[str, Leaf]:
    """The entries of a dict that are tensors under a text key."""
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, leaf)}


def _numbered(value: object, leaf: type[Leaf]) -> dict[str, Leaf]:
    """The tensors of a list of nothing else, by their number."""
    listed = value.listed if isinstance(value, Inert) else value
    if not isinstance(listed, list):
        return {}
    items = dict(enumerate(listed))
    found = {str(k): v for k, v in items.items() if isinstance(v, leaf)}
    return found if len(found) == len(items) else {}


def _groups(
    content: object, leaf: type[Leaf], take: Callable[[object, type[Leaf]], dict[str, Leaf]]
) -> Iterator[tuple[str, dict[str, Leaf]]]:
    """Dotted names of what ``take`` finds: at the top level and, below it, the outermost."""
    if top := take(content, leaf):
        yield TOP, top
    # What is there again and again is looked at once.
    seen: set[int] = set()
    taken: dict[int, dict[str, Leaf]] = {}
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    while waiting:
        prefix, value, depth = waiting.pop()
        if not isinstance(value, dict) or id(value) in seen or depth > _DEEPEST:
            continue
        seen.add(id(value))
        below = []
        for k, v in value.items():
            if not isinstance(v, dict | list) or len(prefix) + len(_name(k)) > _LONGEST:
                continue
            if id(v) not in taken:
                taken[id(v)] = take(v, leaf)
            if state := taken[id(v)]:
                yield f"{prefix}{k}", state
            else:
                below.append((f"{prefix}{k}.", v, depth + 1))
        waiting += below[::-1]


def _name(key: object) -> str:
    """A key of a dict as text."""
    return key if isinstance(key, str) else str(key)


def _listed(candidates: Mapping[str, object]) -> str:
    """Names, of many only the first."""
    more = len(candidates) - _OFFERED
    return ", ".join(list(candidates)[:_OFFERED]) + (f" and {more} others" if more > 0 else "")


def _offer(candidates: Mapping[str, object]) -> str:
    """What keys there are instead."""
    nested = {name: state for name, state in candidates.items() if name != TOP}
    return f"there are {_listed(nested)}" if nested else "it holds no nested dicts of tensors"
