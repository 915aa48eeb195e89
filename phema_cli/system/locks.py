"""Locks of files: those of the kernel, or where it has none that leave files readable, filelock's.

A lock ends with the process that holds it and those forked from it, whatever ends them.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from phema_cli.errors import StorageError
from phema_cli.system.files import PATIENCE_SECONDS, PAUSE_SECONDS, open_plain

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


class Lock:
    """A locked file, which is made if need be and is open to append to.

    Args:
        path: the file.

    Attributes:
        descriptor: the file's.

    Raises:
        StorageError: another process holds the lock for longer than ``PATIENCE_SECONDS``.
        OSError: the operating system failed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside: BaseFileLock | None = None
        if _LOCKS_FILES:
            self.descriptor = _locked(path)
            return
        self._beside = _locked_beside(path)
        try:
            self.descriptor = _open(path)
        except BaseException:
            self._beside.release()
            raise

    def release(self, *, remove: bool = False) -> None:
        """Let others lock the file; all that was written has been flushed before.

        Args:
            remove: whether the file is removed, before anybody else can lock it.
        """
        if remove and self._beside is None:
            self._path.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(self.descriptor)
        if self._beside is not None:
            try:
                if remove:
                    # Not every system removes a file that is open.
                    self._path.unlink(missing_ok=True)
            finally:
                self._beside.release()
                with suppress(OSError):
                    Path(self._beside.lock_file).unlink(missing_ok=True)


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
