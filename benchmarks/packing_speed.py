"""How long packing takes, and a synthesis from packed snapshots."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import torch
from safetensors.torch import save_file

from benchmarks.measuring import (
    MIB,
    WIDTH,
    Measures,
    drop,
    emptied,
    flush_all,
    process,
    ratio,
    rounds,
)
from phema_cli.formats.packing import BITS
from phema_cli.system.ranks import default_jobs

ROUNDS = 5
FILES, GAMMAS = 16, (5.0, 10.0)
#: tensors of a file, and elements of each.
TENSORS, ELEMENTS = 32, 1 << 20
#: steps of the walk from one time that averages are stored to the next, and what each stands for.
_UPDATES, _STEPS = 4, 250
_MOVE = 0.01
_PHEMA = (sys.executable, "-m", "phema_cli")
OVER = "float16"
#: behind the name of what is measured with inputs that are not in the cache.
_COLD = ", cold"


def write_walk(root: Path) -> None:
    """Averages of a random walk, in float32 and in float16, tensor by tensor."""
    random = torch.Generator().manual_seed(0)
    walk = torch.randn(TENSORS, ELEMENTS, generator=random)
    averages = [torch.zeros_like(walk) for _ in GAMMAS]
    for name in ("float32", "float16"):
        (root / name).mkdir()
    for update in range(1, FILES // len(GAMMAS) * _UPDATES + 1):
        walk += _MOVE * torch.randn(walk.shape, generator=random)
        for gamma, average in zip(GAMMAS, averages, strict=True):
            average.lerp_(walk, 1 - (1 - 1 / update) ** (gamma + 1))
        if update % _UPDATES:
            continue
        step = update * _STEPS
        for gamma, average in zip(GAMMAS, averages, strict=True):
            metadata = {"gamma": str(gamma), "step": str(step)}
            for name in ("float32", "float16"):
                values = {f"layer{i:02d}": row for i, row in enumerate(average)}
                values = {n: v.to(getattr(torch, name)) for n, v in values.items()}
                file = f"ema-{step:06d}-{gamma:04.1f}.safetensors"
                save_file(values, root / name / file, metadata)


def measure(folder: Path | None = None) -> dict[str, list[float]]:
    """Seconds of whole processes, in turn, with all inputs in the cache and from the disk."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        root = Path(made)
        write_walk(root)
        packed = {f"packed {bits}": bits for bits in BITS}
        for name, bits in packed.items():
            process(*_PHEMA, *_pack(root / "float32", bits, root / name))
        flush_all([*root.glob("*/*.safetensors")])

        def synthesize(name: str, *, cold: bool = False) -> float:
            if cold:
                drop([*(root / name).iterdir()])
            with emptied(root / "out") as out:
                return process(*_PHEMA, "synthesize", root / name, "-q", "-g", "7", "-o", out)

        def pack(name: str) -> float:
            shutil.rmtree(root / "out", ignore_errors=True)
            taken = process(*_PHEMA, *_pack(root / name, 8, root / "out"))
            shutil.rmtree(root / "out")
            return taken

        measures: Measures = {
            name: lambda name=name: synthesize(name)  # type: ignore[misc]  # its default says so
            for name in (OVER, "float32", *packed)
        }
        measures |= {
            name + _COLD: lambda name=name: synthesize(name, cold=True)  # type: ignore[misc]
            for name in (OVER, "float32", *packed)
        }
        measures["pack"] = lambda: pack(OVER)
        return rounds(measures, ROUNDS)


def _pack(source: Path, bits: int, out: Path) -> tuple[object, ...]:
    """The arguments of a packing."""
    return ("pack", source, "-q", "--bits", bits, "-o", out)


_TEXT = """\
{files} snapshots of {elements:.1f} million elements ({size:.0f} MiB in float16), averages of a
random walk: times of whole processes over that of `phema synthesize` from float16, with all inputs
in the cache, and cold, read from the disk; medians of {rounds} rounds in which all run in turn. The
machine has {jobs} processors and is shared with others. In the cache reading is cheap, and residues
take more sums than weights that are summed as they are stored."""


def section(taken: Mapping[str, list[float]]) -> str:
    """The text and the table."""
    found = dict(taken)
    lines = ["| | time / that from float16 | cold |", "| --- | ---: | ---: |"]
    for name in (name for name in taken if name + _COLD in taken):
        warm, cold = ratio(found, name, OVER), ratio(found, name + _COLD, OVER + _COLD)
        lines.append(f"| `phema synthesize` from {name} | {warm:.2f} | {cold:.2f} |")
    lines.append(f"| `phema pack --bits 8` of {OVER} | {ratio(found, 'pack', OVER):.2f} | |")
    text = _TEXT.format(
        files=FILES,
        elements=TENSORS * ELEMENTS / 1e6,
        size=TENSORS * ELEMENTS * 2 / MIB,
        rounds=ROUNDS,
        jobs=default_jobs(),
    )
    return "\n\n".join(["## Speed", fill(text, WIDTH), "\n".join(lines)]) + "\n"
