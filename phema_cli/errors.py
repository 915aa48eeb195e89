"""The exceptions of phema: what is wrong, where, what to do about it, and the exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Self

#: characters of a message or a place: it may quote files, which hold anything.
_LONGEST = 1000
#: what came of a command that a signal ends, before its outputs have their names, and after.
NOTHING_WRITTEN = "no output was written"
ALL_WRITTEN = "all outputs are written"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names, or the first of many and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class PhemaError(Exception):
    """Base of every error that phema raises on purpose.

    Args:
        what: what is wrong, in a few words.
        where: the file, tensor or option that is wrong.
        remedy: what the user can do about it.
        option: what to add to the command line, where that alone solves it.
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
        self.what = what if len(what) <= _LONGEST else f"{what[:_LONGEST]}..."
        self.where = None if where is None else str(where)
        self.remedy = remedy
        self.option = option
        super().__init__(what)

    def at(self, where: object) -> Self:
        """The same error with a place, unless it has one already."""
        return type(self).of(self, where=self.where or where)

    @classmethod
    def of(cls, error: PhemaError, **changes: object) -> Self:
        """An error of this class that says what another one says, but for some arguments."""
        said: dict[str, Any] = {n: getattr(error, n) for n in ("what", "where", "remedy", "option")}
        return cls(**(said | changes))

    def __str__(self) -> str:
        """One line: ``where: what; remedy``. A long path loses its middle."""
        line = self.what
        if self.where is not None:
            half = _LONGEST // 2
            long = len(self.where) > _LONGEST
            where = f"{self.where[:half]}...{self.where[-half:]}" if long else self.where
            line = f"{where}: {line}"
        return " ".join((line if self.remedy is None else f"{line}; {self.remedy}").split())


class SignalError(BaseException):
    """A signal told the process to end.

    It is no KeyboardInterrupt: typer would turn that into an exit code by itself.

    Args:
        number: the signal's.
        outcome: what happened to the command's work, for the message.

    Attributes:
        exit_code: the one that a shell reports for the signal.
    """

    def __init__(self, number: int, outcome: str = NOTHING_WRITTEN) -> None:
        self.number = number
        self.exit_code = 128 + number
        self.outcome = outcome
        super().__init__(number)


class CheckFailedError(PhemaError):
    """A check that the user asked for failed (``--max-error``, ``diff``, ``verify``)."""

    exit_code = 1


class UsageError(PhemaError):
    """The command line, or the arguments of a call, are wrong."""

    exit_code = 2


class InputError(PhemaError):
    """An input is missing, broken, or does not fit the others."""

    exit_code = 3


class UnsafePickleError(PhemaError):
    """A pickle could do harm, or hides tensors behind unknown code."""

    exit_code = 4


class StorageError(PhemaError):
    """The operating system failed to read or write (disk full, permission, I/O error)."""

    exit_code = 5

    @classmethod
    def wrap(cls, error: OSError, where: object, doing: str) -> Self:
        """The error for an ``OSError`` met while ``doing`` something to ``where``."""
        remedy = _REMEDIES.get(error.errno or 0, "the system log may say more")
        return cls(f"cannot {doing}: {error.strerror or error}", where=where, remedy=remedy)


@contextmanager
def storage_errors(where: object, doing: str) -> Iterator[None]:
    """Turn an ``OSError`` met while ``doing`` something to ``where`` into a ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise StorageError.wrap(error, where, doing) from error


def reading(where: object) -> AbstractContextManager[None]:
    """Say what the operating system could not read."""
    return storage_errors(where, "read")


_REMEDIES = {
    errno.EACCES: "check its owner and permissions",
    errno.EAGAIN: "check ulimit -u, or pass -j 1",
    errno.EBADF: "it was closed before phema started: check how the command is run",
    errno.EDQUOT: "free some of your disk quota and run the command again",
    errno.EFBIG: "check ulimit -f and the largest file that the file system allows",
    errno.EIO: "the disk or its connection is failing: check the system log",
    errno.ELOOP: "symbolic links are not followed here: pass the real path",
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENAMETOOLONG: "use a shorter name, or run the command in a directory closer to it",
    errno.ENFILE: "close other programs, or raise fs.file-max",
    errno.ENOENT: "check whether it was moved or deleted",
    errno.ENOMEM: "check ulimit -v; -j 1 and a smaller --max-memory use less memory",
    errno.ENOSPC: "free space there and run the command again",
    errno.EPERM: "check its owner and permissions",
    errno.EROFS: "the file system is mounted read-only: choose another directory",
}
