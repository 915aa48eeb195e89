"""Workers: they read, average and write one tile after the other.

A worker takes the next run of tiles, reads a tile's elements of every source into its buffers, and
writes their averages to every output. What a tile's bytes are depends on the recipe alone, so
neither workers nor their order show in the outputs.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from functools import partial

from phema_cli.errors import StorageError
from phema_cli.formats.files import FileReader, OpenFiles
from phema_cli.formats.locations import is_remote
from phema_cli.synthesis.averaging import Averager
from phema_cli.synthesis.finite import NonFiniteError, count_nonfinite, refuse
from phema_cli.synthesis.pools import Pool, Progress, forked, threaded
from phema_cli.synthesis.ranks import Ranks
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.staging import Checks, Recorder
from phema_cli.synthesis.tensors import averaged_kinds
from phema_cli.synthesis.tiles import Run, Segment, runs
from phema_cli.system.files import start_flush, write_at
from phema_cli.system.processes import most_open_files

#: tiles that a worker takes at a time, so that it reads each file from front to back.
_RUN_TILES = 16
#: bytes of a tile that is copied.
_COPY_BYTES = 1 << 20


def fill(
    recipe: Recipe, progress: Progress, *, done: Set[int], ranks: Ranks, processes: bool
) -> list[Checks]:
    """Let workers take this rank's runs until none is left or one has failed.

    Args:
        recipe: what to do; its outputs are staged.
        progress: called with a number of bytes read and written, from this thread.
        done: numbers of the runs that an earlier process has done.
        ranks: the processes that share the work.
        processes: whether workers are forked processes, which don't wait for one another as
            threads wait for the interpreter. Not where other threads of the program hold locks.

    Returns:
        Checksums of what was written, by output.

    Raises:
        InputError: a source is shorter than its header says or holds values that are not finite,
            or an average is too large.
        StorageError: the operating system failed to read or write, or ended a worker.
    """
    import torch

    own = _share(recipe, done, ranks)
    recorder = Recorder(recipe, ranks.rank, own)
    # What fsspec runs for remote files does not come along into a forked process.
    remote = any(is_remote(path) for path in recipe.inputs)
    run = forked if processes and recipe.jobs > 1 and not remote else threaded
    threads = torch.get_num_threads()
    # The workers are the parallelism: torch's own threads on top of them cost time.
    torch.set_num_threads(1)
    try:
        parts = run(partial(_work, recipe, own), len(own), recipe.jobs, progress, recorder.finished)
    except NonFiniteError as error:
        raise count_nonfinite(recipe) from error
    finally:
        torch.set_num_threads(threads)
    return merged(recipe, parts)


def merged(recipe: Recipe, parts: Sequence[list[Checks]]) -> list[Checks]:
    """The checksums, by output, of what several workers have written."""
    whole: list[Checks] = [{} for _ in recipe.outputs]
    for part in parts:
        for own, more in zip(whole, part, strict=True):
            for name, checks in more.items():
                own.setdefault(name, {}).update(checks)
    return whole


def _share(recipe: Recipe, done: Set[int], ranks: Ranks) -> list[Run]:
    """The rank's share of the bytes: neighbouring runs, so that most files have one writer."""
    left = [r for r in runs(recipe, recipe.tile_elements * _RUN_TILES) if r.number not in done]
    sizes = [
        (run.stop - run.start)
        * (len(recipe.sources) * plan.dtype.bits + len(recipe.outputs) * plan.out_dtype.bits)
        for run in left
        for plan in (run.segment.plan,)
    ]
    total, ends = sum(sizes), itertools.accumulate(sizes)
    # By the middle of each: a number that is the same on every rank.
    middles = [2 * end - size for end, size in zip(ends, sizes, strict=True)]
    return [
        run
        for run, middle in zip(left, middles, strict=True)
        if middle * ranks.size // (2 * total or 1) == ranks.rank
    ]


def _work(recipe: Recipe, own: Sequence[Run], pool: Pool) -> list[Checks]:
    """One worker: take runs until none is left; the checksums of what it wrote, by output."""
    open_files = max(4, (most_open_files() - 64) // (2 * recipe.jobs))
    with FileReader(open_files) as reader, OpenFiles(open_files, os.O_WRONLY) as writer:
        worker = _Worker(recipe, reader, writer)
        for number in iter(pool.take, len(own)):
            for done in worker.tiles(own[number]):
                pool.report(done)
                if pool.stopped():
                    return worker.checks
            pool.finish(number)
    return worker.checks


class _Worker:
    """One worker's buffers and what it does to a run.

    Attributes:
        checks: checksums of what it has written, by output.
    """

    def __init__(self, recipe: Recipe, reader: FileReader, writer: OpenFiles) -> None:
        self._recipe = recipe
        self._reader = reader
        self._writer = writer
        self._used = recipe.used
        self._averager = Averager(
            averaged_kinds(recipe.tensors),
            recipe.weights[self._used],
            recipe.sums,
            recipe.tile_elements,
        )
        self.checks: list[Checks] = [{} for _ in recipe.outputs]

    def tiles(self, run: Run) -> Iterator[int]:
        """Treat a run tile by tile; yields the bytes read and written for each."""
        plan = run.segment.plan
        # Multiples of 8: elements of less than a byte begin at whole bytes too.
        copied = _COPY_BYTES // plan.dtype.bits * 8
        size = self._recipe.tile_elements if plan.average else copied
        treat = self._average if plan.average else self._copy
        for start in range(run.start, run.stop, size):
            yield treat(run.segment, start, min(size, run.stop - start))
        # The run's bytes go to the disk while others are made: all are flushed at the end.
        start = plan.out_dtype.size_bytes(run.start)
        length = plan.out_dtype.size_bytes(run.stop) - start
        for place in run.segment.places:
            with suppress(OSError):
                start_flush(self._writer.descriptor(place.path), place.offset + start, length)

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
        plan, averager = segment.plan, self._averager
        segment.read(self._reader, self._used, start, averager.rows(plan.kind, count))
        for target, data in enumerate(averager.averages(plan.kind, count)):
            self._write(target, segment, plan.out_dtype.size_bytes(start), data)
        if not (averager.finite or self._recipe.allow_nonfinite):
            # What was read may have been overwritten.
            segment.read(self._reader, self._used, start, averager.rows(plan.kind, count))
            stored, made = averager.values(plan.kind, count)
            for tensor, low, high, _ in segment.parts(start, start + count):
                refuse(tensor, stored[:, low:high], made[:, low:high])
        read = plan.read_bytes(count, len(self._used))
        return read + plan.out_dtype.size_bytes(count) * len(self._recipe.outputs)

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
