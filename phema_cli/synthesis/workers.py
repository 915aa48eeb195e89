"""Workers: they read, average and write one tile after the other.

A worker takes the next run of tiles, reads a tile's elements of every source into its buffers, and
writes their averages to every output. What a tile's bytes are depends on the recipe alone, so
neither workers nor their order show in the outputs.

Infinities and NaN in some of the sources are refused. Masks have infinities: one that all sources
share does no harm and comes out as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from phema_cli.errors import InputError
from phema_cli.formats.crc32 import Ranges
from phema_cli.formats.damage import packed_files, unchecked
from phema_cli.formats.reader import FileReader, OpenFiles
from phema_cli.formats.remote import is_remote
from phema_cli.synthesis.averaging import Averager
from phema_cli.synthesis.memory import held_bytes
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.staging import Recorder, check_inputs
from phema_cli.synthesis.tensors import TensorPlan, averaged_kinds
from phema_cli.synthesis.tiles import Run, Segment, runs, segments
from phema_cli.system.files import start_flush, write_at, writing
from phema_cli.system.pools import Pool, Progress, forked, threaded
from phema_cli.system.processes import FORKS, files_of_each
from phema_cli.system.ranks import Ranks

if TYPE_CHECKING:
    import torch

#: tiles that a worker takes at a time, so that it reads each file from front to back.
_RUN_TILES = 16
#: bytes of a tile that is copied.
_COPY_BYTES = 1 << 20
#: places of values that are not finite which an error names.
_SHOWN = 3
_SINGLE_BYTES = 4


class _NonFiniteError(InputError):
    """A source holds infinities or NaN where others don't."""


def fill(
    recipe: Recipe, progress: Progress, *, done: Set[int], ranks: Ranks, processes: bool
) -> Checksums:
    """Let workers take this rank's runs until none is left or one has failed.

    Args:
        recipe: what to do; its outputs are staged.
        progress: called with a number of bytes read and written, from this thread.
        done: numbers of the runs that an earlier process has done.
        ranks: the processes that share the work.
        processes: whether workers are forked processes, which don't wait for one another as
            threads wait for the interpreter. Not where other threads of the program hold locks.

    Returns:
        Checksums of what was written and read.

    Raises:
        InputError: a source is shorter than its header says or holds values that are not finite,
            or an average is too large.
        StorageError: the operating system failed to read or write, or ended a worker.
    """
    own = _share(recipe, done, ranks)
    recorder = Recorder(recipe, ranks.rank, own)
    # What fsspec runs for remote files does not come along into a forked process.
    remote = any(is_remote(path) for path in recipe.inputs)
    # A single one too: what hangs or dies there must not take this process with it.
    run = forked if processes and FORKS and recipe.jobs > 1 and not remote else threaded
    jobs = max(1, min(recipe.jobs, len(own)))
    work = partial(_work, recipe, own)
    with one_thread():
        try:
            parts = run(work, len(own), jobs, progress, recorder.finished)
        except _NonFiniteError as error:
            raise count_nonfinite(recipe) from error
    return Checksums(recipe, parts)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch use one thread: the workers are the parallelism, more on top of them cost time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stream(recipe: Recipe) -> Iterator[tuple[TensorPlan, torch.Tensor]]:
    """The tensors of a recipe's one output, in its order: the same bytes, and no file.

    One is held at a time, beside a worker's buffers, which are made with the first.

    Yields:
        What was made, and its bytes: a tensor of uint8 with one dimension.

    Errors as :func:`fill`, but for those of writing; sources that have changed are an error after
    the last tensor.
    """
    import torch

    left: list[memoryview] = []
    read = Ranges()
    with FileReader() as reader:
        worker = Worker(recipe, reader, read)
        for segment in segments(recipe):
            tiles = worker.chunks(Run(0, segment, 0, segment.elements))
            for plan in segment.plans:
                data = torch.empty(plan.kind.out.size_bytes(plan.elements), dtype=torch.uint8)
                try:
                    with one_thread():
                        _pour(tiles, left, data.numpy().data)
                except _NonFiniteError as error:
                    raise count_nonfinite(recipe) from error
                yield plan, data
                # Not held while the next one is made.
                del data
    check_inputs(recipe, read)


def _pour(tiles: Iterator[Chunk], left: list[memoryview], out: memoryview) -> None:
    """Fill ``out`` with the bytes that come next, and have more tiles made for it.

    Args:
        tiles: makes the next one.
        left: the bytes of the last tile that no tensor has taken yet: they stay as they are until
            the next one is made.
        out: a tensor's.
    """
    while len(out):
        tile = left.pop() if left else next(tiles).data
        count = min(len(out), len(tile))
        out[:count], out = tile[:count], out[count:]
        if count < len(tile):
            left.append(tile[count:])


class Checksums:
    """CRC-32 of what workers have written and read, as far as formats have any.

    Args:
        recipe: what they do.
        parts: those of several workers, which are joined.

    Attributes:
        written: of each tensor by its name and its place in the file, by output.
        read: of packed files, by their paths.
    """

    def __init__(self, recipe: Recipe, parts: Iterable[Checksums] = ()) -> None:
        self.written = [Ranges() for _ in recipe.outputs]
        self.read = Ranges()
        for part in parts:
            self.read.update(part.read)
            for own, more in zip(self.written, part.written, strict=True):
                own.update(more)


def _share(recipe: Recipe, done: Set[int], ranks: Ranks) -> list[Run]:
    """The rank's share of the bytes: neighbouring runs, so that most files have one writer."""
    left = [r for r in runs(recipe, recipe.tile_elements * _RUN_TILES) if r.number not in done]
    sources, outputs = len(recipe.sources), len(recipe.outputs)
    kinds = [run.segment.plan.kind for run in left]
    moved = [sources * kind.dtype.bits + outputs * kind.out.bits for kind in kinds]
    sizes = [(run.stop - run.start) * bits for run, bits in zip(left, moved, strict=True)]
    share, end, total = [], 0, sum(sizes)
    for run, size in zip(left, sizes, strict=True):
        end += size
        # By the middle of each: a number that is the same on every rank.
        if (2 * end - size) * ranks.size // (2 * total) == ranks.rank:
            share.append(run)
    return share


def _work(recipe: Recipe, own: Sequence[Run], pool: Pool) -> Checksums:
    """One worker: take runs until none is left; the checksums of what it wrote and read."""
    checksums = Checksums(recipe)
    open_files = files_of_each(recipe.jobs)
    held = held_bytes(recipe.request.max_memory, recipe.jobs)
    with FileReader(open_files, held) as reader, OpenFiles(open_files, os.O_WRONLY) as writer:
        worker = Worker(recipe, reader, checksums.read)
        done = 0
        for number in iter(pool.take, len(own)):
            for target, start, data, read in worker.chunks(own[number]):
                place = own[number].segment.places[target]
                if place.checksum is not None:
                    checksums.written[target].add(place.checksum, place.offset + start, data)
                with writing(recipe.outputs[target].path):
                    write_at(writer.descriptor(place.path), data, place.offset + start)
                done += read + len(data)
                # Not held while the next bytes are made.
                del data
                # Once for each tile: it waits for the other workers.
                if target == len(recipe.outputs) - 1:
                    pool.report(done)
                    done = 0
                if pool.stopped():
                    return checksums
            _flush(own[number], writer)
            pool.finish(number)
    return checksums


def _flush(run: Run, writer: OpenFiles) -> None:
    """Have a run's bytes go to the disk while others are made: all are flushed at the end."""
    kind = run.segment.plan.kind
    start = kind.out.size_bytes(run.start)
    length = kind.out.size_bytes(run.stop) - start
    for place in run.segment.places:
        with suppress(OSError):
            start_flush(writer.descriptor(place.path), place.offset + start, length)


class Chunk(NamedTuple):
    """What was made of a tile for a target.

    Attributes:
        target: its number.
        start: the first byte, from the beginning of the segment.
        data: the bytes; what is made next overwrites them.
        read: bytes read to make them; of an average all are counted with the first target.
    """

    target: int
    start: int
    data: memoryview
    read: int


class Worker:
    """One worker's buffers and what it does to a run.

    Args:
        recipe: what to do.
        reader: what reads the sources.
        read: takes the checksums of what is read of packed files that are not known to be whole;
            None where nobody asks for them.
    """

    def __init__(self, recipe: Recipe, reader: FileReader, read: Ranges | None = None) -> None:
        self._recipe = recipe
        self._reader = reader
        self._read = read
        self._averager = Averager(
            averaged_kinds(recipe.tensors),
            recipe.weights[recipe.used],
            recipe.sums,
            recipe.tile_elements,
            recipe.terms,
        )
        packed = [recipe.sources[i].checkpoint for i in recipe.used] if recipe.terms else []
        self._unchecked = set() if read is None else unchecked(packed_files(packed))

    def chunks(self, run: Run) -> Iterator[Chunk]:
        """Treat a run tile by tile, for all targets."""
        plan = run.segment.plan
        # Multiples of 8: elements of less than a byte begin at whole bytes too.
        copied = _COPY_BYTES // plan.kind.dtype.bits * 8
        size = self._recipe.tile_elements if plan.average else copied
        treat = self._average if plan.average else self._copy
        for start in range(run.start, run.stop, size):
            yield from treat(run.segment, start, min(size, run.stop - start))

    def _copy(self, segment: Segment, start: int, count: int) -> Iterator[Chunk]:
        """Take elements from each target's base source as they are."""
        dtype = segment.plan.kind.dtype
        data = memoryview(bytearray(dtype.size_bytes(count)))
        for target in range(len(self._recipe.outputs)):
            giver = self._recipe.giver(target, segment.plan.name)
            self._reader.read_elements(segment.sources[giver], start, data)
            yield Chunk(target, dtype.size_bytes(start), data, len(data))

    def _average(self, segment: Segment, start: int, count: int) -> Iterator[Chunk]:
        """Average elements for every target."""
        kind, averager = segment.plan.kind, self._averager
        rows = averager.rows(kind, count)
        segment.read(self._reader, start, rows)
        if kind.packed and self._unchecked and self._read is not None:
            for path, offset, row in segment.stored(start, rows):
                if path in self._unchecked:
                    self._read.add(str(path), offset, row)
        averages = averager.averages(kind, count)
        if not (averager.finite or self._recipe.request.allow_nonfinite):
            # What was read may have been overwritten.
            segment.read(self._reader, start, rows)
            stored, made = averager.values(kind, count)
            for tensor, low, high, _ in segment.parts(start, start + count):
                _refuse(tensor, stored[:, low:high], made[:, low:high])
        for target, data in enumerate(averages):
            read = 0 if target else sum(map(len, rows))
            yield Chunk(target, kind.out.size_bytes(start), data, read)


def _nonfinite(stored: torch.Tensor) -> torch.Tensor:
    """Where sources (n, elements) are not finite and differ: (n, elements) of bool."""
    values = _wide(stored)
    alike = (values == values[0]).all(dim=0)
    return ~(values.isfinite() | alike)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """The values, or those of 8 and 16 bits as float32: torch can't compare all narrow types."""
    return values.float() if values.element_size() < _SINGLE_BYTES else values


def _refuse(plan: TensorPlan, stored: torch.Tensor, made: torch.Tensor) -> None:
    """Refuse averages (k, elements) of sources (n, elements) that are not finite, but for masks.

    Raises:
        _NonFiniteError: some source is not finite.
        InputError: all are, and an average is too large for the type that it is written in.
    """
    if bool(_nonfinite(stored).any()):
        raise _NonFiniteError(f"tensor {plan.name} holds values that are not finite")
    finite = _wide(stored).isfinite().all(dim=0)
    if not bool(_wide(made).isfinite()[:, finite].all()):
        raise InputError(
            f"tensor {plan.name}: an average is too large for {plan.kind.out.label}",
            remedy="pass --dtype float32, or leave the tensor out with --copy",
        )


def count_nonfinite(recipe: Recipe) -> InputError:
    """The error that says how many values are not finite, in which tensors of which files.

    It reads all sources once more, in the order of the outputs.
    """
    counts: list[tuple[int, str, str]] = []
    with FileReader() as reader:
        for plan in recipe.tensors:
            if plan.average:
                by_source = zip(_count(recipe, plan, reader), recipe.sources, strict=True)
                counts += [(n, plan.name, source.name) for n, source in by_source if n]
    total = sum(n for n, _, _ in counts)
    shown = ", ".join(f"{n:,} in tensor {name} of {source}" for n, name, source in counts[:_SHOWN])
    more = f" and {len(counts) - _SHOWN} others" if len(counts) > _SHOWN else ""
    return InputError(
        f"{total:,} value{' is' if total == 1 else 's are'} not finite: {shown}{more}",
        remedy="leave out the file with --exclude, copy the tensor with --copy, or "
        "pass --allow-nonfinite",
    )


def _count(recipe: Recipe, plan: TensorPlan, reader: FileReader) -> Sequence[int]:
    """How many elements of a tensor are not finite and differ, by source."""
    import torch

    size = recipe.tile_elements
    extents = [recipe.extent(i, plan.name) for i in range(len(recipe.sources))]
    wide = any(e.dtype.name == "F64" for e in extents)
    counts = torch.zeros(len(extents), dtype=torch.int64)
    for start in range(0, plan.elements, size):
        count = min(size, plan.elements - start)
        held = torch.empty(len(extents), count, dtype=torch.float64 if wide else torch.float32)
        for extent, row in zip(extents, held, strict=True):
            stored = torch.empty(count, dtype=getattr(torch, extent.dtype.label))
            reader.read_elements(extent, start, stored.view(torch.uint8).numpy().data)
            row.copy_(stored)
        counts += _nonfinite(held).sum(dim=1)
    return counts.tolist()
