"""A pickle machine that imports nothing, calls only stand-ins and skips over long strings of bytes.

It walks the opcodes of a file, so that each string of bytes, such as the values of a tensor, is
known by its place and never read. Time and memory grow with the bytes of the pickle and with
nothing else, whatever the pickle says: the interpreter's own unpickler, written in C, allocates
what a pickle announces, and hashes tuples nested deep enough to end the process.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats._pickle_values import Inert, Span, keys_of

#: bytes that are read at once.
_WINDOW = 1 << 14
#: the longest number of a fixed length.
_NUMBER = 8
#: the longest text or number, and the longest line of an opcode that is one.
_MOST_BYTES, _MOST_LINE = 16 << 20, 1 << 16
#: bits of the largest number, which must be short enough to be written out.
_MOST_BITS = 4096
#: values that wait on the stack, and collections that are begun; pickles nest no deeper.
_MOST_WAITING, _MOST_MARKS = 100_000, 10_000
#: what an empty set costs, in units of ``spend``: it takes more memory than other containers.
_SET = 16
_SIZED = (list, tuple, dict, set, frozenset)

#: gives the stand-in of a global, None where it is not allowed.
Find = Callable[[str, str], object]
#: describes a storage that a persistent id names.
Persistent = Callable[[object], object]


class Machine:
    """Reads pickles from a file, one after the other.

    Args:
        file: where they are.
        start: where the first begins.
        end: where the last must have ended.
        find: answers globals.
        persistent: answers persistent ids; without it there are none.
        most: bytes that may be opcodes, and not strings that are passed over.

    Attributes:
        window: bytes of the file; behind an opcode a number's bytes are in it, but at the end.
        at: the place in the window.
        stack: values that wait for what takes them.
        memo: values that were remembered, in that order.
    """

    def __init__(
        self,
        file: IO[bytes],
        start: int,
        end: int,
        find: Find,
        persistent: Persistent | None = None,
        most: int = 256 << 20,
    ) -> None:
        self._file = file
        self._end = end
        self._left = end - start
        self._most = most
        self._find = find
        self._persistent = persistent
        # Where the window begins in the file, and from where on in it more is read.
        self._base, self._soft = start, 0
        self.window, self.at = b"", 0
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self._marks: list[int] = []

    def load(self) -> object:
        """The content of the next pickle.

        Raises:
            UnsafePickleError: it asks for a global that is not allowed; names it.
            InputError: it does what such a pickle never does, or ends too early.
        """
        self.stack, self.memo, self._marks = [], [], []
        while True:
            if self.at >= self._soft:
                self._refill(1)
            code = self.window[self.at]
            self.at += 1
            if _ACTIONS[code](self):
                return self.stack.pop()

    def tell(self) -> int:
        """The place in the file."""
        return self._base + self.at

    def _refill(self, length: int) -> None:
        """Have at least so many bytes in the window, from the place on."""
        self._base += self.at
        self._most -= self.at
        self.at = 0
        if length > self._end - self._base:
            raise InputError("goes beyond its end")
        if self._most < 0:
            raise InputError("more opcodes than such a pickle has")
        if len(self.stack) > _MOST_WAITING:
            raise InputError("more values than belong together")
        self._file.seek(self._base)
        self.window = self._file.read(min(max(length, _WINDOW), self._end - self._base))
        if len(self.window) < length:
            raise InputError("goes beyond its end")
        more = self._base + len(self.window) < self._end
        self._soft = max(1, len(self.window) - _NUMBER) if more else len(self.window)

    def take(self, length: int) -> bytes:
        """The next bytes."""
        at = self.at
        if at + length > len(self.window):
            if length > _MOST_BYTES:
                raise InputError(f"a text or number of {length} bytes")
            self._refill(length)
            at = 0
        self.at = at + length
        return self.window[at : at + length]

    def take_number(self, length: int) -> int:
        """The next bytes as a natural number."""
        return int.from_bytes(self.take(length), "little")

    def take_line(self) -> str:
        """The text up to the end of the line."""
        at = self.window.find(b"\n", self.at)
        if at < 0:
            self._refill(min(_MOST_LINE, self._end - self.tell()))
            at = self.window.find(b"\n")
            if at < 0:
                raise InputError("a line without an end")
        return self.take(at + 1 - self.at)[:-1].decode()

    def skip(self, length: int) -> Span:
        """Pass over the next bytes."""
        span = Span(self.tell(), length)
        if length > self._end - span.offset:
            raise InputError("goes beyond its end")
        self._left -= length
        self.at += length
        if self.at > len(self.window):
            self._base, self.window, self.at, self._soft = span.offset + length, b"", 0, 0
        return span

    def spend(self, count: int) -> None:
        """Account for items that a few opcodes have copied: in all not more than the bytes."""
        self._left -= count
        if self._left < 0:
            raise InputError("makes more of its bytes than they are")

    def mark(self) -> None:
        """Begin to collect."""
        if len(self._marks) >= _MOST_MARKS:
            raise InputError("is nested too deeply")
        self._marks.append(len(self.stack))

    def collected(self) -> list[Any]:
        """What was collected since the last mark."""
        at = self._marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def store(self, index: int) -> None:
        """Remember the value on top; picklers count what they remember."""
        gap = index - len(self.memo)
        if gap > 0:
            self.spend(gap)
            self.memo += [None] * gap
        if gap >= 0:
            self.memo.append(self.stack[-1])
        else:
            self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Put a remembered value on the stack."""
        if not 0 <= index < len(self.memo):
            raise InputError("recalls what it has not seen")
        self.stack.append(self.memo[index])

    def ask(self, module: object, name: object) -> None:
        """Put the stand-in of a global on the stack."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise InputError("a global whose name is no text")
        found = self._find(module, name)
        if found is None:
            raise UnsafePickleError(f"the pickle asks for {module:.200}.{name:.200}")
        self.stack.append(found)

    def call(self, function: object, arguments: object) -> None:
        """Call a stand-in."""
        if not callable(function) or not isinstance(arguments, tuple):
            raise InputError("a call of what is no function")
        # The same arguments may be given again and again, by a pickle of four bytes each time.
        cost = len(arguments)
        for argument in arguments:
            if argument.__class__ in _SIZED:
                cost += len(argument)
        self.spend(cost)
        self.stack.append(function(*arguments))

    def name_storage(self) -> None:
        """Put what a persistent id names on the stack."""
        if self._persistent is None:
            raise InputError("unknown persistent id")
        self.stack.append(self._persistent(self.stack.pop()))


#: does what an opcode says; True at the end.
_Action = Callable[[Machine], Any]


def _unpacked(form: str) -> _Action:
    """Push a number."""
    packed = struct.Struct(form)

    def action(machine: Machine) -> None:
        machine.stack.append(packed.unpack_from(machine.window, machine.at)[0])
        machine.at += packed.size

    return action


def _byte(machine: Machine) -> None:
    """Push a number of one byte."""
    machine.stack.append(machine.window[machine.at])
    machine.at += 1


def _put(machine: Machine) -> None:
    """Remember the value on top, by a number of one byte."""
    index = machine.window[machine.at]
    machine.at += 1
    if index == len(machine.memo):
        machine.memo.append(machine.stack[-1])
    else:
        machine.store(index)


def _long_put(machine: Machine) -> None:
    """Remember the value on top, by a number of four bytes."""
    index = int.from_bytes(machine.window[machine.at : machine.at + 4], "little")
    machine.at += 4
    if index == len(machine.memo):
        machine.memo.append(machine.stack[-1])
    else:
        machine.store(index)


def _get(machine: Machine) -> None:
    """Recall a value, by a number of one byte."""
    machine.stack.append(machine.memo[machine.window[machine.at]])
    machine.at += 1


def _text(digits: int) -> _Action:
    """Push a text whose length has so many bytes."""

    def action(machine: Machine) -> None:
        raw = machine.take(machine.take_number(digits))
        machine.stack.append(raw.decode("utf-8", "surrogatepass"))

    return action


def _short_text(machine: Machine) -> None:
    """Push a text whose length has four bytes, as nearly all have it."""
    window, at = machine.window, machine.at + 4
    stop = at + int.from_bytes(window[at - 4 : at], "little")
    if stop > len(window):
        _long_text(machine)
        return
    machine.stack.append(window[at:stop].decode("utf-8", "surrogatepass"))
    machine.at = stop


_long_text = _text(4)


def _number(machine: Machine, value: int) -> None:
    """Push a number of any length."""
    if value.bit_length() > _MOST_BITS:
        raise InputError(f"a number of {value.bit_length()} bits")
    machine.stack.append(value)


def _long(digits: int) -> _Action:
    """Push a number whose length has so many bytes."""
    return lambda machine: _number(
        machine, int.from_bytes(machine.take(machine.take_number(digits)), "little", signed=True)
    )


def _int(machine: Machine) -> None:
    """Push a number that is written out; 00 and 01 are truths."""
    line = machine.take_line().removesuffix("L")
    _number(machine, {"00": False, "01": True}[line] if line in {"00", "01"} else int(line))


def _span(digits: int) -> _Action:
    """Push the place of a string of bytes whose length has so many bytes."""
    return lambda machine: machine.stack.append(machine.skip(machine.take_number(digits)))


def _tuple(count: int) -> _Action:
    """Push the tuple of the last values."""

    def action(machine: Machine) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise InputError("a tuple of nothing")
        stack[-count:] = [tuple(stack[-count:])]

    return action


def _reduce(machine: Machine) -> None:
    arguments = machine.stack.pop()
    machine.call(machine.stack.pop(), arguments)


def _newobj_ex(machine: Machine) -> None:
    if machine.stack.pop():
        raise InputError("a class called with keywords")
    _reduce(machine)


def _obj(machine: Machine) -> None:
    function, *arguments = machine.collected()
    machine.call(function, tuple(arguments))


def _global(machine: Machine) -> None:
    machine.ask(machine.take_line(), machine.take_line())


def _inst(machine: Machine) -> None:
    _global(machine)
    function = machine.stack.pop()
    machine.call(function, tuple(machine.collected()))


def _stack_global(machine: Machine) -> None:
    name = machine.stack.pop()
    machine.ask(machine.stack.pop(), name)


def _build(machine: Machine) -> None:
    """State: of objects that stand for others; what a dict has besides its items is dropped."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Inert):
        target.raw = state
        if isinstance(state, dict) and not target.state:
            target.state = state
            return
        # A dict, or one beside that of the slots; numpy's states are tuples of their own kind.
        parts = state if isinstance(state, tuple) else (state,)
        machine.spend(len(parts))
        for part in parts:
            if isinstance(part, dict):
                machine.spend(len(part))
                target.state = target.state | part
    elif not isinstance(target, dict):
        raise InputError("state for what has none")


def _set_items(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise InputError("items for what is no dict")
    target.update(zip(keys_of(items[::2]), items[1::2], strict=True))


def _set_item(machine: Machine) -> None:
    value = machine.stack.pop()
    _set_items(machine, [machine.stack.pop(), value])


def _dict(machine: Machine) -> None:
    items = machine.collected()
    machine.stack.append({})
    _set_items(machine, items)


def _append(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise InputError("items for what is no list")
    target.extend(items)


def _empty_set(machine: Machine) -> None:
    machine.spend(_SET)
    machine.stack.append(set())


def _add(machine: Machine) -> None:
    items = machine.collected()
    if not isinstance(machine.stack[-1], set):
        raise InputError("items for what is no set")
    machine.stack[-1].update(keys_of(items))


def _frozen_set(machine: Machine) -> None:
    machine.spend(_SET)
    machine.stack.append(frozenset(keys_of(machine.collected())))


def _push(make: Callable[[], object]) -> _Action:
    return lambda machine: machine.stack.append(make())


def _unknown(name: str) -> _Action:
    def action(machine: Machine) -> None:
        raise InputError(f"opcode {name} at byte {machine.tell() - 1}")

    return action


_BY_NAME: Mapping[str, _Action] = {
    "PROTO": lambda machine: machine.take(1) and None,
    "FRAME": lambda machine: machine.take(8) and None,
    "STOP": lambda _: True,
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "BININT": _unpacked("<i"),
    "BININT1": _byte,
    "BININT2": _unpacked("<H"),
    "BINFLOAT": _unpacked(">d"),
    "LONG1": _long(1),
    "LONG4": _long(4),
    "INT": _int,
    "LONG": _int,
    "FLOAT": lambda machine: machine.stack.append(float(machine.take_line())),
    "SHORT_BINUNICODE": _text(1),
    "BINUNICODE": _short_text,
    "BINUNICODE8": _text(8),
    "SHORT_BINBYTES": _span(1),
    "BINBYTES": _span(4),
    "BINBYTES8": _span(8),
    "BYTEARRAY8": _span(8),
    "EMPTY_LIST": _push(list),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_DICT": _push(dict),
    "EMPTY_SET": _empty_set,
    "MARK": Machine.mark,
    "POP": lambda machine: machine.stack.pop() and None,
    "POP_MARK": lambda machine: machine.collected() and None,
    "DUP": lambda machine: machine.stack.append(machine.stack[-1]),
    "LIST": lambda machine: machine.stack.append(machine.collected()),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.collected())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "FROZENSET": _frozen_set,
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine: _set_items(machine, machine.collected()),
    "APPEND": lambda machine: _append(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine: _append(machine, machine.collected()),
    "ADDITEMS": _add,
    "PUT": lambda machine: machine.store(int(machine.take_line())),
    "BINPUT": _put,
    "LONG_BINPUT": _long_put,
    "MEMOIZE": lambda machine: machine.memo.append(machine.stack[-1]),
    "GET": lambda machine: machine.recall(int(machine.take_line())),
    "BINGET": _get,
    "LONG_BINGET": lambda machine: machine.recall(machine.take_number(4)),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "OBJ": _obj,
    "INST": _inst,
    "BUILD": _build,
    "BINPERSID": Machine.name_storage,
}
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
#: by opcode.
_ACTIONS = [
    _BY_NAME.get(name, _unknown(name))
    for name in (_NAMES.get(code, f"{code:#04x}") for code in range(256))
]
