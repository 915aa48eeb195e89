"""Ways to sum what was read: each reads 16 files, sums them block by block, and writes the targets.

    python -m benchmarks.summing           three minutes, 1.5 GB; its section of docs/performance.md
    python -m benchmarks.summing --print   writes it to stdout

One process with one thread, so that nothing but the way differs; inputs are in the cache. This is
what the engine's way was chosen from: see ``phema_cli/synthesis/averaging.py`` for that.
"""

from __future__ import annotations

import mmap
import os
import queue
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import torch

from benchmarks.measuring import MIB, Measures, publish, ratio, rounds, seconds

FILES, SIZE = 16, 64 * MIB
ROUNDS = 5
#: bytes of a tile of each file, and elements of the pieces that a bag sums.
_TILE, _PIECE = 320 << 10, 2048
#: elements of the blocks that products are made of.
_BLOCKS = (4096, 16384, 81920)
#: rows that a product has at least.
_ROWS = 4
_HEAD = """\
## Ways to sum

{files} files of {size} MiB are read, summed and written by one process with one thread, in the
cache: times over those of reading and writing alone, medians of {rounds} rounds in which all run in
turn. A *bag* is `embedding_bag` over the rows as they are stored, a *product* a matrix product over
blocks that are widened to float32. phema sums 16-bit weights by bags, and takes differences from
the newest snapshot for all other types, in blocks of 81,920 elements: by bags for up to three
targets, by products for more. `python -m benchmarks.summing` measures it.
"""

#: puts the averages of a tile's rows (files, elements) into (targets, elements).
Sum = Callable[[torch.Tensor, torch.Tensor], None]


def weights_of(targets: int) -> torch.Tensor:
    """Weights (targets, files) that sum to one."""
    random = torch.rand(targets, FILES, generator=torch.Generator().manual_seed(1))
    return random / random.sum(dim=1, keepdim=True)


def nothing(rows: torch.Tensor, out: torch.Tensor) -> None:
    """Read and write alone."""


def bag(weights: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """As they are stored; a weight of 16 bits is the sum of two."""
    targets, pieces = len(out), out.shape[1] // _PIECE
    parts = [weights.to(rows.dtype)]
    if rows.dtype != weights.dtype:
        parts.append((weights - parts[0].float()).to(rows.dtype))
    own = torch.stack(parts, dim=-1).view(targets, -1)
    places = torch.arange(pieces)[:, None] + pieces * torch.arange(FILES)
    repeated = places.repeat_interleave(len(parts), dim=1)[:, None].expand(pieces, *own.shape)
    sums = torch.nn.functional.embedding_bag(
        repeated.reshape(-1).int(),
        rows.view(-1, _PIECE),
        torch.arange(0, pieces * own.numel() + 1, own.shape[1]).int(),
        mode="sum",
        per_sample_weights=own.expand(pieces, *own.shape).reshape(-1),
        include_last_offset=True,
    )
    out.view(targets, pieces, _PIECE).copy_(sums.view(pieces, targets, _PIECE).transpose(0, 1))


def product(
    weights: torch.Tensor,
    block: int,
    rows: torch.Tensor,
    out: torch.Tensor,
    *,
    differences: bool = False,
) -> None:
    """Widened block by block; of differences from the first row if asked."""
    targets = len(out)
    own = torch.nn.functional.pad(weights, (0, 0, 0, max(_ROWS - targets, 0)))
    for start in range(0, out.shape[1], block):
        wide = rows[:, start : start + block].float()
        reference = wide[0].clone()
        if differences:
            wide -= reference
        sums = (own @ wide)[:targets]
        out[:, start : start + block].copy_(sums + reference if differences else sums)


def stored(weights: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """A product in the stored type, with weights of that type."""
    torch.mm(weights.to(rows.dtype), rows, out=out)


class Job:
    """Files of a type, and buffers for tiles of them.

    Args:
        folder: where the files are.
        dtype: of their elements.
        targets: how many are written.
        huge: whether buffers lie in huge pages.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype, targets: int, *, huge: bool = False
    ) -> None:
        self.paths = [folder / f"{i}.bin" for i in range(FILES)]
        self.out = folder / "out"
        raw = mmap.mmap(-1, FILES * _TILE)
        if huge:
            raw.madvise(mmap.MADV_HUGEPAGE)
        self.rows = torch.frombuffer(raw, dtype=dtype).view(FILES, -1)
        self.sums = torch.empty(targets, self.rows.shape[1], dtype=dtype)
        self.views = [row.view(torch.uint8).numpy().data for row in self.rows]
        self.made = [row.view(torch.uint8).numpy().data for row in self.sums]

    def make(self) -> None:
        """Write the files."""
        random = torch.Generator().manual_seed(0)
        base = torch.randn(MIB, generator=random)
        for path in self.paths:
            row = base + 1e-3 * torch.randn(MIB, generator=random)
            data = row.to(self.rows.dtype).view(torch.uint8).numpy().tobytes()
            path.write_bytes(data * (SIZE // len(data)))

    def run(self, way: Sum) -> float:
        """Seconds to treat all files."""
        return seconds(lambda: self._run(way))

    def _run(self, way: Sum) -> None:
        with self.out.open("wb") as out:
            files = [path.open("rb") for path in self.paths]
            for offset in range(0, SIZE - SIZE % _TILE, _TILE):
                self.read(files, offset)
                way(self.rows, self.sums)
                self.write(out.fileno(), offset)
            for file in files:
                file.close()

    def read(self, files: list[IO[bytes]], offset: int) -> None:
        """Fill the rows."""
        for file, view in zip(files, self.views, strict=True):
            os.preadv(file.fileno(), [view], offset)

    def write(self, descriptor: int, offset: int) -> None:
        """Write the targets one after the other."""
        for k, data in enumerate(self.made):
            os.pwrite(descriptor, data, k * SIZE + offset)


def read_ahead(jobs: tuple[Job, Job], way: Sum) -> None:
    """Sum one tile while another thread reads the next one."""
    free: queue.Queue[int] = queue.Queue()
    ready: queue.Queue[tuple[int, int]] = queue.Queue()
    offsets = range(0, SIZE - SIZE % _TILE, _TILE)
    files = [path.open("rb") for path in jobs[0].paths]

    def read() -> None:
        for offset in offsets:
            number = free.get()
            jobs[number].read(files, offset)
            ready.put((number, offset))

    thread = threading.Thread(target=read)
    thread.start()
    free.put(0)
    free.put(1)
    with jobs[0].out.open("wb") as out:
        for _ in offsets:
            number, offset = ready.get()
            way(jobs[number].rows, jobs[number].sums)
            jobs[number].write(out.fileno(), offset)
            free.put(number)
    thread.join()
    for file in files:
        file.close()


def mapped(job: Job, way: Sum) -> None:
    """Sum files that are mapped into memory, not read: each tile is put together of the maps."""
    files = [path.open("rb") for path in job.paths]
    maps = [mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_COPY) for file in files]
    wholes = [torch.frombuffer(held, dtype=job.rows.dtype) for held in maps]
    width = job.rows.shape[1]
    with job.out.open("wb") as out:
        for offset in range(0, SIZE - SIZE % _TILE, _TILE):
            first = offset // job.rows.element_size()
            for row, whole in zip(job.rows, wholes, strict=True):
                row.copy_(whole[first : first + width])
            way(job.rows, job.sums)
            job.write(out.fileno(), offset)
    for file in files:
        file.close()


def measure(folder: Path, dtype: torch.dtype, targets: int) -> dict[str, list[float]]:
    """Seconds of each way."""
    job = Job(folder, dtype, targets)
    other, huge = Job(folder, dtype, targets), Job(folder, dtype, targets, huge=True)
    job.make()
    weights = weights_of(targets)
    by_bags = partial(bag, weights)
    found: Measures = {
        "read and write alone": lambda: job.run(nothing),
        "bag per target": lambda: job.run(by_bags),
        "the same, buffers in huge pages": lambda: huge.run(by_bags),
        "the same, a thread reads ahead": lambda: seconds(
            lambda: read_ahead((job, other), by_bags)
        ),
        "the same, files mapped into memory": lambda: seconds(lambda: mapped(job, by_bags)),
        **{
            f"product, blocks of {block:,}": partial(job.run, partial(product, weights, block))
            for block in _BLOCKS
        },
        **{
            f"product of differences, blocks of {block:,}": partial(
                job.run, partial(product, weights, block, differences=True)
            )
            for block in _BLOCKS[-2:]
        },
        "product in the stored type": lambda: job.run(partial(stored, weights)),
    }
    return rounds(found, ROUNDS)


def table(folder: Path) -> Iterator[str]:
    """The lines of the table."""
    cases = [(d, k) for d in (torch.float16, torch.bfloat16, torch.float32) for k in (1, 8)]
    taken = [measure(folder, dtype, targets) for dtype, targets in cases]
    labels = [f"{str(dtype).removeprefix('torch.')}, {targets}" for dtype, targets in cases]
    yield "| type, targets | " + " | ".join(labels) + " |"
    yield "| --- |" + " ---: |" * len(labels)
    base = "read and write alone"
    yield f"| {base}, s | " + " | ".join(f"{statistics.median(t[base]):.2f}" for t in taken) + " |"
    for name in (name for name in taken[0] if name != base):
        yield f"| {name} | " + " | ".join(f"{ratio(t, name, base):.2f}" for t in taken) + " |"


def main() -> None:
    """Measure all ways."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = "\n".join(table(Path(folder)))
    head = _HEAD.format(files=FILES, size=SIZE // MIB, rounds=ROUNDS)
    publish(f"{head}\n{lines}")


if __name__ == "__main__":
    main()
