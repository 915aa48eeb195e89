"""Outputs on disk: complete under a partial name first, durable, then under their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from phema_cli.errors import StorageError, UsageError
from phema_cli.formats._crc import join
from phema_cli.formats.locations import is_remote
from phema_cli.synthesis.layout import Output
from phema_cli.synthesis.recipe import Recipe

PARTIAL = ".partial"
#: CRC-32 and bytes of the parts of a tensor by their first byte, by tensor name.
Checks = dict[str, dict[int, tuple[int, int]]]


def check_outputs(recipe: Recipe, overwrite: bool) -> None:
    """Refuse outputs that exist already, or would replace a snapshot.

    Raises:
        UsageError: an output exists and ``overwrite`` is false, or it is a snapshot.
        StorageError: the operating system can't look there.
    """
    inputs = {os.path.realpath(path) for path in recipe.inputs if not is_remote(path)}
    for output in recipe.outputs:
        try:
            present = output.present()
            folder = next((p for p in output.finals if p.is_dir()), None)
        except OSError as error:
            raise StorageError.wrap(error, output.path, "write") from error
        own = next((p for p in [*output.finals, *present] if os.path.realpath(p) in inputs), None)
        if own is not None:
            raise UsageError("is one of the snapshots", where=own, remedy="choose another -o")
        if folder is not None:
            raise UsageError("is a directory", where=folder, remedy="choose another -o")
        if present and not overwrite:
            raise UsageError(
                "exists already", where=output.path, remedy="pass --overwrite or --skip-existing"
            )


def partial(path: Path) -> Path:
    """The name that a file has until it is complete."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def staged(output: Output) -> Iterator[None]:
    """Create the output's files under their partial names, full size and with headers.

    What is left of them at the end is removed, and so is a directory made for them.
    """
    folder = output.files[0].path.parent
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in output.files:
                with partial(file.path).open("wb") as stream:
                    _allocate(stream.fileno(), file.image.size_bytes)
                    for offset, data in file.image.segments:
                        stream.seek(offset)
                        stream.write(data)
            if output.index is not None:
                partial(output.index[0]).write_bytes(output.index[1])
        except OSError as error:
            raise StorageError.wrap(error, output.path, "write") from error
        yield
    finally:
        for final in output.finals:
            # What could not be made can't be removed; the error that matters is the first one.
            with suppress(OSError):
                partial(final).unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the space now, so that a full disk shows before the work and not after it."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        os.ftruncate(descriptor, size)


def make_durable(output: Output) -> None:
    """Flush all that is to get a name."""
    try:
        for path in output.finals:
            _sync(partial(path))
    except OSError as error:
        raise StorageError.wrap(error, output.path, "write") from error


def publish(output: Output) -> None:
    """Give the files their names, the index last."""
    try:
        stale = [p for p in output.present() if p != output.path and p not in output.finals]
        # A reader must not meet an old index beside new shards, nor a new one beside old shards.
        for path in [*output.finals[len(output.files) :], *stale]:
            path.unlink(missing_ok=True)
        for path in output.finals:
            partial(path).replace(path)
        _sync(output.files[0].path.parent)
    except OSError as error:
        raise StorageError.wrap(error, output.path, "write") from error


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checksums(output: Output, checks: Checks) -> None:
    """Put each tensor's CRC-32 where the format has it."""
    try:
        for file in output.files:
            if not file.image.checksums:
                continue
            with partial(file.path).open("r+b") as stream:
                for name, places in file.image.checksums.items():
                    crc = 0
                    for _, (part, length) in sorted(checks[name].items()):
                        crc = join(crc, part, length)
                    for place in places:
                        stream.seek(place)
                        stream.write(crc.to_bytes(4, "little"))
    except OSError as error:
        raise StorageError.wrap(error, output.path, "write") from error
