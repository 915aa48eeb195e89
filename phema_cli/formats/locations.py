"""Where files lie: on this machine, or behind a URL that fsspec opens (``phema-cli[remote]``).

Remote files have paths of universal_pathlib, which have pathlib's methods and are no ``Path``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from phema_cli.errors import InputError, PhemaError, StorageError, UsageError
from phema_cli.formats._metadata import REMEDY

_SCHEME = "://"
_BESIDE = "what an index names must lie beside it"


def locate(given: str | os.PathLike[str]) -> Path:
    """The path that a user means, by a name or a URL.

    Raises:
        UsageError: no file system has that scheme, or a package for it is missing.
    """
    if not isinstance(given, str) or _SCHEME not in given:
        # A remote path that was located before stays what it is.
        return given if hasattr(given, "fs") else Path(given)  # type: ignore[return-value]
    if given.startswith("file://"):
        return Path(unquote(urlsplit(given).path))
    try:
        from upath import UPath
    except ImportError as error:
        raise UsageError(
            "needs fsspec", where=given, remedy="pip install 'phema-cli[remote]'"
        ) from error
    with _told(given, UsageError):
        path = UPath(given)
        _ = path.fs
        return cast("Path", path)


def beside(index: Path, name: str, label: str) -> Path:
    """The file of that name in the directory of an index that names it.

    Args:
        index: the file that names it.
        name: what stands there; a path or a link that leads elsewhere is refused.
        label: what the file is to the index, for messages.

    Raises:
        InputError: it leads out of the directory, or is not there.
    """
    shown = f"{label} {name[:200]!r}"
    if Path(name).name != name or "\\" in name:
        raise InputError(f"{shown} is outside the directory", where=index, remedy=_BESIDE)
    file = index.parent / name
    try:
        there = file.is_file()
    except OSError:
        # A name that no file system takes.
        there = False
    if not there:
        raise InputError(f"{shown} is missing", where=index, remedy=REMEDY)
    # Where links stand in for the files, as in caches, all of them lead to one place.
    if not is_remote(index) and file.resolve().parent not in (
        index.parent.resolve(),
        index.resolve().parent,
    ):
        raise InputError(f"{shown} is outside the directory", where=index, remedy=_BESIDE)
    return file


def is_remote(path: Path) -> bool:
    """Whether the path is read through fsspec."""
    return not isinstance(path, Path)


@contextmanager
def _told(where: object, kind: type[PhemaError]) -> Iterator[None]:
    """Errors of whatever package serves a file system, in phema's words."""
    try:
        yield
    except PhemaError:
        raise
    except Exception as error:
        raise kind(f"cannot read: {str(error) or type(error).__name__}", where=where) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any failure of a remote file system into a StorageError; local ones pass."""
    if not is_remote(path):
        yield
        return
    with _told(path, StorageError):
        yield


def read_ranges(wanted: Sequence[tuple[Path, int, memoryview]]) -> None:
    """Fill each buffer with a remote file's bytes from an offset on, many at a time.

    Raises:
        InputError: a file ends before the buffer is full.
        StorageError: the file system failed, or sends whole files only.
    """
    by_system: dict[int, list[tuple[Path, int, memoryview]]] = {}
    for entry in wanted:
        if len(entry[2]):
            by_system.setdefault(id(cast("Any", entry[0]).fs), []).append(entry)
    for entries in by_system.values():
        system = cast("Any", entries[0][0]).fs
        with _told(entries[0][0], StorageError):
            found = system.cat_ranges(
                [cast("Any", path).path for path, _, _ in entries],
                [offset for _, offset, _ in entries],
                [offset + len(out) for _, offset, out in entries],
                on_error="raise",
            )
        for (path, offset, out), data in zip(entries, found, strict=True):
            if len(data) > len(out):
                raise StorageError(
                    "the server sends whole files, not ranges",
                    where=path,
                    remedy="copy the snapshots to this machine",
                )
            if len(data) < len(out):
                raise InputError(
                    f"ends at byte {offset + len(data)}, before its tensors do",
                    where=path,
                    remedy="copy it again, or leave it out with --exclude",
                )
            out[:] = data
