"""Logs: files of JSON lines that outlive a kill and a power loss, and that one process locks.

A lock is the kernel's, or where that has none that leave files readable, filelock's. It ends with
the process that holds it and those forked from it, whatever ends them.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli.errors import InputError, StorageError
from phema_cli.system.files import PATIENCE_SECONDS, PAUSE_SECONDS, flush, open_plain

if TYPE_CHECKING:
    from filelock import BaseFileLock

try:
    import fcntl
except ImportError:
    _LOCKS_FILES = False
else:
    _LOCKS_FILES = True

#: ending of the file that stands for the lock, where the file itself can't be locked.
ENDING = ".lock"


class Log:
    """A file of JSON objects, one a line; a line is on the disk when ``append`` returns.

    A last line that was cut short does not count. With checksums every line ends with its CRC-32,
    and neither a damaged line counts nor what follows it.

    Args:
        path: the file; ``lock`` and ``append`` make it.
        checksums: whether lines have checksums.
    """

    def __init__(self, path: Path, *, checksums: bool = False) -> None:
        self.path = path
        self._checksums = checksums
        self._descriptor: int | None = None
        self._beside: BaseFileLock | None = None

    def lock(self) -> None:
        """Keep other processes from locking it.

        Raises:
            StorageError: another process holds the lock for longer than ``PATIENCE_SECONDS``.
            OSError: the operating system failed.
        """
        if _LOCKS_FILES:
            self._descriptor = _locked(self.path)
            return
        beside = _locked_beside(self.path)
        try:
            self._descriptor = _open(self.path)
        except BaseException:
            beside.release()
            raise
        self._beside = beside

    def unlock(self, *, remove: bool = False) -> None:
        """Let others lock it; all that was written has been flushed before.

        Args:
            remove: whether the file is removed, before anybody else can lock it.
        """
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        beside, self._beside = self._beside, None
        if remove and beside is None:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(descriptor)
        if beside is not None:
            try:
                if remove:
                    # Not every system removes a file that is open.
                    self.path.unlink(missing_ok=True)
            finally:
                beside.release()
                with suppress(OSError):
                    Path(beside.lock_file).unlink(missing_ok=True)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write a line and flush it."""
        line = json.dumps(entry, allow_nan=False).encode()
        line += b" %08x\n" % zlib.crc32(line) if self._checksums else b"\n"
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = open_plain(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            flush(descriptor)
        finally:
            if self._descriptor is None:
                os.close(descriptor)

    def lines(self) -> list[bytes]:
        """The lines that count, each with its end; none where there is no file."""
        try:
            *lines, _torn = self.path.read_bytes().split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return []
        whole = []
        for line in lines:
            text, _, checksum = line.rpartition(b" ")
            if self._checksums and checksum != b"%08x" % zlib.crc32(text):
                break
            whole.append(line + b"\n")
        return whole

    def entries(self) -> list[dict[str, Any]]:
        """The objects of the lines that count.

        Raises:
            InputError: a line is not a JSON object.
        """
        entries = []
        for number, line in enumerate(self.lines(), start=1):
            try:
                entry = json.loads(line.rpartition(b" ")[0] if self._checksums else line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise InputError(
                    f"line {number} is not a JSON object",
                    where=self.path,
                    remedy="repair or remove the file, or choose another -o",
                )
            entries.append(entry)
        return entries

    def truncate(self, count: int | None = None) -> None:
        """Keep the first lines that count, or all of them, and flush the file.

        What is appended behind a torn line would be lost with it, and a power loss could bring the
        other lines back.
        """
        size = sum(map(len, self.lines()[:count]))
        descriptor = open_plain(self.path, os.O_WRONLY)
        try:
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, size)
                flush(descriptor)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    return open_plain(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)


def _refused(path: Path) -> StorageError:
    return StorageError(
        "another process is writing this output", where=path.parent, remedy="wait for it"
    )


def _locked(path: Path) -> int:
    """Lock the file itself, and return its descriptor."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file, and another process made a new one.
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise _refused(path)
        time.sleep(PAUSE_SECONDS)


def _locked_beside(path: Path) -> BaseFileLock:
    """Lock a file beside it: a lock of Windows keeps others from reading."""
    import filelock

    beside = filelock.FileLock(f"{path}{ENDING}", timeout=PATIENCE_SECONDS)
    try:
        beside.acquire(poll_interval=PAUSE_SECONDS)
    except filelock.Timeout as error:
        raise _refused(path) from error
    return beside
