"""Files of the operating system: positional reads and writes, locks, flushing, allocation.

Only this module and ``processes.py`` know how systems differ.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath
from typing import BinaryIO, cast

from phema_cli.errors import InputError, StorageError

#: errors of a file system that lacks a call.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
#: the unit of ``st_blocks``.
_BLOCK_BYTES = 512
#: bytes that are copied at a time.
_PIECE_BYTES = 1 << 20
#: seconds to wait for a lock: a worker of a killed run may hold it a little longer.
PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.05


def read_at(descriptor: int, out: memoryview, offset: int) -> int:
    """Read from an offset into ``out``; returns the number of bytes read, 0 at the end."""
    return os.preadv(descriptor, (out,), offset)


def read_small(path: Path, most_bytes: int, remedy: str) -> bytes:
    """All of a file that must not be large, whatever it is: a pipe is read no further.

    Raises:
        InputError: it is larger; ``remedy`` says what to do.
        StorageError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most_bytes + 1)
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    if len(raw) > most_bytes:
        raise InputError(f"larger than {most_bytes >> 20} MiB", where=path, remedy=remedy)
    return raw


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at an offset."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what the operating system could not write; raises ``StorageError`` for ``OSError``."""
    try:
        yield
    except OSError as error:
        raise StorageError.wrap(error, path, "write") from error


def start_flush(descriptor: int, offset: int, length: int) -> None:
    """Start to write bytes to the disk, if the system can; does not wait."""
    with suppress(OSError):
        # What is not on the disk yet stays in memory until it is written.
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write there; None if the file system does not say."""
    disk = os.statvfs(path)
    if not disk.f_blocks:
        return None
    # Only the superuser may use what is reserved.
    return disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)


def open_plain(path: Path, flags: int) -> int:
    """The descriptor of a file; a link is an error."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def lock(path: Path) -> int:
    """Lock a file, which is made if need be, and return its descriptor.

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
            raise StorageError(
                "another process is writing this output", where=path.parent, remedy="wait for it"
            )
        time.sleep(_PAUSE_SECONDS)


def size_of(path: Path) -> int | None:
    """Bytes of a file; None if there is none, or it is a link."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def allocated_bytes(path: Path) -> int:
    """Bytes of the disk that a file takes already."""
    try:
        return path.lstat().st_blocks * _BLOCK_BYTES
    except OSError:
        return 0


def create(path: Path, size: int, parts: Sequence[tuple[int, bytes]]) -> None:
    """Make a file of a size, with bytes at some offsets.

    The space is reserved, so that a full disk is noticed before the work and not after it.
    """
    descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            os.ftruncate(stream.fileno(), size)
        for offset, data in parts:
            stream.seek(offset)
            stream.write(data)


def _opened(source: Path) -> BinaryIO:
    """A file to read, which is not a link; what is no ``Path`` has a way of its own."""
    if not isinstance(source, PosixPath):
        return cast("BinaryIO", source.open("rb"))
    return os.fdopen(open_plain(source, os.O_RDONLY | os.O_NONBLOCK), "rb")


def copy(source: Path, path: Path, size: int) -> bool:
    """Copy a file of a size that is known, which is not a link; returns whether it has that size.

    Raises:
        OSError: the operating system failed; ``filename`` is the file that it failed at.
    """
    left = size
    with (
        _opened(source) as stream,
        os.fdopen(open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as out,
    ):
        while data := stream.read(min(left + 1, _PIECE_BYTES)):
            left -= len(data)
            if left < 0:
                break
            out.write(data)
    return left == 0


def sync_folder(path: Path) -> None:
    """Flush a directory, if the file system can and the user may open it."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in {*_UNSUPPORTED, errno.EACCES}:
            raise


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
