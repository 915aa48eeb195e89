"""What a pickle is made of here: places of bytes, inert objects, and calls of stand-ins alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from phema_cli.errors import InputError


class Span(NamedTuple):
    """A string of bytes in the file."""

    offset: int
    length: int


class Inert:
    """Stands for an object whose class is not known: what it was made from, and its state.

    Attributes:
        kind: the name of its class.
        arguments: what it was made from.
        state: its fields.
        raw: its state as it came, which may be no dict.
    """

    __slots__ = ("arguments", "kind", "raw", "state")

    def __init__(self, kind: str, arguments: tuple[object, ...] = ()) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: dict[object, object] = {}
        self.raw: object = None


class Kind:
    """Answers a class: makes inert objects, or what ``make`` gives."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[..., object] | None = None) -> None:
        self.name = name
        self.make = make

    def __call__(self, *arguments: object) -> object:
        """An object of the class."""
        return Inert(self.name, arguments) if self.make is None else self.make(*arguments)


def keys_of(items: Iterable[Any]) -> list[Any]:
    """The items, if none is a container: hashing these deep enough ends the process."""
    keys = list(items)
    for key in keys:
        kind = key.__class__
        if kind is not str and issubclass(kind, tuple | frozenset) and kind is not Span:
            raise InputError("a key that holds others")
    return keys


def dict_of(*arguments: object) -> dict[object, object]:
    """An empty dict: pickles fill dicts after they have made them."""
    if arguments:
        raise InputError("a dict made of something")
    return {}


def set_of(items: object = ()) -> set[object]:
    """The set of a list's items."""
    if not isinstance(items, list | tuple):
        raise InputError("a set of what is no list")
    return set(keys_of(items))
