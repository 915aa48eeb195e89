"""Outputs on disk: made in a directory beside their place, durable, then under their own names."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from phema_cli.errors import ALL_WRITTEN, InputError, StorageError, UsageError
from phema_cli.formats.crc32 import Ranges, crc32_from
from phema_cli.formats.damage import packed_files, refuse_damaged
from phema_cli.formats.remote import is_remote, remote_errors
from phema_cli.formats.stamps import refuse_changed
from phema_cli.synthesis import journal
from phema_cli.synthesis.journal import Journal
from phema_cli.synthesis.layout import Output, OutputFile
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.tiles import Run
from phema_cli.system.files import (
    allocated_bytes,
    copy,
    create,
    free_bytes,
    removal,
    replace,
    size_of,
    sync,
    sync_folder,
    writing,
)
from phema_cli.system.signals import held_signals, set_outcome

#: the most bytes of outputs after which they are flushed and recorded.
_RECORDED_BYTES = 64 << 20
#: runs of one output that may end while another one is about to start.
_TRIES = 100


def check_outputs(recipe: Recipe) -> None:
    """Refuse outputs that exist already, or would replace a snapshot.

    Outputs of this very recipe may exist where a run of it was killed between two names.

    Raises:
        UsageError: an output exists and was not to be replaced, or it is a snapshot.
        StorageError: the operating system can't look there.
    """
    inputs = {os.path.realpath(path) for path in recipe.inputs if not is_remote(path)}
    with writing(recipe.outputs[0].path):
        entries = journal.read(recipe.outputs[0].staging)
        complete = any(entry.get("complete") for entry in entries)
        resumes = complete and entries[0].get("plan") == journal.fingerprint(recipe)
    for output in recipe.outputs:
        with writing(output.path):
            present = output.present()
            folder = next((p for p in output.finals if p.is_dir()), None)
        own = next((p for p in [*output.finals, *present] if os.path.realpath(p) in inputs), None)
        if own is not None:
            raise UsageError("is one of the snapshots", where=own, remedy="choose another -o")
        if folder is not None:
            raise UsageError("is a directory", where=folder, remedy="choose another -o")
        if output.is_folder and os.path.lexists(output.path) and not output.path.is_dir():
            what = "is a file, and the output is a directory"
            raise UsageError(what, where=output.path, remedy="choose another -o")
        if present and not recipe.request.overwrite and not resumes:
            if recipe.request.skip_existing:
                what, remedy = "exists already, and is not complete", "--overwrite in place of"
            else:
                what, remedy = "exists already", "--overwrite or"
            raise UsageError(what, where=output.path, remedy=f"pass {remedy} --skip-existing")


class Recorder:
    """Flushes what one rank has written of its runs, and records them, every few megabytes."""

    def __init__(self, recipe: Recipe, rank: int, runs: Sequence[Run]) -> None:
        self._recipe = recipe
        self._rank = rank
        self._runs = runs
        images = [file.image for output in recipe.outputs for file in output.files]
        # Small shards are recorded one by one: a run that resumes makes only the last one again.
        self._limit = min(_RECORDED_BYTES, max(image.size_bytes for image in images))
        self._pending: list[Run] = []
        self._pending_bytes = 0

    def finished(self, indices: Sequence[int]) -> None:
        """Take note of runs that are written, by their indices."""
        runs = [self._runs[i] for i in indices]
        self._pending += runs
        self._pending_bytes += sum(run.size_bytes for run in runs) * len(self._recipe.outputs)
        if self._pending_bytes > self._limit:
            make_durable(self._recipe)
            lead = self._recipe.outputs[0]
            with writing(lead.path):
                journal.record(lead.staging, self._rank, [run.number for run in self._pending])
            self._pending, self._pending_bytes = [], 0


class Staging:
    """The directories and files that a recipe's outputs are made in, before they have names.

    A signal never ends a step between two states: either nothing is left on the disk, or a journal
    from which the same command resumes, and then the error says so.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._journals: list[Journal] = []
        self._made: list[Path] = []

    @property
    def journal(self) -> Journal:
        """The first output's, which says what is done."""
        return self._journals[0]

    def open(self) -> None:
        """Make the directories and files, or keep those that an earlier run has left.

        Raises:
            UsageError: another synthesis has left its work there, or as :func:`check_outputs`.
            StorageError: another process writes there, or the operating system failed.
        """
        name, overwrite = journal.fingerprint(self._recipe), self._recipe.request.overwrite
        with held_signals():
            for output in self._recipe.outputs:
                with writing(output.path):
                    self._journals.append(_claim(output, name, self._made, overwrite))
        # Not before they are locked: another run of the same outputs may have ended just now.
        check_outputs(self._recipe)
        _prepare(self._recipe, self.journal)

    def finish(self) -> None:
        """Give all files their names, and remove what is left.

        Once the journal says that all is complete, a run that resumes gives names and no more.
        """
        with held_signals():
            with writing(self._recipe.outputs[0].path):
                self.journal.finish()
            for output in self._recipe.outputs:
                publish(output)
            _remove(self._recipe, self._journals)
            self._close()
            set_outcome(ALL_WRITTEN)

    def abandon(self, error: BaseException) -> None:
        """Remove what was made, unless a run can resume from it: then the error is told so."""
        with held_signals():
            if self._journals and self.journal.is_new:
                _remove(self._recipe, self._journals)
            elif self._journals:
                error.add_note(f"the same command resumes from {self.journal.folder}")
            self._close()

    def _close(self) -> None:
        """Let other processes write there, and remove directories that stayed empty."""
        for opened in self._journals:
            opened.close()
        self._journals.clear()
        for path in sorted(set(self._made), key=lambda p: -len(p.parts)):
            with suppress(OSError):
                path.rmdir()


def _claim(output: Output, recipe: str, made: list[Path], overwrite: bool) -> Journal:
    """Make an output's directories, and lock the one it is made in; adds new ones to ``made``."""
    staging = output.staging
    for left in reversed(range(_TRIES)):
        if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
            raise UsageError(
                "is in the way of the output", where=staging, remedy="move it, or pass another -o"
            )
        for wanted in (output.finals[0].parent, staging):
            new = [p for p in (wanted, *wanted.parents) if not p.exists()]
            made += new
            wanted.mkdir(parents=True, exist_ok=True)
            for path in {wanted, *new}:
                sync_folder(path.parent)
        try:
            return Journal(staging, recipe, discard=overwrite)
        except FileNotFoundError:
            # A run that ends removes its directory, which this one was about to lock.
            if not left:
                raise
    raise AssertionError("the last try returns or raises")


def _prepare(recipe: Recipe, lead: Journal) -> None:
    """Create the files, full size and with headers, or keep those that are there."""
    if lead.complete:
        _check_complete(recipe)
        return
    files = [(output, file) for output in recipe.outputs for file in output.files]
    with writing(recipe.outputs[0].path):
        # No file may be on the disk without the journal that says whose it is.
        sync_folder(lead.folder)
        whole = all(size_of(o.staged(f.path)) == f.image.size_bytes for o, f in files)
        if lead.done and not whole:
            lead.restart()
    _check_space(recipe)
    for output in recipe.outputs:
        with writing(output.path):
            for file in (*output.made, *output.beside):
                # Kept: what an earlier run has begun to fill with values of tensors.
                if not (lead.done and file.image.offsets):
                    _create(file, output.staged(file.path))
            sync_folder(output.staging)


def _create(file: OutputFile, staged: Path) -> None:
    """Make a file, all of it but for the values of tensors.

    Raises:
        InputError: what it is a copy of is not what it was.
        StorageError: that can't be read.
    """
    source, image = file.source, file.image
    if source is None:
        create(staged, image.size_bytes, image.segments)
        return
    try:
        with remote_errors(source):
            same = copy(source, staged, image.size_bytes)
    except OSError as error:
        if error.filename != str(source):
            raise
        raise StorageError.wrap(error, source, "read") from error
    if not same:
        raise InputError("changed while it was read", where=source, remedy="run the command again")


def _check_complete(recipe: Recipe) -> None:
    """Refuse to publish files that somebody has removed since they were complete."""
    for output in recipe.outputs:
        lost = [p for p in output.finals if not p.exists() and not output.staged(p).exists()]
        if lost:
            staging = recipe.outputs[0].staging
            raise StorageError(
                "was finished, and is missing now",
                where=lost[0],
                remedy=f"{removal(staging)}, and run again",
            )


def _check_space(recipe: Recipe) -> None:
    """Refuse outputs that the disks have no room for; what is there already counts.

    Raises:
        StorageError: a file system has less free space than its outputs need.
    """
    needed: dict[int, int] = {}
    for output in recipe.outputs:
        with writing(output.path):
            device = output.staging.stat().st_dev
            needed[device] = needed.get(device, 0) + sum(
                max(0, file.image.size_bytes - allocated_bytes(output.staged(file.path)))
                for file in output.files
            )
            needed[device] += sum(file.image.size_bytes for file in output.beside)
            free = free_bytes(output.staging)
        if free is not None and needed[device] > free:
            raise StorageError(
                f"needs {needed[device]:,} bytes more, and {free:,} are free",
                where=output.path,
                remedy="free space there, or pass another -o",
            )


def _remove(recipe: Recipe, journals: Sequence[Journal]) -> None:
    """Remove staging directories, the one that knows of all of them last."""
    for output, opened in reversed(list(zip(recipe.outputs, journals, strict=False))):
        for final in output.finals:
            # What could not be made can't be removed; the error that matters is the first one.
            with suppress(OSError):
                output.staged(final).unlink(missing_ok=True)
        opened.remove()


def check_inputs(recipe: Recipe, read: Ranges) -> None:
    """Refuse sources that are not what they were when their headers were read, and damaged ones.

    Args:
        recipe: what its outputs were made by.
        read: what was read of packed files, by their paths.

    Raises:
        InputError: a file was replaced, or written to, or has been damaged.
        StorageError: the operating system can't look there.
    """
    remedy = "no output was written; run again when nothing writes to the snapshots"
    for source in recipe.sources:
        refuse_changed(source.checkpoint.stamps, remedy)
    if recipe.terms is not None:
        packed = (recipe.sources[i].checkpoint for i in recipe.used)
        refuse_damaged(packed_files(packed), read, recipe.jobs)


def make_durable(recipe: Recipe) -> None:
    """Flush all files that are to get a name."""
    for output in recipe.outputs:
        with writing(output.path):
            for path in output.finals:
                sync(output.staged(path))


def publish(output: Output) -> None:
    """Give the files their names, the index last; those that have them already keep them."""
    with writing(output.path):
        waiting = [p for p in output.finals if output.staged(p).exists()]
        # A reader must not meet an old index beside new shards, nor a new one beside old shards.
        index = [p for p in waiting if output.index is not None and p == output.index.path]
        stale = [*output.stale(), *output.other_cards()]
        for path in [*index, *stale]:
            path.unlink(missing_ok=True)
        if index or stale:
            sync_folder(output.finals[0].parent)
        for path in waiting:
            if path in index:
                sync_folder(path.parent)
            replace(output.staged(path), path)
        sync_folder(output.finals[0].parent)


def write_checksums(recipe: Recipe, written: Sequence[Ranges]) -> None:
    """Put each tensor's CRC-32, and the hash of all, where the format has them.

    Args:
        recipe: what made the outputs; their files are whole but for these.
        written: what was written of each tensor, by output; the rest, which an earlier run has
            written, is read.
    """
    sizes = {t.name: t.kind.out.size_bytes(t.elements) for t in recipe.tensors}
    for output, own in zip(recipe.outputs, written, strict=True):
        for file in output.files:
            if not (file.image.checksums or file.image.hashes):
                continue
            with writing(output.path), output.staged(file.path).open("r+b") as stream:
                file.image.seal(stream)
                rest = partial(crc32_from, stream)
                for name, places in file.image.checksums.items():
                    begin = file.image.offsets[name]
                    crc = own.crc32(name, begin, begin + sizes[name], rest)
                    for place in places:
                        stream.seek(place)
                        stream.write(crc.to_bytes(4, "little"))
