"""Tells whether values of guarded kinds are inside others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from phema_cli.pickles.values import Inert

_CONTAINERS = (tuple, list, dict, set, frozenset)


class Guard:
    """Looks for values of some kinds inside containers.

    Args:
        kinds: what is looked for.
        spend: accounts for what is looked at.
    """

    def __init__(self, kinds: tuple[type, ...], spend: Callable[[int], object]) -> None:
        self._kinds = kinds
        self._spend = spend
        # Containers without such values, and how long they were; kept, so that no other has their
        # place in memory. Each is looked at once, however often a pickle gives it.
        self._clean: dict[int, tuple[object, int]] = {}

    def holds(self, arguments: tuple[object, ...]) -> bool:
        """Whether such a value is among the arguments, or inside them."""
        if not self._kinds:
            return False
        waiting: list[object] = list(arguments)
        seen: dict[int, tuple[object, int]] = {}
        while waiting:
            value = waiting.pop()
            if isinstance(value, self._kinds):
                return True
            if not isinstance(value, _CONTAINERS):
                continue
            if isinstance(value, Inert) and value.hides:
                return True
            known = (value, _length(value))
            if self._clean.get(id(value)) != known and id(value) not in seen:
                self._spend(known[1])
                seen[id(value)] = known
                waiting += _items(value)
        self._clean |= seen
        return False


def _length(value: Any) -> int:  # noqa: ANN401 - a container of any kind
    """How many items a container holds; an inert object those that were set or appended."""
    listed = value.listed if isinstance(value, Inert) else None
    return len(value) + len(listed or ())


def _items(value: Any) -> Iterable[object]:  # noqa: ANN401 - a container of any kind
    """The items of a container."""
    listed = value.listed if isinstance(value, Inert) else None
    items = value.values() if isinstance(value, dict) else value
    return chain(items, listed or ())
