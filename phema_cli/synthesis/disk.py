"""Files on the disk: made at full size, flushed, and looked at without following links."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

#: what a file system answers that lacks a call.
_NOT_THERE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
#: the unit of ``st_blocks``.
_BLOCK_BYTES = 512


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
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            os.ftruncate(stream.fileno(), size)
        for offset, data in parts:
            stream.seek(offset)
            stream.write(data)


def append(descriptor: int, line: bytes) -> None:
    """Write all of a line and flush it."""
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)


def unlock(descriptor: int) -> None:
    """Close a file that was held; all that was written to it has been flushed before."""
    with suppress(OSError):
        os.close(descriptor)


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
