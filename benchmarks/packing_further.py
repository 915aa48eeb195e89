"""Other ways to pack than phema's, on a few runs of the packing benchmark."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from textwrap import fill
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fidelity_cases import geometric_mean, rounded_to
from benchmarks.measuring import WIDTH
from benchmarks.packing_cases import (
    Problem,
    Stored,
    bytes_of,
    errors_of,
    pack_all,
    problem_of,
    train_for,
)
from benchmarks.training import PAIRS, RUNS, Run, tensor_sizes
from phema_cli.formats import packing
from phema_cli.formats.packing import BLOCK, FOLLOWED, Doubles, Floats, ScaleBits

NAMES = ("mlp adamw constant", "flow adamw cosine", "transformer adamw cosine")
COUNTS = (16, 32)
BITS = (8, 4)
PLAIN = "as phema packs"
DITHER = "dither, subtracted by readers"
_ZLIB_BYTES = 64 << 10

#: has a problem, the parts of its elements that are tensors, and bits.
Method = Callable[[Problem, Sequence[slice], int], Stored]
Pack = Callable[[Floats, int], tuple[NDArray[np.generic], ScaleBits, Floats]]


def packer(seed: int | None = None) -> Pack:
    """What stands in for ``packing.pack``: any number of bits, and dither where a seed is given.

    Dither is a number between -1/2 and 1/2 that is added before rounding and subtracted by readers.
    """
    random = None if seed is None else np.random.default_rng(seed)

    def pack(residue: Floats, bits: int) -> tuple[NDArray[np.generic], ScaleBits, Floats]:
        block, count = packing.BLOCK, len(residue)
        blocks = np.zeros((-(-count // block), block), np.float32)
        blocks.reshape(-1)[:count] = residue
        most = 2 ** (bits - 1) - 1
        scales = np.nextafter(np.abs(blocks).max(axis=1) / np.float32(most), np.float32(np.inf))
        raw = ((scales.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)
        wide = packing.numbers_of(raw)[:, None]
        dither = np.float32(0)
        added = dither if random is None else random.random(blocks.shape, np.float32) - 0.5
        integers = np.clip(np.rint(blocks / wide + added), -most, most)
        made = ((integers - added) * wide).astype(np.float32)
        return integers.reshape(-1)[:count].astype(np.int16), raw, made.reshape(-1)[:count]

    return pack


def _values(problem: Problem) -> Floats:
    return rounded_to(problem.exact, "fp32")


def _plain(problem: Problem, _: Sequence[slice], bits: int) -> Stored:
    return pack_all(_values(problem), problem.order, bits)


def _dithered(problem: Problem, _: Sequence[slice], bits: int) -> Stored:
    with patch.object(packing, "pack", packer(0)):
        return pack_all(_values(problem), problem.order, bits)


def _by_tensor(problem: Problem, parts: Sequence[slice], bits: int) -> Stored:
    return pack_all(_values(problem), problem.order, bits, parts=parts)


def _following(followed: int) -> Method:
    return lambda problem, _, bits: pack_all(
        _values(problem), problem.order, bits, followed=followed
    )


def _in_blocks(block: int) -> Method:
    def method(problem: Problem, _: Sequence[slice], bits: int) -> Stored:
        with patch.object(packing, "BLOCK", block):
            return pack_all(_values(problem), problem.order, bits)

    return method


def _in_six_bits(problem: Problem, _: Sequence[slice], _bits: int) -> Stored:
    """Six bits, whatever they are compared with."""
    files = len(problem.sources)
    stored_as = patch.dict(packing.BITS, {6: packing.BITS[8]})
    with stored_as, patch.object(packing, "pack", packer()):
        kept = pack_all(_values(problem), problem.order, 6)
    # Bytes of 4 bits and of 8, half of each.
    return replace(kept, bytes_each=(bytes_of(4, files) + bytes_of(8, files)) / 2)


METHODS: dict[str, Method] = {
    PLAIN: _plain,
    "6 bits": _in_six_bits,
    DITHER: _dithered,
    "coefficients of each tensor": _by_tensor,
    "2 files followed": _following(2),
    "6 files followed": _following(6),
    "8 files followed": _following(8),
    "blocks of 32": _in_blocks(32),
    "blocks of 128": _in_blocks(128),
}


@dataclass(frozen=True, slots=True)
class Tried:
    """What one way made of one set of snapshots.

    Attributes:
        method: its name.
        bits: of an integer.
        errors: of each target.
        bytes_each: of an element of a snapshot.
        entropy: of the integers, bits an element, averaged over the files.
        squeezed: bytes of the integers by zlib, over theirs.
    """

    method: str
    bits: int
    errors: Doubles
    bytes_each: float
    entropy: float
    squeezed: float


def entropy_of(integers: NDArray[np.generic], bits: int) -> float:
    """Shannon's entropy of a file's integers, bits an element."""
    if bits == 4:
        pairs = integers.astype(np.uint8)
        integers = np.concatenate([pairs & 15, pairs >> 4])
    _, counts = np.unique(integers, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def squeezed(files: Sequence[NDArray[np.generic]]) -> float:
    """Bytes of files' integers by zlib, in blocks of 64 KiB, over theirs."""
    before = after = 0
    for raw in (file.tobytes() for file in files):
        before += len(raw)
        parts = (raw[low : low + _ZLIB_BYTES] for low in range(0, len(raw), _ZLIB_BYTES))
        after += sum(len(zlib.compress(part, 6)) for part in parts)
    return after / before


def tried(run: Run) -> list[Tried]:
    """All ways on a run."""
    tracked = train_for(run)
    ends = np.cumsum([0, *tensor_sizes(run)])
    parts = [slice(int(a), int(b)) for a, b in pairwise(ends)]
    found = []
    for count in COUNTS:
        problem = problem_of(tracked, PAIRS[0], count)
        for name, method in METHODS.items():
            for bits in BITS:
                kept = method(problem, parts, bits)
                errors, _ = errors_of(problem, kept)
                plain = name == PLAIN
                entropy = np.mean([entropy_of(i, bits) for i in kept.integers]) if plain else 0
                ratio = squeezed(kept.integers) if plain else 1
                found.append(Tried(name, bits, errors, kept.bytes_each, float(entropy), ratio))
    return found


def measure(jobs: int) -> list[Tried]:
    """All ways on all of the runs chosen."""
    torch.set_num_threads(1)
    with ProcessPoolExecutor(jobs) as pool:
        runs = pool.map(tried, [run for run in RUNS if run.name in NAMES])
        return [one for some in runs for one in some]


#: whether it pays, by name.
_VERDICTS = {
    "6 bits": "no: fewer snapshots of 8 bits are closer at the same bytes",
    DITHER: "no: rounding errors are independent without it",
    "coefficients of each tensor": "hardly: a little closer, for as many times the coefficients",
    "2 files followed": "no: far worse, since two gammas take turns",
    "6 files followed": "no: nearly the same, and more to follow",
    "8 files followed": "hardly: a little closer, and twice as much to follow",
    "blocks of 32": "no: their scales cost more than they gain",
    "blocks of 128": "no: the larger steps cost as much as the scales saved, or more",
}

_TEXT = """\
On {runs}; {counts} snapshots of gamma {gammas}
each. Errors and bytes are ratios to phema's own way with as many bits, geometric means: above 1 is
worse. *Equal bytes* charges what a way takes: a bit more in each element halves an error. phema
has blocks of {block} elements, and a file follows {followed} others."""

_ENTROPY = """\
**Compression of the integers.** Their entropy is {entropy8:.2f} bits of 8, {entropy4:.2f} of 4.
zlib (level 6, blocks of 64 KiB) leaves {squeezed8:.3f} and {squeezed4:.3f} of their bytes. It does
not pay: even a perfect code saves little, and no tensor could be read from its middle."""


def section(found: Sequence[Tried]) -> str:
    """The text and the table."""
    heads = " | ".join(f"{bits} bits: error | bytes | equal bytes" for bits in BITS)
    lines = [f"| | {heads} | does it pay? |", "| --- |" + " ---: |" * 3 * len(BITS) + " --- |"]
    for name in METHODS:
        if name == PLAIN:
            continue
        cells = []
        for bits in BITS:
            plain, other = (
                [t for t in found if (t.method, t.bits) == (m, bits)] for m in (PLAIN, name)
            )
            pairs = list(zip(other, plain, strict=True))
            errors = geometric_mean(np.concatenate([o.errors / p.errors for o, p in pairs]))
            size = geometric_mean(np.array([o.bytes_each / p.bytes_each for o, p in pairs]))
            more = float(np.mean([8 * (o.bytes_each - p.bytes_each) for o, p in pairs]))
            cells.append(f"{errors:.2f} | {size:.2f} | {errors * 2**more:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {_VERDICTS[name]} |")
    own = {bits: [t for t in found if (t.method, t.bits) == (PLAIN, bits)] for bits in BITS}
    entropy = {f"entropy{b}": float(np.mean([t.entropy for t in p])) for b, p in own.items()}
    left = {f"squeezed{b}": float(np.mean([t.squeezed for t in p])) for b, p in own.items()}
    text = _TEXT.format(
        runs=", ".join(NAMES),
        counts=" and ".join(map(str, COUNTS)),
        gammas=" and ".join(f"{g:g}" for g in PAIRS[0]),
        block=BLOCK,
        followed=FOLLOWED,
    )
    last = _ENTROPY.format(**entropy, **left)
    return (
        "\n\n".join(
            ["## What else was tried", fill(text, WIDTH), "\n".join(lines), fill(last, WIDTH)]
        )
        + "\n"
    )
