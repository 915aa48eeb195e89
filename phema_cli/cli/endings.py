"""How a command ends: whatever escapes it becomes one line and an exit code, here alone."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from phema_cli.cli import render, streams
from phema_cli.errors import InputError, PhemaError, SignalError, StorageError, UsageError
from phema_cli.system.processes import BROKEN_PIPE, ENDING

_LESS = "see ulimit -v and ulimit -u; -j 1 and a smaller --max-memory need less"
#: what libraries say where the system gave them no memory or no thread.
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "failed to map segment")
_NO_THREAD = "can't start new thread"
#: what inputs may be that no check has noticed, and the remedy.
_OF_INPUTS: dict[type[Exception], tuple[str, str]] = {
    RecursionError: ("what an input holds is nested too deeply", "leave it out with --exclude"),
    OverflowError: ("an input holds a number beyond all that can be", "leave it out by --exclude"),
    UnicodeError: ("a name holds what its encoding has no place for", "rename it"),
}


def ended(error: BaseException) -> int:
    """Say what ended a command in one line on stderr; returns the exit code.

    What was printed before comes first. A pipe that its reader has closed needs no telling: the
    exit code is that of a program that SIGPIPE ends.
    """
    try:
        sys.stdout.flush()
    except streams.OutputLostError as lost:
        error = lost
    if isinstance(error, streams.OutputLostError):
        streams.discard()
        if error.piped:
            return SignalError(BROKEN_PIPE).exit_code
    if isinstance(error, SignalError):
        _say(_with_notes(f"{ENDING[error.number]}; {error.outcome}", error))
        return error.exit_code
    if type(error).__name__ == "NoArgsIsHelpError":
        render.line(getattr(error, "format_message", lambda: "")())
        return UsageError.exit_code
    told = known(error)
    _say(_with_notes(str(told), error))
    return told.exit_code


def known(error: BaseException) -> PhemaError:
    """Any exception as one of phema's, which says what is wrong in the user's words."""
    if isinstance(error, PhemaError):
        return error
    if hasattr(error, "format_message"):
        return _usage(error)
    lacking = _lacking(error)
    if lacking is not None:
        return lacking
    if isinstance(error, OSError):
        doing = "go on" if error.filename is None else "read or write it"
        return StorageError.wrap(error, _name(error.filename), doing)
    for kind, (what, remedy) in _OF_INPUTS.items():
        if isinstance(error, kind):
            return InputError(what, remedy=remedy)
    return InputError(
        f"phema failed at this, which is its own fault: {type(error).__name__}: {error}",
        remedy="run it again with --debug, and report what that says",
    )


def _usage(error: BaseException) -> UsageError:
    """What typer says of a command line."""
    message = getattr(error, "format_message", lambda: "")()
    command = getattr(getattr(error, "ctx", None), "command_path", "phema")
    return UsageError(f"{' '.join(message.split())} See {command} --help")


def _lacking(error: BaseException) -> StorageError | None:
    """What the system had none left of, if that is why something failed."""
    text = str(error)
    if isinstance(error, MemoryError) or any(said in text for said in _NO_MEMORY):
        return StorageError("the system gives no more memory", remedy=_LESS)
    if _NO_THREAD in text:
        return StorageError("the system starts no more threads", remedy=_LESS)
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as full:
        # A module that can't be looked for is not found, and much else fails by other names.
        return StorageError.wrap(full, None, "open more files")
    return None


def _name(filename: object) -> str | None:
    """A file's name for people."""
    return os.fsdecode(filename) if isinstance(filename, str | bytes) else None


def _with_notes(message: str, error: BaseException) -> str:
    """A message, and what was added to the error on its way up."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def _say(message: str) -> None:
    """One line on stderr, by whatever the process has left to write it with."""
    try:
        render.fail(message)
    except Exception:  # noqa: BLE001 - memory or files have run out, and rich needs some
        with suppress(OSError):
            os.write(2, f"phema: {message}\n".encode(errors="backslashreplace"))
