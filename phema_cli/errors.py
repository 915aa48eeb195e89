"""The exception hierarchy: each error says what, where and the remedy, and knows its exit code."""

from __future__ import annotations

import errno
from typing import ClassVar, Self

#: characters of a message; what it quotes may come from files that hold anything.
_LONGEST = 1000


class PhemaError(Exception):
    """Base of every error that phema raises on purpose.

    Args:
        what: what is wrong, in a few words.
        where: the file, tensor or option it is wrong in.
        remedy: what the user can do about it.
        option: what to add to the command line so that it goes on, where that is enough.
    """

    exit_code: ClassVar[int] = 3

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        remedy: str | None = None,
        option: str | None = None,
    ) -> None:
        self.what = what if len(what) <= _LONGEST else f"{what[:_LONGEST]}…"
        self.where = None if where is None else str(where)
        self.remedy = remedy
        self.option = option
        super().__init__(what)

    def at(self, where: object) -> Self:
        """The same error, in a place of its own if it has one, else in this one."""
        place = self.where or where
        return type(self)(self.what, where=place, remedy=self.remedy, option=self.option)

    def __str__(self) -> str:
        """One line: ``where: what; remedy``."""
        head = self.what if self.where is None else f"{_short(self.where)}: {self.what}"
        line = head if self.remedy is None else f"{head}; {self.remedy}"
        return " ".join(line.split())


def _short(where: str) -> str:
    """A place whose middle is left out where it is very long, as paths of many levels are."""
    half = _LONGEST // 2
    return where if len(where) <= _LONGEST else f"{where[:half]}...{where[-half:]}"


class SignalError(BaseException):
    """A signal that asks for an end; typer would turn a KeyboardInterrupt into a mere number.

    Args:
        number: the signal's.

    Attributes:
        outcome: what became of the command's work.
        exit_code: as a shell reports it.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.exit_code = 128 + number
        self.outcome = "no output was written"
        super().__init__(number)


class CheckFailedError(PhemaError):
    """A check that the user asked for failed (``--max-error``, ``diff``)."""

    exit_code = 1


class UsageError(PhemaError):
    """The command line, or a call's arguments, make no sense."""

    exit_code = 2


class InputError(PhemaError):
    """An input is missing, broken, or does not fit the others."""

    exit_code = 3


class UnsafePickleError(PhemaError):
    """A pickle asks for what could do harm, or hides tensors behind unknown code."""

    exit_code = 4


class StorageError(PhemaError):
    """The operating system failed to read or write (disk full, permission, I/O error)."""

    exit_code = 5

    @classmethod
    def wrap(cls, error: OSError, where: object, doing: str) -> StorageError:
        """Turn an ``OSError`` met while ``doing`` something to ``where`` into a StorageError."""
        remedy = _REMEDIES.get(error.errno or 0, "the system's log may say more")
        return cls(f"cannot {doing}: {error.strerror or error}", where=where, remedy=remedy)


_REMEDIES = {
    errno.EACCES: "see its permissions and its owner",
    errno.EAGAIN: "see ulimit -u; -j 1 needs the least",
    errno.EBADF: "it is closed: see how the command is run",
    errno.EDQUOT: "free some of your quota, and run again",
    errno.EFBIG: "see ulimit -f, and how large a file may be there",
    errno.EIO: "the disk or its connection fails, see the system's log",
    errno.ELOOP: "links are not followed there",
    errno.EMFILE: "see ulimit -n",
    errno.ENAMETOOLONG: "choose a shorter name, or go to a directory nearer to it",
    errno.ENFILE: "close other programs, or see fs.file-max",
    errno.ENOENT: "see whether it was moved or removed",
    errno.ENOMEM: "see ulimit -v; -j 1 and a smaller --max-memory need less",
    errno.ENOSPC: "free space there, and run again",
    errno.EPERM: "see its permissions and its owner",
    errno.EROFS: "it is mounted read-only: choose another place",
}
