"""What each opcode of a pickle does to the machine; opcodes that are not here are refused."""

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

from phema_cli.errors import InputError
from phema_cli.pickles.machine import Machine
from phema_cli.pickles.values import Inert, hashable

#: bits of the largest number: messages may write it out.
_MOST_BITS = 4096
#: items that an empty set counts for in ``spend``: it takes more memory than other containers.
_SET = 16

#: does what an opcode says; returns True at the end of the pickle.
_Action = Callable[[Machine], Any]


def _unpack(layout: str) -> _Action:
    """Push a number of this ``struct`` layout."""
    packed = struct.Struct(layout)

    def action(machine: Machine) -> None:
        machine.stack.append(packed.unpack_from(machine.window, machine.at)[0])
        machine.at += packed.size

    return action


def _byte(machine: Machine) -> None:
    """Push a number of one byte."""
    machine.stack.append(machine.window[machine.at])
    machine.at += 1


def _put(size: int) -> _Action:
    """Remember the value on top; so many bytes say its index."""

    def action(machine: Machine) -> None:
        index = int.from_bytes(machine.window[machine.at : machine.at + size], "little")
        machine.at += size
        if index == len(machine.memo):
            machine.memo.append(machine.stack[-1])
        else:
            machine.memoize(index)

    return action


def _get(machine: Machine) -> None:
    """Recall a value; one byte says its index."""
    machine.stack.append(machine.memo[machine.window[machine.at]])
    machine.at += 1


def _text(digits: int) -> _Action:
    """Push a text; so many bytes say its length."""

    def action(machine: Machine) -> None:
        raw = machine.take(machine.take_number(digits))
        machine.stack.append(raw.decode("utf-8", "surrogatepass"))

    return action


_any_text = _text(4)


def _usual_text(machine: Machine) -> None:
    """Push a text; four bytes say its length. Nearly all texts are so, and lie in the window."""
    window, at = machine.window, machine.at + 4
    stop = at + int.from_bytes(window[at - 4 : at], "little")
    if stop > len(window):
        _any_text(machine)
        return
    machine.stack.append(window[at:stop].decode("utf-8", "surrogatepass"))
    machine.at = stop


def _number(machine: Machine, value: int) -> None:
    """Push a number of any length."""
    if value.bit_length() > _MOST_BITS:
        raise InputError(f"a number of {value.bit_length()} bits is too long")
    machine.stack.append(value)


def _long(digits: int) -> _Action:
    """Push a number; so many bytes say its length."""
    return lambda machine: _number(
        machine, int.from_bytes(machine.take(machine.take_number(digits)), "little", signed=True)
    )


def _int(machine: Machine) -> None:
    """Push a number that is written out; 00 and 01 are booleans."""
    line = machine.take_line().removesuffix("L")
    _number(machine, {"00": False, "01": True}[line] if line in {"00", "01"} else int(line))


def _span(digits: int) -> _Action:
    """Push the place of a string of bytes; so many bytes say its length."""
    return lambda machine: machine.stack.append(machine.skip(machine.take_number(digits)))


def _tuple(count: int) -> _Action:
    """Push the tuple of the last values."""

    def action(machine: Machine) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise InputError("a tuple of more values than the stack has")
        stack[-count:] = [tuple(stack[-count:])]

    return action


def _reduce(machine: Machine) -> None:
    arguments = machine.stack.pop()
    machine.call(machine.stack.pop(), arguments)


def _newobj_ex(machine: Machine) -> None:
    """Keywords become one more argument: only unknown classes are called with them."""
    keywords, arguments = machine.stack.pop(), machine.stack.pop()
    if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
        raise InputError("calls a class with keywords that are not a dict")
    machine.call(machine.stack.pop(), (*arguments, keywords) if keywords else arguments)


def _obj(machine: Machine) -> None:
    function, *arguments = machine.pop_mark()
    machine.call(function, tuple(arguments))


def _global(machine: Machine) -> None:
    machine.push_global(machine.take_line(), machine.take_line())


def _inst(machine: Machine) -> None:
    _global(machine)
    function = machine.stack.pop()
    machine.call(function, tuple(machine.pop_mark()))


def _stack_global(machine: Machine) -> None:
    name = machine.stack.pop()
    machine.push_global(machine.stack.pop(), name)


def _build(machine: Machine) -> None:
    """Set the state of an inert object; the state of a dict is dropped."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Inert):
        target.raw_state = state
        if isinstance(state, dict) and not target.state:
            target.state = state
            return
        # A dict, or two where a class has slots; states of numpy are other tuples.
        parts = state if isinstance(state, tuple) else (state,)
        machine.spend(len(parts))
        for part in parts:
            if isinstance(part, dict):
                machine.spend(len(part))
                target.state = target.state | part
    elif not isinstance(target, dict):
        raise InputError("sets the state of something that has none")


def _set_items(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict):
        raise InputError("sets items of something that is not a dict")
    target.update(zip(hashable(items[::2]), items[1::2], strict=True))


def _set_item(machine: Machine) -> None:
    value = machine.stack.pop()
    _set_items(machine, [machine.stack.pop(), value])


def _dict(machine: Machine) -> None:
    items = machine.pop_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _append(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Inert):
        target.append_all(items)
    elif isinstance(target, list):
        target.extend(items)
    else:
        raise InputError("appends to something that is not a list")


def _empty_set(machine: Machine) -> None:
    machine.spend(_SET)
    machine.stack.append(set())


def _add(machine: Machine) -> None:
    items = machine.pop_mark()
    target = machine.stack[-1]
    if isinstance(target, Inert):
        target.append_all(items)
    elif isinstance(target, set):
        target.update(hashable(items))
    else:
        raise InputError("adds to something that is not a set")


def _frozen_set(machine: Machine) -> None:
    machine.spend(_SET)
    machine.stack.append(frozenset(hashable(machine.pop_mark())))


def _push(make: Callable[[], object]) -> _Action:
    return lambda machine: machine.stack.append(make())


def _unknown(name: str) -> _Action:
    def action(machine: Machine) -> None:
        raise InputError(f"unsupported opcode {name} at byte {machine.tell() - 1}")

    return action


_BY_NAME: Mapping[str, _Action] = {
    "PROTO": lambda machine: machine.take(1) and None,
    "FRAME": lambda machine: machine.take(8) and None,
    "STOP": lambda _: True,
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "BININT": _unpack("<i"),
    "BININT1": _byte,
    "BININT2": _unpack("<H"),
    "BINFLOAT": _unpack(">d"),
    "LONG1": _long(1),
    "LONG4": _long(4),
    "INT": _int,
    "LONG": _int,
    "FLOAT": lambda machine: machine.stack.append(float(machine.take_line())),
    "SHORT_BINUNICODE": _text(1),
    "BINUNICODE": _usual_text,
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
    "POP_MARK": lambda machine: machine.pop_mark() and None,
    "DUP": lambda machine: machine.stack.append(machine.stack[-1]),
    "LIST": lambda machine: machine.stack.append(machine.pop_mark()),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.pop_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "FROZENSET": _frozen_set,
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine: _set_items(machine, machine.pop_mark()),
    "APPEND": lambda machine: _append(machine, [machine.stack.pop()]),
    "APPENDS": lambda machine: _append(machine, machine.pop_mark()),
    "ADDITEMS": _add,
    "PUT": lambda machine: machine.memoize(int(machine.take_line())),
    "BINPUT": _put(1),
    "LONG_BINPUT": _put(4),
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
    "BINPERSID": Machine.push_persistent,
}
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
#: by opcode.
_ACTIONS = [
    _BY_NAME.get(name, _unknown(name))
    for name in (_NAMES.get(code, f"{code:#04x}") for code in range(256))
]


class Unpickler(Machine):
    """The machine with its opcodes: reads pickles from a file, one after the other."""

    def load(self) -> object:
        """The content of the next pickle.

        Raises:
            UnsafePickleError: it asks for a global that could do harm; names it.
            InputError: it breaks the rules of pickles, a bound, or ends too early.
        """
        self.stack, self.memo, self._marks = [], [], []
        while True:
            if self.at >= self._soft:
                self._refill(1)
            code = self.window[self.at]
            self.at += 1
            if _ACTIONS[code](self):
                return self.stack.pop()
