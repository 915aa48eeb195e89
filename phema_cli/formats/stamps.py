"""Stamps of files: what tells that one has changed since its header was read."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from phema_cli.errors import InputError, reading
from phema_cli.formats.remote import is_remote

#: inode, bytes, and the time of the last change in ns: what another file, or a later version of the
#: same one, does not share.
Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp:
    """The stamp of a file now; raises ``OSError``."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def known_stamp(path: Path) -> Stamp | None:
    """The stamp of a file now; None if it is remote, or cannot be looked at."""
    if not is_remote(path):
        with suppress(OSError):
            return stamp(path)
    return None


def refuse_changed(stamps: Mapping[Path, Stamp], remedy: str) -> None:
    """Refuse files that are not what they were before their headers were read.

    Raises:
        InputError: a file was replaced, or written to.
        StorageError: the operating system can't look there.
    """
    for path, before in stamps.items():
        same = False
        with reading(path), suppress(FileNotFoundError):
            same = stamp(path) == before
        if not same:
            raise InputError("changed while it was read", where=path, remedy=remedy)
