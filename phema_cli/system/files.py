"""Files of the operating system: positional reads and writes, flushing, allocation, free space.

Only the modules of ``system`` know how systems differ. Each service has a plain way for systems
that lack the call: what CPython documents as missing on macOS or Windows is looked for, never the
name of the system, so that tests can take it away.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PosixPath, WindowsPath
from typing import BinaryIO, cast

from phema_cli.errors import InputError, StorageError, storage_errors

try:
    import fcntl
except ImportError:
    _FULL_SYNC: int | None = None
else:
    #: with it macOS flushes a disk's own memory too, which fsync does not there.
    _FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)

#: errors of a file system that lacks a call.
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
#: the unit of ``st_blocks``.
_BLOCK_BYTES = 512
#: bytes that are copied at a time.
_PIECE_BYTES = 1 << 20
#: seconds to wait for others: a worker of a killed run may hold a lock a little longer, and a
#: reader a file that is to be replaced.
PATIENCE_SECONDS = 5.0
PAUSE_SECONDS = 0.05
#: without it Windows turns ends of lines into its own.
_BINARY: int = getattr(os, "O_BINARY", 0)
_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
#: a named pipe is opened without waiting for its writer.
_NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)


def open_file(path: Path, flags: int) -> int:
    """The descriptor of a file; programs that this one starts do not get it (PEP 446)."""
    return os.open(path, flags | _BINARY, 0o666)


def read_at(descriptor: int, out: memoryview, offset: int) -> int:
    """Read from an offset into ``out``; returns the number of bytes read, 0 at the end.

    One thread at a time may use a descriptor: not every system has reads that leave its place.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, (out,), offset)
    if hasattr(os, "pread"):
        data = os.pread(descriptor, len(out), offset)
    else:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(out))
    out[: len(data)] = data
    return len(data)


def read_small(path: Path, most_bytes: int, remedy: str) -> bytes:
    """All of a file that must not be large, whatever it is: a pipe is read no further.

    Raises:
        InputError: there is none, or it is larger; ``remedy`` says what to do then.
        StorageError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most_bytes + 1)
    except FileNotFoundError as error:
        raise InputError("no such file", where=path) from error
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    if len(raw) > most_bytes:
        raise InputError(f"larger than {most_bytes >> 20} MiB", where=path, remedy=remedy)
    return raw


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at an offset; descriptors as :func:`read_at`."""
    done = 0
    while done < len(data):
        if hasattr(os, "pwrite"):
            done += os.pwrite(descriptor, data[done:], offset + done)
        else:
            os.lseek(descriptor, offset + done, os.SEEK_SET)
            done += os.write(descriptor, data[done:])


def writing(path: Path) -> AbstractContextManager[None]:
    """Say what the operating system could not write."""
    return storage_errors(path, "write")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file under, which then replaces ``path``: whole or not at all.

    Raises:
        StorageError: the operating system failed.
    """
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
            yield unfinished
            replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def start_flush(descriptor: int, offset: int, length: int) -> None:
    """Start to write bytes to the disk, if the system can; does not wait."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            # What is not on the disk yet stays in memory until it is written.
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write there; None if the file system does not say."""
    if not hasattr(os, "statvfs"):
        return shutil.disk_usage(path).free
    disk = os.statvfs(path)
    if not disk.f_blocks:
        return None
    # Only the superuser may use what is reserved.
    return disk.f_frsize * (disk.f_bavail if os.geteuid() else disk.f_bfree)


def open_plain(path: Path, flags: int) -> int:
    """The descriptor of a file; a link is an error."""
    if not _NO_LINK and path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return open_file(path, flags | _NO_LINK)


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
        status = path.lstat()
    except OSError:
        return 0
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else blocks * _BLOCK_BYTES


def create(path: Path, size: int, parts: Sequence[tuple[int, bytes]]) -> None:
    """Make a file of a size, with bytes at some offsets.

    The space is reserved, so that a full disk is noticed before the work and not after it.
    """
    descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(descriptor, "wb") as stream:
        if not _allocate(stream.fileno(), size):
            os.ftruncate(stream.fileno(), size)
        for offset, data in parts:
            stream.seek(offset)
            stream.write(data)


def _allocate(descriptor: int, size: int) -> bool:
    """Reserve the space of a file, where the system and the file system can."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _opened(source: Path) -> BinaryIO:
    """A file to read, which is not a link; what is no ``Path`` has a way of its own."""
    if not isinstance(source, PosixPath | WindowsPath):
        return cast("BinaryIO", source.open("rb"))
    return os.fdopen(open_plain(source, os.O_RDONLY | _NO_WAIT), "rb")


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
        while data := _piece(stream, min(left + 1, _PIECE_BYTES), source):
            left -= len(data)
            if left < 0:
                break
            out.write(data)
    return left == 0


def _piece(stream: BinaryIO, size: int, source: Path) -> bytes:
    """Bytes of a file; an error has its name, which Python gives to errors of opening alone."""
    try:
        return stream.read(size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(source)) from error


def replace(path: Path, target: Path) -> None:
    """Give a file the name of another one, which it replaces.

    Some systems refuse while somebody has the other one open: then it is tried for a while.
    """
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            path.replace(target)
        except PermissionError:
            if hasattr(os, "fork") or time.monotonic() > until:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def removal(folder: Path) -> str:
    """The command to type that removes a directory."""
    return f"rm -r '{folder}'" if hasattr(os, "fork") else f'rmdir /s "{folder}"'


def sync_folder(path: Path) -> None:
    """Flush a directory, where the system and the file system can and the user may open it."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in {*_UNSUPPORTED, errno.EACCES}:
            raise
        return
    try:
        flush(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Flush a file to the disk."""
    # Not every system flushes a file that is open to be read.
    descriptor = open_file(path, os.O_RDWR)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Flush what was written to a file to the disk."""
    if _FULL_SYNC is not None:
        try:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        except OSError as error:
            if error.errno not in {*_UNSUPPORTED, errno.ENOTTY, errno.ENOTSUP}:
                raise
        else:
            return
    os.fsync(descriptor)
