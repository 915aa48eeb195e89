"""Journals: what of an output is on the disk, for a run that goes on where this one ended.

A staging directory has one. Its first line names the plan, further ones say which runs' bytes have
been flushed, and that all have. A line that a power loss cut short counts for nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from phema_cli._version import __version__
from phema_cli.errors import StorageError, UsageError
from phema_cli.synthesis.recipe import Recipe

NAME = "journal"
_SCHEMA = "phema/partial/1"
#: seconds that a worker of a killed run may go on.
_PATIENCE = 5.0
_PAUSE = 0.05


class Journal:
    """A locked journal: no other process writes what lies beside it.

    Args:
        folder: the staging directory.
        plan: the fingerprint of what is to be written there.

    Attributes:
        done: numbers of the runs that an earlier process has left on the disk.
        complete: whether it left all of them, and files may have their final names already.

    Raises:
        UsageError: another plan has left something there.
        StorageError: another process writes there.
        OSError: the operating system failed.
    """

    def __init__(self, folder: Path, plan: str) -> None:
        self.folder = folder
        self._plan = plan
        self._descriptor = locked(folder / NAME)
        try:
            found = read(folder)
            _check(folder, plan, found)
            self.done = noted(folder)
            self.complete = any(entry.get("complete", False) for entry in found)
            if not found:
                self.restart()
        except BaseException:
            self.close()
            raise

    @property
    def is_new(self) -> bool:
        """Whether nothing is noted, before or now."""
        return not self.complete and not noted(self.folder)

    def restart(self) -> None:
        """Forget what is noted."""
        for path in _notes(self.folder):
            os.truncate(path, 0)
        _append(self.folder / NAME, {"schema": _SCHEMA, "plan": self._plan})
        self.done, self.complete = set(), False

    def finish(self) -> None:
        """Record that all is on the disk, and names are given from now on."""
        _append(self.folder / NAME, {"complete": True})
        self.complete = True

    def remove(self) -> None:
        """Remove the directory, where nothing else is left in it."""
        for path in _notes(self.folder):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def close(self) -> None:
        """Let others write there."""
        os.close(self._descriptor)


def note(folder: Path, rank: int, numbers: Iterable[int]) -> None:
    """Record runs whose bytes are on the disk; each rank has a file of its own."""
    _append(folder / (f"{NAME}-{rank}" if rank else NAME), {"done": _ranges(sorted(numbers))})


def noted(folder: Path) -> set[int]:
    """Numbers of all runs that are recorded."""
    entries = [entry for path in _notes(folder) for entry in _lines(path)]
    return {n for entry in entries for a, b in entry.get("done", []) for n in range(a, b)}


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a directory's journal; none where there is none."""
    entries = _lines(folder / NAME)
    return entries if entries and entries[0].get("schema") == _SCHEMA else []


def _check(folder: Path, plan: str, found: list[dict[str, Any]]) -> None:
    """Refuse what is not this plan's."""
    if found and found[0].get("plan") != plan:
        raise UsageError(
            "another synthesis has left its work here",
            where=folder,
            remedy=f"run that one again to finish it, or rm -r '{folder}'",
        )
    if not found and any(p.name != NAME for p in folder.iterdir()):
        raise UsageError(
            "is in the way of the output", where=folder, remedy="move it, or pass another -o"
        )


def _notes(folder: Path) -> list[Path]:
    """The journal and those of other ranks."""
    return [folder / NAME, *sorted(folder.glob(f"{NAME}-*"))]


def _append(path: Path, entry: dict[str, Any]) -> None:
    """Add a line and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, up to one that is none of a journal's."""
    try:
        text = path.read_bytes()
    except OSError:
        return []
    entries = []
    for line in text.split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
    return entries


def fingerprint(recipe: Recipe) -> str:
    """What is the same for two runs that write the same bytes by the same steps, in hexadecimal."""
    told = hashlib.blake2b(digest_size=16)
    facts = (
        (__version__, recipe.form, recipe.device, recipe.tile_elements, recipe.bases),
        [(t.name, t.shape, t.dtype.name, t.out_dtype.name, t.average) for t in recipe.tensors],
        [(str(p), s) for c in recipe.sources for p, s in sorted(c.checkpoint.stamps.items())],
        [[str(p) for p in s.checkpoint.files] for s in recipe.sources],
        [(str(o.path), [str(p) for p in o.finals], o.index and o.index[1]) for o in recipe.outputs],
        [(f.image.size_bytes, f.image.segments) for o in recipe.outputs for f in o.files],
    )
    told.update(repr(facts).encode(errors="backslashreplace"))
    told.update(recipe.weights.tobytes() + recipe.sums.tobytes())
    return told.hexdigest()


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as half-open ranges."""
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        else:
            found.append((n, n + 1))
    return found


def locked(path: Path) -> int:
    """The descriptor of a file that this process alone has locked.

    The lock is the kernel's: it ends with the process that holds it and those forked from it.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file, and others may have made it anew.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
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
        time.sleep(_PAUSE)
