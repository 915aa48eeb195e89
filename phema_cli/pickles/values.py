"""What the machine makes of a pickle: places of bytes, stand-ins for classes, inert objects."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

#: from here on many numbers can have the same hash.
_MOST_HASHED = 1 << 60
_NESTING = (tuple, frozenset)


class Span(NamedTuple):
    """A string of bytes in the file.

    Attributes:
        offset: its first byte in the file.
        length: in bytes.
        raw: the bytes themselves, if they are few.
    """

    offset: int
    length: int
    raw: bytes = b""


class Inert(dict[Any, Any]):
    """Stands for an object of an unknown class: holds what it was made from, and its state.

    It is a dict of the items that the pickle sets, so that an object of an unknown subclass of
    dict reads as that dict. As a key it equals only itself.

    Attributes:
        class_name: the class, with its module.
        arguments: what it was made from.
        state: its fields.
        raw_state: its state as the pickle gives it, which need not be a dict.
        appended: the items of a list or a set; None if the pickle appends nothing.
        hides: whether values that the format guards are among what it was made from.
    """

    __slots__ = ("appended", "arguments", "class_name", "hides", "raw_state", "state")
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(
        self, class_name: str, arguments: tuple[object, ...] = (), *, hides: bool = False
    ) -> None:
        super().__init__()
        self.class_name = class_name
        self.arguments = arguments
        self.state: dict[Any, Any] = {}
        self.raw_state: object = None
        self.appended: list[Any] | None = None
        self.hides = hides

    def __repr__(self) -> str:
        """Its class alone: what it holds may hold itself."""
        return f"<{self.class_name}>"

    def append_all(self, items: Iterable[object]) -> None:
        """Append items of a list or a set."""
        if self.appended is None:
            self.appended = []
        self.appended.extend(items)


class StandIn:
    """Stands for a class or a function that a pickle names.

    A call makes an inert object, or what ``make`` returns. A pickle can hand a stand-in on and
    call it, but not change it.
    """

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[..., object] | None = None) -> None:
        self.name = name
        self.make = make

    def __call__(self, *arguments: object) -> object:
        """An object of the class, or the function's result."""
        return Inert(self.name, arguments) if self.make is None else self.make(*arguments)


def stand_ins(
    modules: tuple[str, ...], makers: Mapping[str, Callable[..., object] | None]
) -> dict[tuple[str, str], StandIn]:
    """Stand-ins by module and name.

    Args:
        modules: the names that one module has had over time; the first is shown.
        makers: what makes each object, by the name in the module.
    """
    made = {name: StandIn(f"{modules[0]}.{name}", make) for name, make in makers.items()}
    return {(module, name): stand_in for module in modules for name, stand_in in made.items()}


class _Boxed:
    """A key that is nested, or a number of many digits; it equals only itself."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


def hashable(items: Iterable[Any]) -> list[Any]:
    """The items as keys of a dict.

    Hashing deeply nested tuples ends the process, and many tuples or large numbers of the same
    hash make a dict as slow as a list: such keys are boxed.
    """
    keys = list(items)
    for i, key in enumerate(keys):
        kind = key.__class__
        if kind is str or kind is Span:
            continue
        large = kind is int and not -_MOST_HASHED < key < _MOST_HASHED
        if large or issubclass(kind, _NESTING):
            keys[i] = _Boxed(key)
    return keys


def opened(value: object) -> object:
    """The dict or list that an inert object holds; any other value as it is.

    Items come before the state. Objects of OmegaConf hold their content in the state.
    """
    if not isinstance(value, Inert) or value:
        return value
    if value.appended is not None:
        return value.appended
    if value.class_name.startswith("omegaconf."):
        return value.state.get("_content", value.state.get("_val"))
    return value.state
