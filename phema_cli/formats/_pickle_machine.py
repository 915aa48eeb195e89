"""A pickle machine that imports nothing, calls only stand-ins and skips over long strings of bytes.

It walks the opcodes of a file, so that each string of bytes, such as the values of a tensor, is
known by its place and never read.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple, cast

from phema_cli.errors import InputError, UnsafePickleError

#: the longest text or number that is read.
_MOST_BYTES = 64 << 20
#: bits of the largest number, which must be short enough to be written out.
_MOST_BITS = 4096
_LENGTHS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}
_OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}


class Span(NamedTuple):
    """A string of bytes in the file."""

    offset: int
    length: int


class Inert:
    """Stands for an object whose class is not known: what it was made from, and its state."""

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: str, arguments: tuple[object, ...] = ()) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: dict[object, object] = {}


class Kind:
    """Answers a class: makes inert objects, or what ``make`` gives."""

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[..., object] | None = None) -> None:
        self.name = name
        self.make = make

    def __call__(self, *arguments: object) -> object:
        """An object of the class."""
        return Inert(self.name, arguments) if self.make is None else self.make(*arguments)


#: gives the stand-in of a global, None where it is not allowed.
Find = Callable[[str, str], object]
#: describes a storage that a persistent id names.
Persistent = Callable[[object], object]


class Machine:
    """Reads pickles from a file, one after the other.

    Args:
        file: open for reading bytes, at the beginning of a pickle.
        end: where its last pickle must have ended.
        find: answers globals.
        persistent: answers persistent ids; without it there are none.
    """

    def __init__(
        self, file: IO[bytes], end: int, find: Find, persistent: Persistent | None = None
    ) -> None:
        self._file = file
        self._end = end
        self._find = find
        self._persistent = persistent
        self._reset()

    def _reset(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """The content of the pickle that begins here; the file is left behind its end.

        Raises:
            UnsafePickleError: it asks for a global that is not allowed; names it.
            InputError: it does what such a pickle never does, or ends too early.
        """
        self._reset()
        while True:
            name, argument = self._next()
            if self._file.tell() > self._end:
                raise InputError("goes beyond its end")
            if name == "STOP":
                return self._stack.pop()
            action = _ACTIONS.get(name)
            if action is None:
                raise InputError(f"opcode {name}")
            action(self, argument)

    def _next(self) -> tuple[str, Any]:
        """The next opcode and its argument."""
        op = _OPCODES.get(self._file.read(1))
        if op is None:
            raise InputError("not an opcode, or the end")
        if op.name in _LENGTHS:
            length = int.from_bytes(self._file.read(_LENGTHS[op.name]), "little")
            span = Span(self._file.tell(), length)
            self._file.seek(min(span.offset + length, self._end + 1))
            return op.name, span
        return op.name, None if op.arg is None else op.arg.reader(
            cast("IO[bytes]", _Bounded(self._file))
        )

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:  # noqa: ANN401 - whatever the pickle has there
        """Take the value on top."""
        return self._stack.pop()

    def top(self) -> Any:  # noqa: ANN401 - whatever the pickle has there
        """The value on top."""
        return self._stack[-1]

    def mark(self) -> None:
        """Begin to collect."""
        self._marks.append(self._stack)
        self._stack = []

    def collected(self) -> list[Any]:
        """What was collected since the last mark."""
        items, self._stack = self._stack, self._marks.pop()
        return items

    def store(self, index: int) -> None:
        """Remember the value on top."""
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        """Remember the value on top under the next number."""
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, index: int) -> None:
        """Put a remembered value on the stack."""
        self._stack.append(self._memo[index])

    def ask(self, module: object, name: object) -> None:
        """Put the stand-in of a global on the stack."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise InputError("a global whose name is no text")
        found = self._find(module, name)
        if found is None:
            raise UnsafePickleError(f"the pickle asks for {module:.200}.{name:.200}")
        self._stack.append(found)

    def name_storage(self, pid: object) -> None:
        """Put what a persistent id names on the stack."""
        if self._persistent is None:
            raise InputError("unknown persistent id")
        self._stack.append(self._persistent(pid))


class _Bounded:
    """A file of which texts and numbers of a sane length are read."""

    __slots__ = ("_file",)

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, length: int) -> bytes:
        """Read on."""
        if length > _MOST_BYTES:
            raise InputError(f"a text or number of {length} bytes")
        return self._file.read(length)

    def readline(self) -> bytes:
        """Read on to the end of a line."""
        return self._file.readline(_MOST_BYTES)


def _call(machine: Machine, function: object, arguments: object) -> None:
    """Call a stand-in."""
    if not callable(function) or not isinstance(arguments, tuple):
        raise InputError("a call of what is no function")
    machine.push(function(*arguments))


def _reduce(machine: Machine, _: object) -> None:
    arguments = machine.pop()
    _call(machine, machine.pop(), arguments)


def _newobj_ex(machine: Machine, _: object) -> None:
    if machine.pop():
        raise InputError("a class called with keywords")
    _reduce(machine, None)


def _obj(machine: Machine, _: object) -> None:
    function, *arguments = machine.collected()
    _call(machine, function, tuple(arguments))


def _inst(machine: Machine, argument: str) -> None:
    arguments = tuple(machine.collected())
    machine.ask(*argument.split(" ", 1))
    _call(machine, machine.pop(), arguments)


def _stack_global(machine: Machine, _: object) -> None:
    name = machine.pop()
    machine.ask(machine.pop(), name)


def _build(machine: Machine, _: object) -> None:
    """State: of objects that stand for others; what a dict has besides its items is dropped."""
    state = machine.pop()
    target = machine.top()
    if isinstance(target, Inert):
        # A dict, or one beside that of the slots; numpy's states are tuples of their own kind.
        for part in state if isinstance(state, tuple) else (state,):
            target.state.update(part if isinstance(part, dict) else {})
    elif not isinstance(target, dict):
        raise InputError("state for what has none")


def _keys(items: Iterable[Any]) -> list[Any]:
    """The items, if none is a container: hashing these deep enough ends the process."""
    keys = list(items)
    if any(isinstance(key, tuple | frozenset) and not isinstance(key, Span) for key in keys):
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
    return set(_keys(items))


def _set_items(machine: Machine, items: list[Any]) -> None:
    target = machine.top()
    if not isinstance(target, dict):
        raise InputError("items for what is no dict")
    _keys(items[::2])
    target.update(zip(items[::2], items[1::2], strict=True))


def _append(machine: Machine, items: list[Any]) -> None:
    if not isinstance(machine.top(), list):
        raise InputError("items for what is no list")
    machine.top().extend(items)


def _add(machine: Machine, _: object) -> None:
    items = machine.collected()
    if not isinstance(machine.top(), set):
        raise InputError("items for what is no set")
    machine.top().update(_keys(items))


def _set_item(machine: Machine, _: object) -> None:
    value = machine.pop()
    _set_items(machine, [machine.pop(), value])


def _tuple_of(count: int) -> Callable[[Machine, object], None]:
    def action(machine: Machine, _: object) -> None:
        machine.push(tuple(machine.pop() for _ in range(count))[::-1])

    return action


def _push(make: Callable[[], object]) -> Callable[[Machine, object], None]:
    return lambda machine, _: machine.push(make())


def _drop(machine: Machine, _: object) -> None:
    machine.pop()


def _drop_collected(machine: Machine, _: object) -> None:
    machine.collected()


def _value(machine: Machine, argument: object) -> None:
    machine.push(argument)


def _number(machine: Machine, argument: int) -> None:
    if argument.bit_length() > _MOST_BITS:
        raise InputError(f"a number of {argument.bit_length()} bits")
    machine.push(argument)


_VALUES = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *_LENGTHS,
)
_ACTIONS: Mapping[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(_VALUES, _value),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), _number),
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_LIST": _push(list),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_DICT": _push(dict),
    "EMPTY_SET": _push(set),
    "MARK": lambda machine, _: machine.mark(),
    "POP": _drop,
    "POP_MARK": _drop_collected,
    "DUP": lambda machine, _: machine.push(machine.top()),
    "LIST": lambda machine, _: machine.push(machine.collected()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.collected())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "FROZENSET": lambda machine, _: machine.push(frozenset(_keys(machine.collected()))),
    "DICT": lambda machine, _: _dict(machine),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _set_items(machine, machine.collected()),
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.collected()),
    "ADDITEMS": _add,
    "PUT": lambda machine, index: machine.store(int(index)),
    "BINPUT": lambda machine, index: machine.store(index),
    "LONG_BINPUT": lambda machine, index: machine.store(index),
    "MEMOIZE": lambda machine, _: machine.memoize(),
    "GET": lambda machine, index: machine.recall(int(index)),
    "BINGET": lambda machine, index: machine.recall(index),
    "LONG_BINGET": lambda machine, index: machine.recall(index),
    "GLOBAL": lambda machine, argument: machine.ask(*argument.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "OBJ": _obj,
    "INST": _inst,
    "BUILD": _build,
    "BINPERSID": lambda machine, _: machine.name_storage(machine.pop()),
}


def _dict(machine: Machine) -> None:
    """A dict of what was collected."""
    items = machine.collected()
    machine.push({})
    _set_items(machine, items)
