"""A pickle machine that imports nothing, calls only stand-ins and skips over strings of bytes.

It walks the opcodes of a file, so that each string of bytes, such as the values of a tensor, is
known by its place and never read. Time and memory grow with the bytes of the pickle and with
nothing else, whatever the pickle says: the interpreter's own unpickler, written in C, allocates
what a pickle announces, and hashes tuples nested deep enough to end the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

from phema_cli.errors import InputError
from phema_cli.pickles.guard import Guard
from phema_cli.pickles.opcodes import ACTIONS
from phema_cli.pickles.trust import answer
from phema_cli.pickles.values import Inert, Span

#: bytes that are read at once.
_WINDOW = 1 << 14
#: the longest number of a fixed length.
_NUMBER = 8
#: the longest text or number, and the longest line of an opcode that is one.
_MOST_BYTES, _MOST_LINE = 16 << 20, 1 << 16
#: values that wait on the stack, of which picklers leave 2,000 for a dict, and collections begun.
_MOST_WAITING, _MOST_MARKS = 100_000, 10_000
_SIZED = (list, tuple, dict, set, frozenset, Inert)

#: the longest name of a global with its module, in characters and in parts.
_MOST_NAME, _MOST_PARTS = 1000, 50
#: the longest string of bytes that is kept: the longest number of numpy's.
_KEPT = 16

#: gives the format's own stand-in of a global, None where it has none.
Find = Callable[[str, str], object]
#: describes a storage that a persistent id names.
Persistent = Callable[[object], object]


class Machine:
    """Reads pickles from a file, one after the other.

    Args:
        file: where they are.
        start: where the first begins.
        end: where the last must have ended.
        find: answers globals of the format; all others are answered by ``trust``.
        persistent: answers persistent ids; without it there are none.
        most: bytes that may be opcodes, and not strings that are passed over.
        guarded: kinds of values that an object of an unknown class must not be made from without
            being marked (:attr:`Inert.hides`).

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
        guarded: tuple[type, ...] = (),
    ) -> None:
        self._file = file
        self._end = end
        self._left = end - start
        self._most = most
        self._find = find
        self._persistent = persistent
        self._guard = Guard(guarded, self.spend)
        # Where the window begins in the file, and from where on in it more is read.
        self._base, self._soft = start, 0
        self.window, self.at = b"", 0
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self._marks: list[int] = []

    def load(self) -> object:
        """The content of the next pickle.

        Raises:
            UnsafePickleError: it asks for a global that could do harm; names it.
            InputError: it does what such a pickle never does, or ends too early.
        """
        self.stack, self.memo, self._marks = [], [], []
        while True:
            if self.at >= self._soft:
                self._refill(1)
            code = self.window[self.at]
            self.at += 1
            if ACTIONS[code](self):
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
        if length <= _KEPT:
            return span._replace(raw=self.take(length))
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
        # One text may be given again and again, by a pickle of two bytes each time.
        if len(module) + len(name) > _MOST_NAME:
            raise InputError("a global whose name is too long")
        full = f"{module}.{name}"
        if not full.isprintable() or full.count(".") > _MOST_PARTS:
            raise InputError("a global whose name is none")
        known = self._find(module, name)
        self.stack.append(answer(module, name) if known is None else known)

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
        made = function(*arguments)
        if isinstance(made, Inert) and made.arguments:
            made.hides = made.hides or self._guard.holds(made.arguments)
        self.stack.append(made)

    def name_storage(self) -> None:
        """Put what a persistent id names on the stack."""
        if self._persistent is None:
            raise InputError("unknown persistent id")
        self.stack.append(self._persistent(self.stack.pop()))
