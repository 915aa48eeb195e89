"""Refuses what hides tensors: objects of unknown classes that were made from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from phema_cli.errors import UnsafePickleError
from phema_cli.pickles import Inert

#: what is looked into; what describes a tensor, or a string of bytes, is a class of its own.
_KINDS: Collection[type] = frozenset({dict, list, tuple, Inert})
_REMEDY = "phema runs no code from files; re-save only the state dict with torch.save"


def refuse_hidden(
    content: object, path: Path, passing: Callable[[object], bool] = lambda _: False
) -> None:
    """Refuse an object that was made from tensors: their values could be anything.

    Args:
        content: what a file holds.
        path: the file, for messages.
        passing: whether what lies under a key is never weights.

    Raises:
        UnsafePickleError: there is one; names its class.
    """
    for value in _containers(content, passing):
        if isinstance(value, Inert) and value.hides:
            raise _hides(value, path)


def refuse_beside(
    weights: object, path: Path, leaf: type, passing: Callable[[object], bool]
) -> None:
    """Refuse a dict of weights that has tensors in the state of an unknown object beside others.

    Raises:
        UnsafePickleError: there is one; names its class.
    """
    entries = weights.items() if isinstance(weights, dict) else ()
    for key, value in entries:
        if isinstance(value, Inert) and not passing(key):
            for inside in _containers([value.state, value.raw], passing):
                values = inside.values() if isinstance(inside, dict) else inside
                if any(isinstance(item, leaf) for item in values):
                    raise _hides(value, path)


def _hides(value: Inert, path: Path) -> UnsafePickleError:
    """The error for an object that hides tensors."""
    return UnsafePickleError(f"hides tensors behind {value.kind}", where=path, remedy=_REMEDY)


def _containers(
    content: object, passing: Callable[[object], bool]
) -> Iterator[dict[object, object] | list[object] | tuple[object, ...]]:
    """All containers and inert objects that are in one, each once, whatever holds itself."""
    seen: set[int] = set()
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if value.__class__ not in _KINDS or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting += [
                item for key, item in value.items() if item.__class__ in _KINDS and not passing(key)
            ]
            if isinstance(value, Inert):
                waiting += (value.state, value.raw, value.listed)
        else:
            waiting += [item for item in value if item.__class__ in _KINDS]
