"""The state of a pickle machine that imports nothing, calls only stand-ins and skips bytes.

``opcodes`` says what each opcode does to it, and walks those of a file, so that each string of
bytes, such as the values of a tensor, is known by its place and never read. Time and memory grow
with the bytes of the pickle and with nothing else, whatever the pickle says: the interpreter's own
unpickler, written in C, allocates what a pickle announces, and hashes tuples nested deep enough to
end the process.
"""

from collections.abc import Callable
from itertools import chain
from typing import IO, Any

from phema_cli.errors import InputError
from phema_cli.pickles.globals import find_global
from phema_cli.pickles.values import Inert, Span

#: bytes that are read at once.
_WINDOW = 1 << 14
#: bytes of the longest number of a fixed length.
_NUMBER = 8
#: bytes of the longest text or number, and of the longest line of an opcode that takes one.
_MOST_BYTES, _MOST_LINE = 16 << 20, 1 << 16
#: values that wait on the stack (picklers leave 2,000 for a dict), and open marks.
_MOST_WAITING, _MOST_MARKS = 100_000, 10_000
_CONTAINERS = (tuple, list, dict, set, frozenset)
#: what a call may copy as a whole.
_COPIED = (*_CONTAINERS, Inert)
#: the longest name of a global with its module, in characters and in parts.
_MOST_NAME, _MOST_PARTS = 1000, 50
#: bytes of the longest string of bytes that is kept: the longest number of numpy.
_KEPT = 16

#: the format's own stand-in for a global, given its module and name; None if it has none.
Find = Callable[[str, str], object]
#: the storage that a persistent id names.
Persistent = Callable[[object], object]


class Machine:
    """Where the machine is in a file, and what it holds.

    Args:
        file: where they are.
        start: the first byte of the first one.
        end: where the last one must have ended.
        find: answers the globals of the format; :func:`find_global` answers all others.
        persistent: answers persistent ids; without it they are refused.
        most: bytes of opcodes, not counting the strings that are skipped.
        guarded: types of values that hide if an object of an unknown class is made from them
            (:attr:`Inert.hides`).

    Attributes:
        window: bytes of the file; except at the end it holds a number that follows an opcode.
        at: the place in the window.
        stack: values that wait for the opcode that takes them.
        memo: remembered values, in that order.
    """

    def __init__(
        self,
        file: IO[bytes],
        start: int,
        end: int,
        find: Find,
        persistent: Persistent | None = None,
        most: int = 256 << 20,
        guarded: tuple[type, ...] = (),
    ) -> None:
        self._file = file
        self._end = end
        #: items that opcodes may still copy.
        self._left = end - start
        self._most = most
        self._find = find
        self._persistent = persistent
        self._guarded = guarded
        # Containers without guarded values, and how long they were; kept, so that no other gets
        # their place in memory. Each is looked at once, however often a pickle passes it.
        self._clean: dict[int, tuple[object, int]] = {}
        # Where the window begins in the file, and the place in it from which on more is read.
        self._base, self._soft = start, 0
        self.window, self.at = b"", 0
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self._marks: list[int] = []

    def tell(self) -> int:
        """The place in the file."""
        return self._base + self.at

    def _refill(self, length: int) -> None:
        """Read on, so that the window holds at least so many bytes from the place on."""
        self._base += self.at
        self._most -= self.at
        self.at = 0
        if length > self._end - self._base:
            raise InputError("ends too early")
        if self._most < 0:
            raise InputError("too many opcodes")
        if len(self.stack) > _MOST_WAITING:
            raise InputError("too many values on the stack")
        self._file.seek(self._base)
        self.window = self._file.read(min(max(length, _WINDOW), self._end - self._base))
        if len(self.window) < length:
            raise InputError("ends too early")
        more = self._base + len(self.window) < self._end
        self._soft = max(1, len(self.window) - _NUMBER) if more else len(self.window)

    def take(self, length: int) -> bytes:
        """The next bytes."""
        at = self.at
        if at + length > len(self.window):
            if length > _MOST_BYTES:
                raise InputError(f"a text or number of {length} bytes is too long")
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
                raise InputError("a line that does not end")
        return self.take(at + 1 - self.at)[:-1].decode()

    def skip(self, length: int) -> Span:
        """Pass over the next bytes."""
        span = Span(self.tell(), length)
        if length > self._end - span.offset:
            raise InputError("ends too early")
        if length <= _KEPT:
            return span._replace(raw=self.take(length))
        self._left -= length
        self.at += length
        if self.at > len(self.window):
            self._base, self.window, self.at, self._soft = span.offset + length, b"", 0, 0
        return span

    def spend(self, count: int) -> None:
        """Account for items that an opcode copies: in all no more than the pickle has bytes."""
        self._left -= count
        if self._left < 0:
            raise InputError("copies more items than it has bytes")

    def mark(self) -> None:
        """Open a collection."""
        if len(self._marks) >= _MOST_MARKS:
            raise InputError("nested too deeply")
        self._marks.append(len(self.stack))

    def pop_mark(self) -> list[Any]:
        """The values since the last mark, taken from the stack."""
        at = self._marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def memoize(self, index: int) -> None:
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
        """Push a remembered value."""
        if not 0 <= index < len(self.memo):
            raise InputError("recalls a value that it did not store")
        self.stack.append(self.memo[index])

    def push_global(self, module: object, name: object) -> None:
        """Push the stand-in for a global."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise InputError("a global whose name is not text")
        # A pickle can repeat one text in two bytes.
        if len(module) + len(name) > _MOST_NAME:
            raise InputError("a global whose name is too long")
        full = f"{module}.{name}"
        if not full.isprintable() or full.count(".") > _MOST_PARTS:
            raise InputError("a global whose name is invalid")
        stand_in = self._find(module, name)
        self.stack.append(find_global(module, name) if stand_in is None else stand_in)

    def call(self, function: object, arguments: object) -> None:
        """Call a stand-in, and push the result."""
        if not callable(function) or not isinstance(arguments, tuple):
            raise InputError("calls something that is not a function")
        # A pickle can repeat the same arguments in four bytes.
        cost = len(arguments)
        for argument in arguments:
            if argument.__class__ in _COPIED:
                cost += len(argument)
        self.spend(cost)
        made = function(*arguments)
        if isinstance(made, Inert) and made.arguments:
            made.hides = made.hides or self._holds_guarded(made.arguments)
        self.stack.append(made)

    def _holds_guarded(self, arguments: tuple[object, ...]) -> bool:
        """Whether a value of a guarded type is among the arguments, or anywhere inside them."""
        if not self._guarded:
            return False
        waiting: list[Any] = list(arguments)
        seen: dict[int, tuple[object, int]] = {}
        while waiting:
            value = waiting.pop()
            if isinstance(value, self._guarded):
                return True
            if not isinstance(value, _CONTAINERS):
                continue
            appended = value.appended or () if isinstance(value, Inert) else ()
            if isinstance(value, Inert) and value.hides:
                return True
            state = (value, len(value) + len(appended))
            if self._clean.get(id(value)) != state and id(value) not in seen:
                self.spend(state[1])
                seen[id(value)] = state
                items = value.values() if isinstance(value, dict) else value
                waiting += chain(items, appended)
        self._clean |= seen
        return False

    def push_persistent(self) -> None:
        """Replace the persistent id on top by what it names."""
        if self._persistent is None:
            raise InputError("unknown persistent id")
        self.stack.append(self._persistent(self.stack.pop()))
