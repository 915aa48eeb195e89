"""Pickled modules: their tensors, named as ``state_dict`` names them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from phema_cli.errors import InputError
from phema_cli.formats.base import StoredTensor
from phema_cli.pickles import Inert

# A module may be there twice, so that a short pickle can hold more of them, and of tensors, than
# can be counted, and names longer than any memory.
_MOST_ENTRIES, _LONGEST_NAME = 200_000, 1000


def module_tensors(network: Inert) -> dict[str, StoredTensor]:
    """The tensors of a module and those below it, none where the object is no module.

    Raises:
        InputError: there are more than a network has, or names that are none.
    """
    tensors: dict[str, StoredTensor] = {}
    left = _MOST_ENTRIES
    waiting = [("", network)]
    while waiting:
        prefix, module = waiting.pop()
        # One more than is left is enough to know that there are too many.
        entries = list(islice(_entries(module, prefix), left + 1))
        left -= 1 + len(entries)
        if left < 0:
            raise InputError("more modules and tensors than a network has")
        tensors |= {name: value for name, value in entries if isinstance(value, StoredTensor)}
        below = [(f"{name}.", value) for name, value in entries if isinstance(value, Inert)]
        waiting += below[::-1]
    return tensors


def _entries(module: Inert, prefix: str) -> Iterator[tuple[str, object]]:
    """A module's own parameters and stored buffers, and the modules in it, with their names."""
    passing = module.state.get("_non_persistent_buffers_set")
    hidden = passing if isinstance(passing, set) else set()
    for kind in ("_parameters", "_buffers", "_modules"):
        entries = module.state.get(kind)
        for name, value in entries.items() if isinstance(entries, dict) else ():
            if not isinstance(name, str) or len(prefix) + len(name) > _LONGEST_NAME:
                raise InputError("a tensor whose name is none, or too long")
            # What is hidden is counted too.
            yield prefix + name, None if kind == "_buffers" and name in hidden else value
