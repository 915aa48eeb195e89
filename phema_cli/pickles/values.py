"""What a pickle is made of here: places of bytes, classes that are names, and inert objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

#: numbers from here on can have the same hash, as many as one likes.
_MOST_HASHED = 1 << 60
_NESTING = (tuple, frozenset)


class Span(NamedTuple):
    """A string of bytes in the file.

    Attributes:
        offset: where it begins.
        length: of how many bytes.
        raw: the bytes, where they are few.
    """

    offset: int
    length: int
    raw: bytes = b""


class Inert(dict[Any, Any]):
    """Stands for an object whose class is not known: what it was made from, and its state.

    It is a dict of the items that the pickle sets, so that an object of an unknown dict's class
    reads as that dict. As a key it is itself and nothing else.

    Attributes:
        kind: the name of its class.
        arguments: what it was made from.
        state: its fields.
        raw: its state as it came, which may be no dict.
        listed: the items that the pickle appends, where it is a list or a set; else None.
        hides: whether values that the format guards are among what it was made from.
    """

    __slots__ = ("arguments", "hides", "kind", "listed", "raw", "state")
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(self, kind: str, arguments: tuple[object, ...] = ()) -> None:
        super().__init__()
        self.kind = kind
        self.arguments = arguments
        self.state: dict[Any, Any] = {}
        self.raw: object = None
        self.listed: list[Any] | None = None
        self.hides = False

    def __repr__(self) -> str:
        """Its class alone: what it holds may hold itself."""
        return f"<{self.kind}>"

    def append_all(self, items: Iterable[object]) -> None:
        """Take items of a list or a set."""
        if self.listed is None:
            self.listed = []
        self.listed.extend(items)


class Kind:
    """Answers a class or a function: makes inert objects, or what ``make`` gives."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[..., object] | None = None) -> None:
        self.name = name
        self.make = make

    def __call__(self, *arguments: object) -> object:
        """An object of the class."""
        return Inert(self.name, arguments) if self.make is None else self.make(*arguments)


class Boxed:
    """A key that holds others, or a number of many digits: as a key it is itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def keys_of(items: Iterable[Any]) -> list[Any]:
    """The items as keys.

    To hash tuples that are nested deep enough ends the process, and tuples and large numbers of
    one hash make a dict as slow as a list: these are boxed.
    """
    keys = list(items)
    for i, key in enumerate(keys):
        kind = key.__class__
        if kind is str or kind is Span:
            continue
        large = kind is int and not -_MOST_HASHED < key < _MOST_HASHED
        if large or issubclass(kind, _NESTING):
            keys[i] = Boxed(key)
    return keys


def opened(value: object) -> object:
    """What an inert object holds, as a dict or a list; any other value as it is.

    Its items come first, then its state. OmegaConf's objects are what they were made from.
    """
    if not isinstance(value, Inert) or value:
        return value
    if value.listed is not None:
        return value.listed
    if value.kind.startswith("omegaconf."):
        return value.state.get("_content", value.state.get("_val"))
    return value.state
