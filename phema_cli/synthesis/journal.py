"""Journals: what of an output is on the disk, so that a killed run resumes.

A staging directory has one: its first line names the recipe, further ones the runs whose bytes have
been flushed, and the last says that all have. Other ranks write journals of their own beside it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from phema_cli._version import __version__
from phema_cli.errors import UsageError
from phema_cli.synthesis.recipe import Recipe
from phema_cli.system.files import removal, size_of, sync_folder
from phema_cli.system.log import ENDING, Log

NAME = "journal"
_SCHEMA = "phema/partial/1"
#: how the first line of every journal begins.
_HEAD = f'{{"schema": "{_SCHEMA}", "plan": "'.encode()


class Journal:
    """A locked journal: no other process writes what lies beside it.

    Args:
        folder: the staging directory.
        recipe: the fingerprint of the recipe whose outputs are made there.
        discard: whether to remove what another recipe has left there.

    Attributes:
        done: numbers of the runs that an earlier process has left on the disk.
        complete: whether it left all of them, and files may have their final names already.

    Raises:
        UsageError: another recipe, or somebody else, has left something there.
        StorageError: another process writes there.
        OSError: the operating system failed.
    """

    def __init__(self, folder: Path, recipe: str, *, discard: bool = False) -> None:
        self.folder = folder
        self._log = Log(folder / NAME, checksums=True)
        self._log.lock()
        was_empty = not size_of(folder / NAME)
        try:
            entries = read(folder)
            if discard and entries and entries[0].get("plan") != recipe:
                self._discard()
                entries = []
            _check(folder, recipe, entries)
            for log in _logs(folder):
                log.truncate()
            self.done = runs_done(folder)
            self.complete = any(entry.get("complete", False) for entry in entries)
            if not entries:
                self._log.append({"schema": _SCHEMA, "plan": recipe})
        except BaseException:
            # Interrupted before it had a line: the directory is left empty.
            with suppress(OSError):
                self._log.unlock(remove=was_empty and not _others(folder))
            raise

    def _discard(self) -> None:
        """Remove all that lies beside it, and then its lines, which say until then whose it is."""
        for path in self.folder.iterdir():
            if path.name not in {NAME, NAME + ENDING}:
                path.unlink()
        sync_folder(self.folder)
        self._log.truncate(0)

    @property
    def is_new(self) -> bool:
        """Whether no run is recorded, before or now; a journal that can't be read is not new."""
        try:
            return not self.complete and not runs_done(self.folder)
        except OSError:
            return False

    def restart(self) -> None:
        """Forget all that is recorded except the recipe."""
        lead, *others = _logs(self.folder)
        for log in others:
            log.truncate(0)
        lead.truncate(1)
        self.done, self.complete = set(), False

    def finish(self) -> None:
        """Record that all is on the disk, and files get their names from now on."""
        self._log.append({"complete": True})
        self.complete = True

    def remove(self) -> None:
        """Remove the directory if nothing else is left in it; the recipe's line goes last."""
        _, *others = _logs(self.folder)
        for log in reversed(others):
            with suppress(OSError):
                log.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._log.unlock(remove=True)
            self.folder.rmdir()

    def close(self) -> None:
        """Let other processes write there."""
        self._log.unlock()


def record(folder: Path, rank: int, numbers: Iterable[int]) -> None:
    """Record runs whose bytes are on the disk; each rank has a journal of its own."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    Log(folder / (f"{NAME}-{rank}" if rank else NAME), checksums=True).append({"done": ranges})


def runs_done(folder: Path) -> set[int]:
    """Numbers of all runs that are recorded."""
    entries = [entry for log in _logs(folder) for entry in log.entries()]
    return {n for entry in entries for a, b in entry.get("done", []) for n in range(a, b)}


def read(folder: Path) -> list[dict[str, Any]]:
    """The entries of a directory's journal; none where there is none."""
    entries = Log(folder / NAME, checksums=True).entries()
    return entries if entries and entries[0].get("schema") == _SCHEMA else []


def fingerprint(recipe: Recipe) -> str:
    """What is the same for two runs that write the same bytes by the same steps, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for fact in _facts(recipe):
        data = fact if isinstance(fact, bytes) else repr(fact).encode(errors="backslashreplace")
        digest.update(b"%d " % len(data) + data)
    return digest.hexdigest()


def _facts(recipe: Recipe) -> Iterator[object]:
    """What decides on a recipe's bytes and steps; one by one, of a million tensors too."""
    yield __version__, recipe.format, recipe.tile_elements, recipe.bases, recipe.spare
    for t in recipe.tensors:
        types = [d.name for d in (t.kind.dtype, t.kind.out, *t.kind.stored)]
        yield t.name, t.shape, t.average, types
    for source in recipe.sources:
        yield [(str(p), s) for p, s in sorted(source.checkpoint.stamps.items())]
        yield [str(p) for p in source.checkpoint.files]
        # Which dict of a file is read, and what its tensors' names began with.
        yield source.checkpoint.key, source.checkpoint.home
    for output in recipe.outputs:
        yield str(output.path), [str(p) for p in output.finals]
        for file in output.made:
            yield file.image.size_bytes
            for offset, data in file.image.segments:
                yield offset
                yield data
    yield recipe.weights.tobytes()
    yield recipe.sums.tobytes()


def _check(folder: Path, recipe: str, entries: list[dict[str, Any]]) -> None:
    """Refuse what another recipe, or somebody else, has left."""
    if entries and entries[0].get("plan") != recipe:
        raise UsageError(
            "holds the unfinished files of another synthesis",
            where=folder,
            remedy=f"run its command again on the same snapshots to finish it, pass --overwrite to "
            f"start again, or {removal(folder)}",
        )
    text = (folder / NAME).read_bytes()
    begun = _HEAD.startswith(text[: len(_HEAD)]) or not text.strip(b"\0")
    if not entries and (not begun or _others(folder)):
        raise UsageError(
            "is in the way of the output", where=folder, remedy="move it, or pass another -o"
        )


def _others(folder: Path) -> bool:
    """Whether a directory holds anything beside its journal."""
    return any(p.name not in {NAME, NAME + ENDING} for p in folder.iterdir())


def _logs(folder: Path) -> list[Log]:
    """The journal and those of other ranks."""
    paths = [folder / NAME, *sorted(folder.glob(f"{NAME}-*"))]
    return [Log(path, checksums=True) for path in paths]
