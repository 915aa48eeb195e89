"""The engine: executes a recipe. Worker threads, positional reads and writes, fsync and rename.

Each worker takes the next chunk of a tensor, reads that range of every source into one reused
buffer, adds it to the sums of all targets, and writes the range of every output. What a chunk's
bytes are depends on the recipe alone, so neither workers nor their order show in the outputs.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phema_cli.errors import StorageError, UsageError
from phema_cli.formats._crc import join
from phema_cli.formats.base import FileReader, OpenFiles
from phema_cli.synthesis.layout import Output
from phema_cli.synthesis.recipe import Recipe, TensorPlan

if TYPE_CHECKING:
    import torch

Progress = Callable[[int], None]
PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A range of a tensor's elements."""

    plan: TensorPlan
    start: int
    count: int


def check_outputs(recipe: Recipe, overwrite: bool) -> None:
    """Refuse outputs that exist already, or would replace a snapshot.

    Raises:
        UsageError: an output exists and ``overwrite`` is false, or it is a snapshot.
        StorageError: the operating system can't look there.
    """
    inputs = {os.path.realpath(path) for path in recipe.inputs}
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


def execute(recipe: Recipe, *, overwrite: bool = False, progress: Progress | None = None) -> None:
    """Carry out a recipe: when it returns, all outputs are complete and on disk.

    No output gets its name before all of them are complete.

    Args:
        recipe: what to do.
        overwrite: whether existing outputs are replaced.
        progress: called with a number of bytes read and written, from worker threads, one at a
            time.

    Raises:
        UsageError: as :func:`check_outputs`.
        InputError: a source is shorter than its header says.
        StorageError: the operating system failed to read or write.
    """
    check_outputs(recipe, overwrite)
    with ExitStack() as stack:
        for output in recipe.outputs:
            stack.enter_context(_staged(output))
        checks = _fill(recipe, progress or (lambda _: None))
        for number, output in enumerate(recipe.outputs):
            _write_checksums(output, checks[number])
        for output in recipe.outputs:
            _make_durable(output)
        for output in recipe.outputs:
            _publish(output)


def _partial(path: Path) -> Path:
    """The name that a file has until it is complete."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def _staged(output: Output) -> Iterator[None]:
    """Create the output's files under their partial names, full size and with headers.

    What is left of them at the end is removed, and so is a directory made for them.
    """
    folder = output.files[0].path.parent
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in output.files:
                with _partial(file.path).open("wb") as stream:
                    _allocate(stream.fileno(), file.image.size_bytes)
                    for offset, data in file.image.segments:
                        stream.seek(offset)
                        stream.write(data)
            if output.index is not None:
                _partial(output.index[0]).write_bytes(output.index[1])
        except OSError as error:
            raise StorageError.wrap(error, output.path, "write") from error
        yield
    finally:
        for final in output.finals:
            # What could not be made can't be removed; the error that matters is the first one.
            with suppress(OSError):
                _partial(final).unlink(missing_ok=True)
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


def _make_durable(output: Output) -> None:
    """Flush all that is to get a name."""
    try:
        for path in output.finals:
            _sync(_partial(path))
    except OSError as error:
        raise StorageError.wrap(error, output.path, "write") from error


def _publish(output: Output) -> None:
    """Give the files their names, the index last."""
    try:
        stale = [p for p in output.present() if p != output.path and p not in output.finals]
        # A reader must not meet an old index beside new shards, nor a new one beside old shards.
        for path in [*output.finals[len(output.files) :], *stale]:
            path.unlink(missing_ok=True)
        for path in output.finals:
            _partial(path).replace(path)
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


def _chunks(recipe: Recipe) -> Iterator[_Chunk]:
    """All work, in the order of the outputs' data."""
    for plan in recipe.tensors:
        elements = recipe.extent(-1, plan.name).elements
        for start in range(0, elements, recipe.chunk_elements):
            yield _Chunk(plan, start, min(recipe.chunk_elements, elements - start))


def _fill(recipe: Recipe, progress: Progress) -> list[_Checks]:
    """Let workers take chunks until none is left or one has failed; checksums by output."""
    import torch

    chunks, lock, stop = _chunks(recipe), threading.Lock(), threading.Event()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = max(4, (soft - 64) // (2 * recipe.jobs))

    checks: list[_Checks] = [{} for _ in recipe.outputs]

    def work() -> None:
        try:
            with FileReader(open_files) as reader, OpenFiles(open_files, os.O_WRONLY) as writer:
                worker = _Worker(recipe, reader, writer)
                while not stop.is_set():
                    with lock:
                        chunk = next(chunks, None)
                    if chunk is None:
                        break
                    done = worker.do(chunk)
                    with lock:
                        progress(done)
            with lock:
                _merge(checks, worker.checks)
        except BaseException:
            stop.set()
            raise

    threads = torch.get_num_threads()
    # The workers are the parallelism: torch's own threads on top of them cost time.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(recipe.jobs) as pool:
            futures = [pool.submit(work) for _ in range(recipe.jobs)]
            try:
                for future in futures:
                    future.result()
            finally:
                stop.set()
    finally:
        torch.set_num_threads(threads)
    return checks


#: CRC-32 and bytes of the parts of a tensor by their first byte, by tensor name.
_Checks = dict[str, dict[int, tuple[int, int]]]


def _merge(checks: list[_Checks], found: list[_Checks]) -> None:
    """Add what a worker has found."""
    for own, other in zip(checks, found, strict=True):
        for name, parts in other.items():
            own.setdefault(name, {}).update(parts)


def _write_checksums(output: Output, checks: _Checks) -> None:
    """Put each tensor's CRC-32 where the format has it."""
    try:
        for file in output.files:
            if not file.image.checksums:
                continue
            with _partial(file.path).open("r+b") as stream:
                for name, places in file.image.checksums.items():
                    crc = 0
                    for _, (part, length) in sorted(checks[name].items()):
                        crc = join(crc, part, length)
                    for place in places:
                        stream.seek(place)
                        stream.write(crc.to_bytes(4, "little"))
    except OSError as error:
        raise StorageError.wrap(error, output.path, "write") from error


class _Worker:
    """One thread's buffers and what it does to a chunk."""

    def __init__(self, recipe: Recipe, reader: FileReader, writer: OpenFiles) -> None:
        import torch

        self._recipe = recipe
        self._reader = reader
        self._writer = writer
        averaged = [p for p in recipe.tensors if p.average]
        wide = any(p.dtype.name == "F64" for p in averaged)
        compute = torch.float64 if wide else torch.float32
        bits = [*(p.dtype.bits for p in averaged), *(p.out_dtype.bits for p in averaged), 8]
        n = recipe.chunk_elements
        self._raw = torch.empty(n * max(bits) // 8, dtype=torch.uint8)
        self._raw_view = self._raw.numpy().data
        self._reference = torch.empty(n, dtype=compute)
        self._difference = torch.empty(n, dtype=compute)
        self._sums = torch.empty((len(recipe.targets), n), dtype=compute)
        # Newest first: the reference that differences are taken from leads.
        used = [i for i in range(len(recipe.sources)) if recipe.weights[i].any()]
        self._used = used[::-1]
        self._weights = recipe.weights.tolist()
        self.checks: list[_Checks] = [{} for _ in recipe.outputs]
        self._alone = [_alone(recipe, k) for k in range(len(recipe.targets))]

    def do(self, chunk: _Chunk) -> int:
        """Treat a chunk; returns the bytes read and written."""
        return self._average(chunk) if chunk.plan.average else self._copy(chunk)

    def _copy(self, chunk: _Chunk) -> int:
        """Take the range from each target's base source as it is."""
        plan = chunk.plan
        # Chunks are multiples of 8 elements: types of less than a byte begin at whole bytes too.
        start, length = plan.dtype.size_bytes(chunk.start), plan.dtype.size_bytes(chunk.count)
        data = memoryview(bytearray(length))
        for k, base in enumerate(self._recipe.bases):
            extent = self._recipe.extent(base, plan.name)
            self._reader.read_elements(extent, chunk.start, data)
            self._write(k, plan.name, start, data)
        return 2 * length * len(self._recipe.bases)

    def _load(self, source: int, chunk: _Chunk) -> torch.Tensor:
        """The range of a source, in its stored type, in the reused buffer."""
        import torch

        plan = chunk.plan
        length = plan.dtype.size_bytes(chunk.count)
        extent = self._recipe.extent(source, plan.name)
        self._reader.read_elements(extent, chunk.start, self._raw_view[:length])
        stored: torch.dtype = getattr(torch, plan.dtype.label)
        return self._raw[:length].view(stored)

    def _average(self, chunk: _Chunk) -> int:
        """``y = s r + sum_i x_i (theta_i - r)`` with r the newest source and s the weights' sum.

        What is alike in all sources has differences of exactly zero and comes out as it is.
        """
        import torch

        plan, n = chunk.plan, chunk.count
        reference, difference = self._reference[:n], self._difference[:n]
        sums = self._sums[:, :n].zero_()
        finite = True
        for rank, source in enumerate(self._used):
            stored = self._load(source, chunk)
            if rank == 0:
                finite = bool(torch.isfinite(reference.copy_(stored)).all())
            else:
                _subtract(difference.copy_(stored), reference, finite=finite)
            for k, alone in enumerate(self._alone):
                if alone == source:
                    sums[k].copy_(stored)
                elif alone is None and rank > 0 and self._weights[source][k] != 0.0:
                    sums[k].add_(difference, alpha=self._weights[source][k])
        length = plan.out_dtype.size_bytes(n)
        out = self._raw[:length].view(getattr(torch, plan.out_dtype.label))
        for k, alone in enumerate(self._alone):
            if alone is None:
                _add_reference(sums[k], reference, float(self._recipe.sums[k]))
            out.copy_(sums[k])
            self._write(
                k, plan.name, plan.out_dtype.size_bytes(chunk.start), self._raw_view[:length]
            )
        read = plan.dtype.size_bytes(n) * len(self._used)
        return read + length * len(self._alone)

    def _write(self, target: int, name: str, start: int, data: memoryview) -> None:
        """Write bytes of a tensor of an output, from its byte ``start`` on."""
        output = self._recipe.outputs[target]
        file = output.files[output.homes[name]]
        offset, path = file.image.offsets[name], _partial(file.path)
        if name in file.image.checksums:
            self.checks[target].setdefault(name, {})[start] = (zlib.crc32(data), len(data))
        done = 0
        try:
            descriptor = self._writer.descriptor(path)
            while done < len(data):
                done += os.pwrite(descriptor, data[done:], offset + start + done)
        except OSError as error:
            raise StorageError.wrap(error, output.path, "write") from error


def _subtract(values: torch.Tensor, reference: torch.Tensor, *, finite: bool) -> None:
    """``values -= reference``; equal infinities, as masks have them, differ by nothing."""
    alike = None if finite else values == reference
    values.sub_(reference)
    if alike is not None:
        values.masked_fill_(alike, 0.0)


def _add_reference(total: torch.Tensor, reference: torch.Tensor, weight_sum: float) -> None:
    """``total += weight_sum * reference``; where nothing differs the reference's own bits."""
    unmoved = total == 0
    total.add_(reference, alpha=weight_sum)
    if weight_sum == 1.0:
        # 0 + -0.0 is +0.0: the sign of what is alike everywhere would be lost.
        total.copy_(reference.where(unmoved, total))


def _alone(recipe: Recipe, target: int) -> int | None:
    """The source that a target is, where it has weight 1 and the others 0."""
    column = recipe.weights[:, target]
    used = column.nonzero()[0]
    return int(used[0]) if len(used) == 1 and column[used[0]] == 1.0 else None
