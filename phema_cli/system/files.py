"""Files as the operating system has them: read and written in place, locked, flushed, reserved.

What systems do differently stands here and in ``processes.py`` alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from phema_cli.errors import StorageError

#: what a file system answers that lacks a call.
_NOT_THERE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
#: the unit of ``st_blocks``.
_BLOCK_BYTES = 512
#: seconds that a lock is waited for: a worker of a killed run may hold it a little longer.
PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.05


def read_at(descriptor: int, out: memoryview, offset: int) -> int:
    """Fill ``out`` from a place of a file; bytes that there were, 0 at its end."""
    return os.preadv(descriptor, (out,), offset)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` to a place of a file."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def start_flush(descriptor: int, offset: int, length: int) -> None:
    """Have bytes go to the disk now, while others are made, where the system can."""
    with suppress(OSError):
        # What is not on the disk yet stays in memory and begins to be written.
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write there; None where the file system does not say."""
    disk = os.statvfs(path)
    if not disk.f_blocks:
        return None
    # What is kept back for the superuser is free to that one alone.
    return disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)


def open_plain(path: Path, flags: int) -> int:
    """The descriptor of a file that is no link to somewhere else."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def lock(path: Path) -> int:
    """The descriptor of a file that this process alone has locked; made if need be.

    The lock is the kernel's: it ends with the process that holds it and those forked from it.

    Raises:
        StorageError: another process holds it for longer than ``PATIENCE_SECONDS``.
        OSError: the operating system failed.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = open_plain(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file, and others may have made it anew.
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise StorageError(
                "another process is writing this output", where=path.parent, remedy="wait for it"
            )
        time.sleep(_PAUSE_SECONDS)


def size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none; a link is no file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def allocated_bytes(path: Path) -> int:
    """Bytes that a file has on the disk already."""
    try:
        return path.lstat().st_blocks * _BLOCK_BYTES
    except OSError:
        return 0


def create(path: Path, size: int, parts: Sequence[tuple[int, bytes]]) -> None:
    """Make a file of that size, with bytes at some places.

    The space is reserved now, so that a full disk shows before the work and not after it.
    """
    descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            os.ftruncate(stream.fileno(), size)
        for offset, data in parts:
            stream.seek(offset)
            stream.write(data)


def sync_folder(path: Path) -> None:
    """Flush a directory's names, where the file system can and the user may open it."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in {*_NOT_THERE, errno.EACCES}:
            raise


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
