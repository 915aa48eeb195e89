"""The process's own streams: what a console can't show is escaped, what does not arrive is told."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING

from phema_cli.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: how characters are written that the console's encoding lacks.
_ESCAPED = "phema_escaped"
#: bytes of a file's name that are no text stand for themselves in these.
_BYTES = range(0xDC80, 0xDD00)


class OutputLostError(StorageError):
    """What was written to stdout did not arrive.

    Args:
        error: what the operating system says.
    """

    def __init__(self, error: OSError) -> None:
        self.piped = isinstance(error, BrokenPipeError)
        told = StorageError.wrap(error, "stdout", "write")
        super().__init__(told.what, where=told.where, remedy=told.remedy)


class _Stdout(io.FileIO):
    """File descriptor 1, whose errors can't be mistaken for those of other files."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the data.

        Raises:
            OutputLostError: it can't be written.
        """
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLostError(error) from error


def prepare() -> None:
    """Make stdout and stderr what they have to be, however the process was started.

    A stream that is closed would be the next file that is opened. In its place stands one that
    nothing can be written to: what is written to stdout in vain is told, what goes to stderr isn't.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    codecs.register_error(_ESCAPED, _escape)
    before: io.TextIOWrapper | None = sys.stdout  # type: ignore[assignment]  # None where closed
    raw = _Stdout(1, "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors=_ESCAPED,
        line_buffering=raw.isatty(),
    )
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - a stream


def discard() -> None:
    """Have what is left for stdout go nowhere: it would fail again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """The bytes in place of characters that the encoding lacks, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return b"".join(map(_written, part)), error.end


def _written(character: str) -> bytes:
    """A character that the encoding lacks, escaped as Python does, or a byte of a name as it is."""
    code = ord(character)
    return bytes([code - 0xDC00]) if code in _BYTES else ascii(character)[1:-1].encode()
