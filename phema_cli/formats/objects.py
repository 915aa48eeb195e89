"""Objects in pickles that hold tensors: modules are read, other unknown objects are refused."""

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats.base import StoredTensor
from phema_cli.pickles import Inert

#: modules and tensors of a network, and characters of a name. A short pickle can hold one module in
#: many places, and so name more tensors than can be counted, by names longer than any memory.
_MOST_ENTRIES, _LONGEST_NAME = 200_000, 1000
#: types of values that hold others; a tensor's description and a string of bytes hold none.
_CONTAINERS: Collection[type] = frozenset({dict, list, tuple, Inert})
_REMEDY = "phema runs no code from files; re-save only the state dict with torch.save"


def module_tensors(network: Inert) -> dict[str, StoredTensor]:
    """The tensors of a pickled module, named as ``state_dict`` names them; none for other objects.

    Raises:
        InputError: there are more than a network has, or a name is not text or too long.
    """
    tensors: dict[str, StoredTensor] = {}
    left = _MOST_ENTRIES
    waiting = [("", network)]
    while waiting:
        prefix, module = waiting.pop()
        # One more than is left shows that there are too many.
        entries = list(islice(_entries(module, prefix), left + 1))
        left -= 1 + len(entries)
        if left < 0:
            raise InputError("more than 200,000 modules and tensors")
        tensors |= {name: value for name, value in entries if isinstance(value, StoredTensor)}
        below = [(f"{name}.", value) for name, value in entries if isinstance(value, Inert)]
        waiting += below[::-1]
    return tensors


def _entries(module: Inert, prefix: str) -> Iterator[tuple[str, object]]:
    """Names and values of a module's parameters, stored buffers and direct submodules."""
    unsaved = module.state.get("_non_persistent_buffers_set")
    unsaved = unsaved if isinstance(unsaved, set) else set()
    for kind in ("_parameters", "_buffers", "_modules"):
        entries = module.state.get(kind)
        for name, value in entries.items() if isinstance(entries, dict) else ():
            if not isinstance(name, str) or len(prefix) + len(name) > _LONGEST_NAME:
                raise InputError("a tensor whose name is not text, or too long")
            # A buffer that state_dict leaves out counts too.
            yield prefix + name, None if kind == "_buffers" and name in unsaved else value


def refuse_hidden(
    content: object, path: Path, is_ignored: Callable[[object], bool] = lambda _: False
) -> None:
    """Refuse an object of an unknown class that was made from tensors: its values are unknown.

    Args:
        content: what a file holds.
        path: the file, for messages.
        is_ignored: whether the value of a key is never weights.

    Raises:
        UnsafePickleError: there is one; names its class.
    """
    for value in _containers(content, is_ignored):
        if isinstance(value, Inert) and value.hides:
            raise _hides(value, path)


def refuse_beside(weights: object, path: Path, is_ignored: Callable[[object], bool]) -> None:
    """Refuse a dict of weights in which an object of an unknown class has tensors in its state.

    Args:
        weights: a dict of weights, or anything else, which passes.
        path: the file, for messages.
        is_ignored: whether the value of a key is never weights.

    Raises:
        UnsafePickleError: there is one; names its class.
    """
    entries = weights.items() if isinstance(weights, dict) else ()
    for key, value in entries:
        if isinstance(value, Inert) and not is_ignored(key):
            for inside in _containers([value.state, value.raw_state], is_ignored):
                values = inside.values() if isinstance(inside, dict) else inside
                if any(isinstance(item, StoredTensor) for item in values):
                    raise _hides(value, path)


def _hides(value: Inert, path: Path) -> UnsafePickleError:
    """The error for an object that hides tensors."""
    what = f"hides tensors behind {value.class_name}"
    return UnsafePickleError(what, where=path, remedy=_REMEDY)


def _containers(
    content: object, is_ignored: Callable[[object], bool]
) -> Iterator[dict[object, object] | list[object] | tuple[object, ...]]:
    """All containers and inert objects at any depth, each once, even if one holds itself."""
    seen: set[int] = set()
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if value.__class__ not in _CONTAINERS or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting += [
                item
                for key, item in value.items()
                if item.__class__ in _CONTAINERS and not is_ignored(key)
            ]
            if isinstance(value, Inert):
                waiting += (value.state, value.raw_state, value.appended)
        else:
            waiting += [item for item in value if item.__class__ in _CONTAINERS]
