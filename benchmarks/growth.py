"""How time and memory grow with the number of snapshots, of tensors, and with their bytes.

    python -m benchmarks.growth           ten minutes, 10 GB; its section of docs/performance.md
    python -m benchmarks.growth --print   writes it to stdout

Whole processes. An exponent is the slope from the line before, in logarithms: of time, and of all
the memory that a process takes.
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.measuring import MIB, PHEMA, Inputs, emptied, measured_command, publish, torch_alone

ROUNDS = 3
_GAMMAS = (5.0, 10.0)
_HEAD = """\
## Growth

Whole processes; MiB above one that imports torch, 0 where they take less than it. The exponent is
that from the line before, of all the memory. `python -m benchmarks.growth` measures it.
"""


@dataclass(frozen=True)
class Size:
    """Inputs of one size.

    Attributes:
        label: of the row.
        amount: what grows.
        snapshots: how many.
        tensors: in each.
        elements: of each tensor.
    """

    label: str
    amount: int
    snapshots: int
    tensors: int
    elements: int

    def make(self, folder: Path) -> None:
        """Write snapshots of two averages of weights that walk at random."""
        if self.elements >= MIB:
            size = self.elements * self.tensors * 2
            Inputs(folder, "float16", self.snapshots, size, self.tensors).make()
            return
        folder.mkdir()
        random = np.random.default_rng(0)
        weights = random.standard_normal((self.tensors, self.elements))
        averages = {gamma: weights.copy() for gamma in _GAMMAS}
        for step in range(1, 10 * self.snapshots // len(_GAMMAS) + 1):
            weights += random.standard_normal(weights.shape) * 0.1 / math.sqrt(step)
            for gamma in _GAMMAS:
                beta = (1 - 1 / step) ** (gamma + 1)
                averages[gamma] = beta * averages[gamma] + (1 - beta) * weights
                if step % 10 == 0:
                    values = torch.from_numpy(averages[gamma]).half()
                    save_file(
                        {f"layers.{i}.weight": row.clone() for i, row in enumerate(values)},
                        folder / f"ema-step{step:07d}-gamma{gamma:g}.safetensors",
                    )


_TABLES = {
    "snapshots of 1 KiB": [Size(f"{n:,}", n, n, 1, 512) for n in (1000, 2000, 5000, 10_000)],
    "tensors of 16 bytes in each of 8 files": [
        Size(f"{n:,}", n, 8, n, 8) for n in (25_000, 50_000, 100_000, 200_000)
    ],
    "MiB in each of 16 files": [
        Size(f"{n:,}", n, 16, 8, n * MIB // 16) for n in (32, 64, 128, 256)
    ],
}


def table(title: str, sizes: Sequence[Size], root: Path) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {title} | inspect, s | exponent | MiB | exponent | synthesize, s | exponent | MiB |"
    yield "| ---: |" + " ---: |" * 7
    before: tuple[int, list[float]] | None = None
    for size in sizes:
        size.make(root / "in")
        figures: list[float] = []
        for command in (["inspect"], ["synthesize", "--gamma", "7", "-o", str(root / "out")]):
            runs = []
            for _ in range(ROUNDS):
                with emptied(root / "out"):
                    runs.append(
                        measured_command(PHEMA, *command, "-q", "--trust-tags", root / "in")
                    )
            figures += map(statistics.median, zip(*runs, strict=True))
        shutil.rmtree(root / "in")
        slopes = ["", "", ""]
        if before is not None:
            grown = math.log(size.amount / before[0])
            slopes = [f"{math.log(figures[i] / before[1][i]) / grown:.2f}" for i in range(3)]
        above = [max(figures[i] - torch_alone(), 0.0) for i in (1, 3)]
        yield (
            f"| {size.label} | {figures[0]:.1f} | {slopes[0]} | {above[0]:.0f} | {slopes[1]} "
            f"| {figures[2]:.1f} | {slopes[2]} | {above[1]:.0f} |"
        )
        before = size.amount, figures


def main() -> None:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as folder:
        parts = ["\n".join(table(*item, Path(folder))) for item in _TABLES.items()]
    publish("\n\n".join([_HEAD.rstrip(), *parts]))


if __name__ == "__main__":
    main()
