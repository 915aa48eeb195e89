"""Memory: the buffers that a worker needs, and how many elements of a tensor fit into them."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from phema_cli.formats.packing import BLOCK
from phema_cli.synthesis.packed import Terms
from phema_cli.synthesis.sums import LEAST_ROWS, WIDTH
from phema_cli.synthesis.tensors import Kind

#: sources that are summed at a time: BLAS libraries sum many more in other orders.
GROUP = 32

#: elements of a block, unless it is the tile: where all kinds are summed by differences, and where
#: only tiles with infinities are.
_BLOCK, _RARE_BLOCK = 80 << 10, 16 << 10
# A tile's buffers stay in the processor's cache, and its reads are long enough not to be counted.
_TILE_BYTES = 5 << 20
_LEAST_TILE, _LARGEST_TILE = 16 << 10, 512 << 10
# Every request of a remote file has its delay.
_REMOTE_TILE = 2 << 20
# Indices in 64 bits, and a piece's elements of the widest type.
_PLACE_BYTES = 5 * 8 + 8
#: bytes of a number in float32 and float64.
_SINGLE, _DOUBLE = 4, 8


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a worker needs to average tiles of so many elements.

    Attributes:
        width: elements of a tile, a multiple of ``WIDTH``.
        raw: bytes of stored values and of averages, for each element of a tile.
        group: sources whose differences are held.
        block: elements of differences and of sums.
        wide: whether sums are float64, not float32.
        size_bytes: bytes of all buffers.
    """

    width: int
    raw: int
    group: int
    block: int
    wide: bool
    size_bytes: int


def buffers(
    kinds: Sequence[Kind], sources: int, targets: int, elements: int, packed: Terms | None = None
) -> Buffers:
    """The buffers for tensors of these kinds, in tiles of at most so many elements.

    Args:
        kinds: kinds of all averaged tensors.
        sources: sources that are read.
        targets: targets that are written.
        elements: the most elements of a tile.
        packed: the rows of packed tensors.
    """
    # Of types that differ one may be narrower and none wider than the one that holds them.
    stored = max((k.dtype.bits // 8 for k in kinds if not k.packed), default=1)
    out = max((k.out.bits // 8 for k in kinds), default=1)
    rows = sources
    raw = sources * stored + targets * out
    if packed is not None:
        rows = max(sources, len(packed.weights))
        raw = max(raw, math.ceil(packed.bits / 8) + targets * out)
    width = -(-elements // WIDTH) * WIDTH
    rare = all(k.may_be_direct for k in kinds)
    group, block = min(rows, GROUP), min(_RARE_BLOCK if rare else _BLOCK, width)
    wide = any("F64" in {k.dtype.name, k.out.name} for k in kinds)
    # Beside differences and sums: those of a group, the reference, a mask, a copy of a sum.
    blocks = 2 * group + 2 * max(targets, LEAST_ROWS) + 3
    numbers = blocks * block
    if packed is not None:
        # A weight of its own for each block of residues.
        numbers += block // BLOCK * group * max(targets, LEAST_ROWS)
    size = raw * width + (_DOUBLE if wide else _SINGLE) * numbers
    return Buffers(width, raw, group, block, wide, size)


def held_bytes(max_memory: int, jobs: int) -> int:
    """What each worker may hold of tensors that are not in row-major order."""
    return max_memory // 4 // jobs


def tile_elements(
    kinds: Sequence[Kind],
    sources: int,
    targets: int,
    jobs: int,
    max_memory: int,
    *,
    scattered: bool = False,
    strided: bool = False,
    remote: bool = False,
    packed: Terms | None = None,
) -> tuple[int, int]:
    """The number of elements of a tile: as many as the memory allows, and no more than help.

    Args:
        kinds: kinds of all averaged tensors.
        sources: sources that are read.
        targets: targets that are written.
        jobs: workers.
        max_memory: bytes, half of which are left to everything else.
        scattered: whether some tensor is split into pieces, the places of whose elements are held.
        strided: whether some tensor is not in row-major order, parts of which are held.
        remote: whether files are remote.
        packed: the rows of packed tensors.

    Returns:
        Elements of a tile, and the bytes of all workers' buffers.
    """

    def size(elements: int) -> int:
        places = _PLACE_BYTES * elements if scattered else 0
        held = held_bytes(max_memory, jobs) if strided else 0
        need = buffers(kinds, sources, targets, elements, packed)
        return jobs * (need.size_bytes + places + held)

    raw = buffers(kinds, sources, targets, WIDTH, packed).raw
    tile = min(max(_TILE_BYTES // raw, _LEAST_TILE), _LARGEST_TILE)
    if scattered:
        # Each tile looks for its places in all pieces.
        tile = _LARGEST_TILE
    if remote:
        tile = _REMOTE_TILE
    widths = range(1, tile // WIDTH + 1)
    # The largest that fits: sizes grow with it.
    fits = bisect_right(widths, max_memory // 2, key=lambda w: size(w * WIDTH))
    tile = widths[max(fits, 1) - 1] * WIDTH
    return tile, size(tile)
