"""The process around a command: numpy's threads, the streams, what an error becomes."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from phema_cli.cli import render
from phema_cli.errors import (
    ALL_WRITTEN,
    InputError,
    PhemaError,
    SignalError,
    StorageError,
    UsageError,
)
from phema_cli.system.processes import most_memory_bytes
from phema_cli.system.signals import BROKEN_PIPE, ENDING, outcome

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: variables that the libraries under numpy read once, when they are loaded.
_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: memory that a process needs for numpy.
_LEAST_BYTES = 256 << 20
#: name of the error handler that writes characters which the console's encoding lacks.
_ESCAPED = "phema_escaped"
#: characters by which Python stands for the bytes of a file's name that are no text.
_BYTES = range(0xDC80, 0xDD00)
#: how libraries say that the system gave them no memory, or no thread.
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "failed to map segment")
_NO_THREAD = "can't start new thread"
_LIMITS = "check ulimit -v and ulimit -u; -j 1 and a smaller --max-memory use less"
#: faults of an input that no check has caught: the error, what it means, the remedy.
_INPUT_FAULTS: dict[type[Exception], tuple[str, str]] = {
    RecursionError: ("an input is nested too deeply", "leave it out with --exclude"),
    OverflowError: ("an input holds a number that is too large", "leave it out with --exclude"),
    UnicodeError: ("a name holds characters that its encoding lacks", "rename it"),
}


def load_numpy() -> None:
    """Load numpy with one thread, unless the environment says otherwise.

    phema's matrices are small: more threads would wait for each other and take three times the
    processor time. Programs that phema starts get the environment unchanged.

    Raises:
        MemoryError: the process is allowed too little memory to load it.
    """
    if "numpy" in sys.modules:
        return
    allowed = most_memory_bytes()
    if allowed is not None and allowed < _LEAST_BYTES:
        # OpenBLAS would end the process itself, with its own message.
        raise MemoryError
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        import numpy  # noqa: F401 - this is what loads it
    finally:
        for name in added:
            del os.environ[name]


class OutputLostError(StorageError):
    """What was written to stdout did not arrive."""


class _Stdout(io.FileIO):
    """File descriptor 1, whose errors differ from those of other files."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the data.

        Raises:
            OutputLostError: it can't be written.
        """
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLostError.wrap(error, "stdout", "write") from error


def prepare_streams() -> None:
    """Make stdout and stderr usable, however the process was started.

    The next file that is opened would get the descriptor of a stream that is closed, so /dev/null
    gets it: read-only for stdout, where lost output is reported, and writable for stderr.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    codecs.register_error(_ESCAPED, _escape)
    before: io.TextIOWrapper | None = sys.stdout  # type: ignore[assignment]  # None where closed
    raw = _Stdout(1, "wb", closefd=False)
    if os.name == "nt" and before is not None and raw.isatty():
        # Python's own stream writes characters there, whatever the console's code page.
        before.reconfigure(errors=_ESCAPED)
    else:
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=before.encoding if before else "utf-8",
            errors=_ESCAPED,
            line_buffering=raw.isatty(),
        )
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - a stream


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes for characters that the encoding lacks: as Python escapes them, or those of a name."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escaped = (
        bytes([ord(c) - 0xDC00]) if ord(c) in _BYTES else ascii(c)[1:-1].encode()
        for c in error.object[error.start : error.end]
    )
    return b"".join(escaped), error.end


def report(error: BaseException) -> int:
    """Print the error that ended a command as one line on stderr; returns the exit code.

    What is left for stdout is printed first. A pipe whose reader has closed it needs no message:
    the exit code is that of a program that SIGPIPE ends.
    """
    try:
        sys.stdout.flush()
    except OutputLostError as lost:
        error = lost
    if isinstance(error, OutputLostError):
        # The rest would fail again when the interpreter flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error.__cause__, BrokenPipeError):
            return SignalError(BROKEN_PIPE).exit_code
        if outcome() == ALL_WRITTEN:
            # Only their paths were lost, and the command would find its outputs in its way.
            error = OutputLostError.of(error, remedy=ALL_WRITTEN)
    if type(error).__name__ == "NoArgsIsHelpError":
        render.line(getattr(error, "format_message", lambda: "")())
        return UsageError.exit_code
    if isinstance(error, SignalError):
        message, code = f"{ENDING[error.number]}; {error.outcome}", error.exit_code
    else:
        reported = as_phema_error(error)
        message, code = str(reported), reported.exit_code
    message = "; ".join([message, *getattr(error, "__notes__", [])])
    try:
        render.fail(message)
    except Exception:  # noqa: BLE001 - memory or files have run out, and rich needs some
        with suppress(OSError):
            os.write(2, f"phema: {message}\n".encode(errors="backslashreplace"))
    return code


def as_phema_error(error: BaseException) -> PhemaError:
    """Any exception as a PhemaError that says what is wrong in the user's words."""
    if isinstance(error, PhemaError):
        return error
    if hasattr(error, "format_message"):
        command = getattr(getattr(error, "ctx", None), "command_path", "phema")
        said = " ".join(error.format_message().split()).rstrip(".")
        return UsageError(said, remedy=f"see {command} --help")
    exhausted = _exhausted(error)
    if exhausted is not None:
        return exhausted
    if isinstance(error, OSError):
        name = error.filename
        where = os.fsdecode(name) if isinstance(name, str | bytes) else None
        doing = "continue" if name is None else "read or write it"
        return StorageError.wrap(error, where, doing)
    for kind, (what, remedy) in _INPUT_FAULTS.items():
        if isinstance(error, kind):
            return InputError(what, remedy=remedy)
    return InputError(
        f"this is a bug in phema: {type(error).__name__}: {error}",
        remedy="run the command again with --debug and report the traceback",
    )


def _exhausted(error: BaseException) -> StorageError | None:
    """The limit of the system behind an error: memory, threads or open files."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return StorageError("out of memory", remedy=_LIMITS)
    if _NO_THREAD in text:
        return StorageError("the system allows no more threads", remedy=_LIMITS)
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as full:
        # Without a free descriptor a module is "not found", and much else fails by other names.
        return StorageError.wrap(full, None, "open more files")
    return None
