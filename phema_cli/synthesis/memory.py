"""Memory: the buffers that a worker needs, and how many elements of a tensor fit into them."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phema_cli.formats.base import DType
from phema_cli.formats.packing import BLOCK
from phema_cli.profiles import Array
from phema_cli.synthesis.packed import Rows
from phema_cli.synthesis.sums import LEAST_ROWS, WIDTH

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
#: the most sources of a sum that is made in one go.
_MOST_DIRECT = 256
#: error of a weight that is stored as two numbers of a type, relative to it or to 1.
_PARTS = {"F16": 2.0**-22, "BF16": 2.0**-18}
#: bytes of a number in float32 and float64.
_SINGLE, _DOUBLE = 4, 8


@dataclass(frozen=True, slots=True)
class Kind:
    """Tensors that are treated alike.

    Attributes:
        dtype: type that is read, or one that holds all types that are.
        out: type that is written.
        stored: type that is read of each source, newest first, where they differ.
        packed: whether its rows are those of packed sources: keyframes and residues.
    """

    dtype: DType
    out: DType
    stored: tuple[DType, ...] = ()
    packed: bool = False

    def of(self, sources: Sequence[int]) -> "Kind":
        """The kind of tensors of these sources alone."""
        types = {self.stored[i] for i in sources} if self.stored else {self.dtype}
        return Kind(types.pop(), self.out, (), self.packed) if len(types) == 1 else self

    @property
    def may_be_direct(self) -> bool:
        """Whether its types allow ``sum_i x_i theta_i`` to be summed as it stands."""
        return self.dtype == self.out and self.dtype.name in _PARTS and not self.stored

    def is_direct(self, weights: Array) -> bool:
        """Whether a target's ``sum_i x_i theta_i`` may be summed as it stands.

        So it is where values of 16 bits are read and written, and a number that all sources share
        comes out as it is: the error of its sum is below a quarter of the distance to the next
        number. At most 2 n times a sum of at most ``2 max_j |x_1 + ... + x_j|`` times the number is
        rounded to float32, and each weight to two parts of the stored type.

        Args:
            weights: (n,) float64 of the target's own sources, none of them 0.
        """
        if not self.may_be_direct or len(weights) > _MOST_DIRECT:
            return False
        partial = float(np.abs(weights.cumsum()).max(initial=0.0))
        size = float(np.abs(weights).sum())
        error = 2 * len(weights) * partial * 2.0**-24 + size * _PARTS[self.dtype.name]
        # Below a power of two the next number is nearest: 2^-(m+1) of it away.
        return error < 2.0 ** -(self.dtype.mantissa_bits + 1) / 4


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
    kinds: Sequence[Kind], sources: int, targets: int, elements: int, packed: Rows | None = None
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
    packed: Rows | None = None,
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
    widths = range(1, max(tile // WIDTH, 1) + 1)
    # The largest that fits: sizes grow with it.
    fits = bisect_right(widths, max_memory // 2, key=lambda w: size(w * WIDTH))
    tile = widths[max(fits, 1) - 1] * WIDTH
    return tile, size(tile)
