"""Files behind a URL, which fsspec reads (``phema-cli[remote]``).

Their paths are those of universal_pathlib, which have pathlib's methods and are not ``Path``s.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from phema_cli.errors import InputError, PhemaError, StorageError, UsageError
from phema_cli.formats.checks import broken

_SCHEME = "://"
#: names that are compared with one that does not exist, and how alike they have to be, from 0 to 1.
_MOST_BESIDE, _ALIKE = 1000, 0.8


def to_path(given: str | os.PathLike[str]) -> Path:
    """The path of a file that the user names, by its name or a URL.

    Raises:
        UsageError: no file system has that scheme, or a package for it is missing.
    """
    if not isinstance(given, str) or _SCHEME not in given:
        # A remote path stays what it is.
        return given if hasattr(given, "fs") else Path(given)  # type: ignore[return-value]
    if given.startswith("file://"):
        return Path(unquote(urlsplit(given).path))
    try:
        from upath import UPath
    except ImportError as error:
        raise UsageError(
            "needs fsspec", where=given, remedy='pip install "phema-cli[remote]"'
        ) from error
    with _wrapped_errors(given, UsageError):
        path = UPath(given)
        _ = path.fs
        return cast("Path", path)


def is_remote(path: Path) -> bool:
    """Whether fsspec reads the path."""
    return not isinstance(path, Path)


@contextmanager
def _wrapped_errors(where: object, kind: type[PhemaError]) -> Iterator[None]:
    """Turn any error of the package that serves a file system into one of phema."""
    try:
        yield
    except PhemaError:
        raise
    except Exception as error:
        raise kind(f"cannot read: {str(error) or type(error).__name__}", where=where) from error


def remote_errors(path: Path) -> AbstractContextManager[None]:
    """Turn any error of a remote file system into a StorageError; local ones pass."""
    return _wrapped_errors(path, StorageError) if is_remote(path) else nullcontext()


def no_such(path: Path) -> PhemaError:
    """The error for a path that does not exist, or whose server can't say whether it does.

    fsspec's web pages do not exist where the server does not answer.
    """
    if is_remote(path):
        try:
            cast("Any", path).fs.info(cast("Any", path).path)
        except Exception as error:  # noqa: BLE001 - any package may serve the file system
            cause = error.__cause__
            missing = cause is None or isinstance(cause, FileNotFoundError)
            if not missing and getattr(cause, "status", None) != HTTPStatus.NOT_FOUND:
                return StorageError(f"cannot read: {cause}", where=path)
    return InputError("no such file or directory", where=path, remedy=_like(path))


def _like(path: Path) -> str | None:
    """What the user may have meant by a path that does not exist: what lies beside it."""
    if is_remote(path):
        return None
    try:
        beside = [each.name for each in islice(path.parent.iterdir(), _MOST_BESIDE)]
    except OSError:
        return None
    found = get_close_matches(path.name, beside, 1, _ALIKE)
    return f"did you mean {path.parent / found[0]}?" if found else None


def read_ranges(ranges: Sequence[tuple[Path, int, memoryview]]) -> None:
    """Fill each buffer with the bytes of a remote file from an offset on, many at a time.

    Raises:
        InputError: a file ends before the buffer is full.
        StorageError: the file system failed, or sends whole files only.
    """
    by_system: dict[int, list[tuple[Path, int, memoryview]]] = {}
    for entry in ranges:
        if len(entry[2]):
            by_system.setdefault(id(cast("Any", entry[0]).fs), []).append(entry)
    for entries in by_system.values():
        system = cast("Any", entries[0][0]).fs
        with _wrapped_errors(entries[0][0], StorageError):
            answers = system.cat_ranges(
                [cast("Any", path).path for path, _, _ in entries],
                [offset for _, offset, _ in entries],
                [offset + len(out) for _, offset, out in entries],
                on_error="raise",
            )
        for (path, offset, out), data in zip(entries, answers, strict=True):
            if len(data) > len(out):
                raise StorageError(
                    "the server sends whole files, not ranges",
                    where=path,
                    remedy="copy the snapshots to this machine",
                )
            if len(data) < len(out):
                raise ends_early(path, offset + len(data))
            out[:] = data


def ends_early(path: Path, size: int) -> InputError:
    """The error for a file that is shorter than its header says."""
    return broken(f"ends at byte {size}, before its tensors do", path)
