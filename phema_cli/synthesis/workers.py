"""Workers: they read, average and write one tile after the other.

A worker takes the next run of tiles, reads a tile's elements of every source into its buffers, and
writes their averages to every output. What a tile's bytes are depends on the recipe alone, so
neither workers nor their order show in the outputs.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from phema_cli.errors import StorageError
from phema_cli.formats.reader import FileReader, OpenFiles
from phema_cli.formats.remote import is_remote
from phema_cli.synthesis.averaging import Averager
from phema_cli.synthesis.finite import refuse
from phema_cli.synthesis.pools import Pool, Progress, forked, threaded
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.segments import Segment, segments
from phema_cli.synthesis.staging import Checks, Notes
from phema_cli.synthesis.tensors import averaged_kinds
from phema_cli.system.files import start_flush, write_at
from phema_cli.system.processes import most_open_files

if TYPE_CHECKING:
    import torch

#: tiles that a worker takes at a time, so that it reads each file from front to back.
_RUN_TILES = 16
#: bytes of a tile that is copied.
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Run:
    """A range of a segment's elements, the same on every rank and in every run of a recipe."""

    number: int
    segment: Segment
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Share:
    """What part of the work is to be done here.

    Attributes:
        rank: which share it is.
        ranks: how many shares there are, of as many bytes each.
        done: runs that need not be done.
    """

    rank: int = 0
    ranks: int = 1
    done: frozenset[int] = frozenset()


def fill(
    recipe: Recipe,
    progress: Progress,
    notes: Notes,
    *,
    share: Share,
    processes: bool = False,
) -> list[Checks]:
    """Let workers take runs until none is left or one has failed.

    Args:
        recipe: what to do; its outputs are staged.
        progress: called with a number of bytes read and written, from this thread.
        notes: told of runs that are written.
        share: which runs.
        processes: whether workers are forked processes, which don't wait for one another as
            threads wait for the interpreter. Not where other threads of the program hold locks.

    Returns:
        Checksums of what was written, by output.

    Raises:
        NonFiniteError: a source holds values that are not finite.
        InputError: a source is shorter than its header says, or an average is too large.
        StorageError: the operating system failed to read or write, or ended a worker.
    """
    import torch

    work = _Work(recipe, _dealt(recipe, share))

    def finished(numbers: Sequence[int]) -> None:
        runs = [work.runs[i] for i in numbers]
        written = sum(r.segment.plan.out_dtype.size_bytes(r.stop - r.start) for r in runs)
        notes([r.number for r in runs], written * len(recipe.outputs))

    run = forked if processes and recipe.jobs > 1 and _can_fork(recipe) else threaded
    threads = torch.get_num_threads()
    # The workers are the parallelism: torch's own threads on top of them cost time.
    torch.set_num_threads(1)
    try:
        found = run(work, len(work.runs), recipe.jobs, progress, finished)
    finally:
        torch.set_num_threads(threads)
    return merged(recipe, found)


def _can_fork(recipe: Recipe) -> bool:
    """Whether all that workers use comes along into a forked process: what fsspec runs does not."""
    return not any(is_remote(path) for path in recipe.inputs)


def merged(recipe: Recipe, parts: Sequence[list[Checks]]) -> list[Checks]:
    """The checksums, by output, of what several workers have written."""
    whole: list[Checks] = [{} for _ in recipe.outputs]
    for part in parts:
        for own, more in zip(whole, part, strict=True):
            for name, found in more.items():
                own.setdefault(name, {}).update(found)
    return whole


@dataclass(frozen=True, slots=True)
class _Work:
    """What all workers share."""

    recipe: Recipe
    runs: list[_Run]

    def __call__(self, pool: Pool) -> list[Checks]:
        """One worker: take runs until none is left; the checksums of what it wrote, by output."""
        open_files = max(4, (most_open_files() - 64) // (2 * self.recipe.jobs))
        with (
            FileReader(open_files) as reader,
            OpenFiles(open_files, os.O_WRONLY) as writer,
        ):
            worker = _Worker(self.recipe, reader, writer)
            for number in iter(pool.take, len(self.runs)):
                for done in worker.do(self.runs[number]):
                    pool.report(done)
                    if pool.stopped():
                        return worker.checks
                pool.finish(number)
        return worker.checks


def _runs(recipe: Recipe) -> Iterator[_Run]:
    """All work, in the order of the outputs' data."""
    size = recipe.tile_elements * _RUN_TILES
    numbers = itertools.count()
    for segment in segments(recipe):
        for start in range(0, segment.elements, size):
            stop = min(start + size, segment.elements)
            yield _Run(next(numbers), segment, start, stop)


def _dealt(recipe: Recipe, share: Share) -> list[_Run]:
    """The rank's share: runs that follow on one another, so that most files have one writer."""
    runs = [run for run in _runs(recipe) if run.number not in share.done]
    sizes = [
        (run.stop - run.start)
        * (len(recipe.sources) * plan.dtype.bits + len(recipe.outputs) * plan.out_dtype.bits)
        for run in runs
        for plan in (run.segment.plan,)
    ]
    total, ends = sum(sizes), itertools.accumulate(sizes)
    # By the middle of each: a number that is the same on every rank.
    middles = [2 * end - size for end, size in zip(ends, sizes, strict=True)]
    return [
        run
        for run, middle in zip(runs, middles, strict=True)
        if middle * share.ranks // (2 * total or 1) == share.rank
    ]


class Tiles:
    """A recipe's tiles, read one after the other into the same buffers.

    Args:
        recipe: what is read.
        reader: what reads it.

    Attributes:
        used: the sources that weigh, newest first: differences are taken from the newest.
    """

    def __init__(self, recipe: Recipe, reader: FileReader) -> None:
        self._reader = reader
        self.used = [i for i in range(len(recipe.sources)) if recipe.weights[i].any()][::-1]
        self._averager = Averager(
            averaged_kinds(recipe.tensors),
            recipe.weights[self.used],
            recipe.sums,
            recipe.tile_elements,
        )

    @property
    def sound(self) -> bool:
        """Whether the last averages, and what they were made of, are surely finite."""
        return self._averager.sound

    def averages(self, segment: Segment, start: int, count: int) -> list[memoryview]:
        """The bytes of each target's average of these elements; the next call overwrites them."""
        self._read(segment, start, count)
        return self._averager.averages(segment.plan.kind, count)

    def values(self, segment: Segment, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the sources hold (n, count), and the last averages (k, count), as numbers."""
        self._read(segment, start, count)
        return self._averager.values(segment.plan.kind, count)

    def _read(self, segment: Segment, start: int, count: int) -> None:
        """Read these elements of every source that weighs."""
        extents = [segment.sources[source] for source in self.used]
        rows = self._averager.rows(segment.plan.kind, count)
        if segment.plan.stored:
            wanted = zip(extents, rows, strict=True)
            self._reader.read_many([(extent, start, row) for extent, row in wanted])
        else:
            self._reader.read_rows(extents, start, rows)


class _Worker:
    """One worker's buffers and what it does to a run.

    Attributes:
        checks: checksums of what it has written, by output.
    """

    def __init__(self, recipe: Recipe, reader: FileReader, writer: OpenFiles) -> None:
        self._recipe = recipe
        self._reader = reader
        self._writer = writer
        self._tiles = Tiles(recipe, reader)
        self.checks: list[Checks] = [{} for _ in recipe.outputs]

    def do(self, run: _Run) -> Iterator[int]:
        """Treat a run tile by tile; yields the bytes read and written for each."""
        plan = run.segment.plan
        # Multiples of 8: elements of less than a byte begin at whole bytes too.
        copied = _COPY_BYTES // plan.dtype.bits * 8
        size = self._recipe.tile_elements if plan.average else copied
        for start in range(run.start, run.stop, size):
            count = min(size, run.stop - start)
            treat = self._average if plan.average else self._copy
            yield treat(run.segment, start, count)
        self._start_flush(run)

    def _copy(self, segment: Segment, start: int, count: int) -> int:
        """Take elements from each target's base source as they are."""
        dtype = segment.plan.dtype
        data = memoryview(bytearray(dtype.size_bytes(count)))
        targets = range(len(self._recipe.outputs))
        for target in targets:
            giver = self._recipe.giver(target, segment.plan.name)
            self._reader.read_elements(segment.sources[giver], start, data)
            self._write(target, segment, dtype.size_bytes(start), data)
        return 2 * len(data) * len(targets)

    def _average(self, segment: Segment, start: int, count: int) -> int:
        """Average elements for every target."""
        plan = segment.plan
        for k, data in enumerate(self._tiles.averages(segment, start, count)):
            self._write(k, segment, plan.out_dtype.size_bytes(start), data)
        if not (self._tiles.sound or self._recipe.request.allow_nonfinite):
            self._look_into(segment, start, count)
        read = plan.read_bytes(count, len(self._tiles.used))
        return read + plan.out_dtype.size_bytes(count) * len(self._recipe.outputs)

    def _look_into(self, segment: Segment, start: int, count: int) -> None:
        """See what is not finite in a tile."""
        stored, made = self._tiles.values(segment, start, count)
        for plan, low, high, _ in segment.parts(start, start + count):
            refuse(plan, stored[:, low:high], made[:, low:high])

    def _start_flush(self, run: _Run) -> None:
        """Have the run's bytes go to the disk while others are made: all are flushed at the end."""
        dtype = run.segment.plan.out_dtype
        start = dtype.size_bytes(run.start)
        for place in run.segment.places:
            length = dtype.size_bytes(run.stop) - start
            with suppress(OSError):
                start_flush(self._writer.descriptor(place.path), place.offset + start, length)

    def _write(self, target: int, segment: Segment, start: int, data: memoryview) -> None:
        """Write bytes of a segment into an output, from the segment's byte ``start`` on."""
        place = segment.places[target]
        if place.checksum is not None:
            parts = self.checks[target].setdefault(place.checksum, {})
            parts[start] = (zlib.crc32(data), len(data))
        try:
            write_at(self._writer.descriptor(place.path), data, place.offset + start)
        except OSError as error:
            raise StorageError.wrap(error, self._recipe.outputs[target].path, "write") from error
