"""Averages of a tile: the same few elements of every source, for every target.

A tile's stored values stay in the processor's last cache from the read to the sum, and blocks of
them, as wide numbers, in its nearer ones. One call sums all sources of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from phema_cli.formats.base import DType
from phema_cli.profiles import Array
from phema_cli.synthesis.summing import MANY, WIDTH, Bags, Sums, split

if TYPE_CHECKING:
    import torch

#: sources that are summed at a time: BLAS libraries sum many more in other orders.
GROUP = 32
#: elements of a block, unless it is the tile.
_BLOCK = 16 << 10
#: targets up to which one sum after the other is as fast as a matrix product of wide numbers.
_FEW = 8
#: the most sources of a sum that is made in one go.
_MOST_DIRECT = 256
#: what is lost of a weight in two parts of a type, relative to it or to 1.
_PARTS = {"F16": 2.0**-22, "BF16": 2.0**-18}
#: bytes of a number in float32 and float64.
_SINGLE, _DOUBLE = 4, 8
_WIDE = {_SINGLE: "F32", _DOUBLE: "F64"}


@dataclass(frozen=True, slots=True)
class Kind:
    """Tensors that are treated alike.

    Attributes:
        dtype: type that is read.
        out: type that is written.
    """

    dtype: DType
    out: DType

    def is_direct(self, weights: Array) -> bool:
        """Whether ``sum_i x_i theta_i`` may be summed as it stands.

        So it is where values of 16 bits are read and written, and a number that all sources share
        comes out as it is: the error of its sum is below a quarter of the distance to the next
        number. At most 2 n times a sum of at most ``2 max_j |x_1 + ... + x_j|`` times the number is
        rounded to float32, and each weight to two parts of the stored type.
        """
        if self.dtype != self.out or self.dtype.name not in _PARTS or len(weights) > _MOST_DIRECT:
            return False
        partial = float(np.abs(weights.cumsum(axis=0)).max(initial=0.0))
        size = float(np.abs(weights).sum(axis=0).max(initial=0.0))
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
        block: elements of sums and differences.
        targets: sums.
        compute: bytes of an element of a sum: 4, or 8 for float64.
    """

    width: int
    raw: int
    group: int
    block: int
    targets: int
    compute: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all of them."""
        differences = self.group * min(_BLOCK, self.width)
        # Beside differences and sums: those of a group, the reference, a mask, a copy of a sum.
        return self.raw * self.width + self.compute * (
            2 * differences + (2 * self.targets + 3) * self.block
        )


def buffers(kinds: Sequence[Kind], sources: int, targets: int, elements: int) -> Buffers:
    """What is needed for tensors of these kinds, in tiles of at most so many elements."""
    stored = max((k.dtype.bits // 8 for k in kinds), default=1)
    out = max((k.out.bits // 8 for k in kinds), default=1)
    compute = _DOUBLE if any("F64" in {k.dtype.name, k.out.name} for k in kinds) else _SINGLE
    in_place = [targets < MANY and k.dtype.name == _WIDE[compute] for k in kinds]
    width = -(-elements // WIDTH) * WIDTH
    return Buffers(
        width=width,
        raw=sources * stored + targets * out,
        group=0 if all(in_place) else min(sources, GROUP),
        block=width if any(in_place) else min(_BLOCK, width),
        targets=targets,
        compute=compute,
    )


class Averager:
    """A worker's buffers.

    Args:
        kinds: kinds of all averaged tensors.
        weights: (n, k) float64; sources newest first, each with a weight for some target.
        totals: (k,) what the weights sum to; exactly 1 where they were meant to.
        elements: the most elements of a tile.
    """

    def __init__(self, kinds: Sequence[Kind], weights: Array, totals: Array, elements: int) -> None:
        import torch

        sources, targets = weights.shape
        need = buffers(kinds, sources, targets, elements)
        self.weights = weights
        self.totals: list[float] = totals.tolist()
        self.width = need.width
        self.compute = torch.float64 if need.compute == _DOUBLE else torch.float32
        self.raw = torch.empty(need.raw * need.width, dtype=torch.uint8)
        self.block = min(_BLOCK, need.width)
        self.values = torch.empty((need.group, self.block), dtype=self.compute)
        self.reference = torch.empty(need.block, dtype=self.compute)
        self.sums = torch.empty((targets, need.block), dtype=self.compute)
        self.part = torch.empty((targets, need.block), dtype=self.compute)
        self.alone = [_alone(column) for column in weights.T]
        starts = range(0, sources, GROUP)
        self.groups = [slice(i, min(i + GROUP, sources)) for i in starts]
        self.sums_of = lru_cache(self._sums_of)
        self._tiles: dict[Kind, Tile] = {}

    def _sums_of(self, width: int) -> list[Sums]:
        """What sums the rows of each group, for rows of that width."""
        return [Sums(self.weights[group], width, self.compute) for group in self.groups]

    def tile(self, kind: Kind) -> Tile:
        """The buffers as a tile of that kind."""
        if kind not in self._tiles:
            make = DirectTile if kind.is_direct(self.weights) else Tile
            self._tiles[kind] = make(self, kind)
        return self._tiles[kind]


def _alone(weights: Array) -> int | None:
    """The source that a target is, where it has weight 1 and the others 0."""
    used = weights.nonzero()[0]
    return int(used[0]) if len(used) == 1 and weights[used[0]] == 1.0 else None


class Tile:
    """``y = s r + sum_i x_i (theta_i - r)`` with r the newest source and s the weights' sum.

    What is alike in all sources has differences of exactly zero and comes out as it is. Fill
    ``rows``, then take ``averages``.
    """

    def __init__(self, own: Averager, kind: Kind) -> None:
        import torch

        self._own, self._kind = own, kind
        sources, targets = own.weights.shape
        size, out_size = (own.width * d.bits // 8 for d in (kind.dtype, kind.out))
        held = own.raw[: sources * size].view(sources, size)
        made = own.raw[sources * size :][: targets * out_size].view(targets, out_size)
        self._rows: list[memoryview] = [row.numpy().data for row in held]
        self._made: list[memoryview] = [row.numpy().data for row in made]
        self._stored: torch.Tensor = held.view(getattr(torch, kind.dtype.label))
        self._out: torch.Tensor = made.view(getattr(torch, kind.out.label))
        self._in_place = self._stored.dtype == own.compute and targets < MANY

    def rows(self, count: int) -> list[memoryview]:
        """Where ``count`` stored values of each source go."""
        return _cut(self._rows, count, self._own.width)

    def averages(self, count: int) -> list[memoryview]:
        """The bytes of each target's average; ``rows`` and they are overwritten by the next."""
        own = self._own
        kept = {
            k: self._stored[source, :count].to(self._out.dtype, copy=True)
            for k, source in enumerate(own.alone)
            if source is not None
        }
        self._average(count, signed=_has_negative_zeros(self._stored[0, :count]))
        for k, values in kept.items():
            self._out[k, :count].copy_(values)
        return _cut(self._made, count, own.width)

    def _average(self, count: int, *, signed: bool) -> None:
        """Put the averages into ``out``."""
        size = self._own.width if self._in_place else self._own.block
        for start in range(0, count, size):
            stop = min(start + size, count)
            self._differences(self._stored[:, start:stop], size, signed=signed)
            self._round(start, stop)

    def _differences(self, stored: torch.Tensor, size: int, *, signed: bool) -> None:
        """The sums of one block (n, elements) of at most ``size`` elements."""
        own, count = self._own, stored.shape[1]
        reference, sums = own.reference[:count], own.sums[:, :count]
        reference.copy_(stored[0])
        # A sum that overflows is a false alarm, and the careful way gives the same bits.
        finite = math.isfinite(float(reference.sum()))
        for number, (group, sum_up) in enumerate(zip(own.groups, own.sums_of(size), strict=True)):
            values = self._stored[group] if self._in_place else own.values
            values = values[: group.stop - group.start]
            _subtract(stored[group], reference, values[:, :count], finite=finite)
            sum_up(values, count, own.part if number else own.sums)
            if number:
                sums.add_(own.part[:, :count])
        for total, weight in zip(sums, own.totals, strict=True):
            _add_reference(total, reference, weight, signed=signed)

    def _round(self, start: int, stop: int) -> None:
        """Put a block's sums into ``out``."""
        self._out[:, start:stop].copy_(self._own.sums[:, : stop - start])


class DirectTile(Tile):
    """``y = sum_i x_i theta_i``, where :meth:`Kind.is_direct` allows it.

    Few targets are summed by a function that reads stored values and writes stored values.
    """

    def __init__(self, own: Averager, kind: Kind) -> None:
        super().__init__(own, kind)
        few = len(own.totals) <= _FEW
        parts = split(own.weights, self._stored.dtype) if few else None
        self._bags = None if parts is None else Bags(parts, own.width)

    def _average(self, count: int, *, signed: bool) -> None:
        """Put the averages into ``out``."""
        self._sum_up(count)
        # What is not finite in a source is so in every sum.
        if not math.isfinite(float(self._out[0, :count].sum(dtype=self._own.compute))):
            self._mend(count, signed=signed)
        newest = self._stored[0, :count]
        for k, total in enumerate(self._own.totals):
            if signed and total == 1.0:
                # Sums of zeros are +0.0, whatever the zeros' sign.
                out = self._out[k, :count]
                out.copy_(newest.where((out == 0) & (newest == 0), out))

    def _mend(self, count: int, *, signed: bool) -> None:
        """Make what is not finite from differences: they say what infinities have in common.

        Other elements stay as they are in tiles without any.
        """
        out = self._out[:, :count]
        direct = out.clone()
        super()._average(count, signed=signed)
        out.copy_(direct.where(direct.isfinite(), out))

    def _sum_up(self, count: int) -> None:
        """Put the sums into ``out``."""
        own = self._own
        if self._bags is not None:
            self._bags(self._stored, count, self._out)
            return
        for start in range(0, count, own.block):
            stop = min(start + own.block, count)
            sums = own.sums_of(own.block)
            for number, (group, sum_up) in enumerate(zip(own.groups, sums, strict=True)):
                values = own.values[: group.stop - group.start]
                values[:, : stop - start].copy_(self._stored[group, start:stop])
                sum_up(values, stop - start, own.part if number else own.sums)
                if number:
                    own.sums.add_(own.part)
            self._round(start, stop)


def _subtract(
    stored: torch.Tensor, reference: torch.Tensor, out: torch.Tensor, *, finite: bool
) -> None:
    """``out = stored - reference``; equal infinities, as masks have them, are no difference."""
    import torch

    if stored.dtype != out.dtype:
        stored = out.copy_(stored)
    alike = None if finite else stored == reference
    torch.sub(stored, reference, out=out)
    if alike is not None:
        out.masked_fill_(alike, 0.0)


def _cut(rows: list[memoryview], count: int, width: int) -> list[memoryview]:
    """The first ``count`` of ``width`` elements of each row."""
    return rows if count == width else [row[: len(row) // width * count] for row in rows]


def _add_reference(
    total: torch.Tensor, reference: torch.Tensor, weight: float, *, signed: bool
) -> None:
    """``total += weight * reference``; where nothing differs the reference's own bits."""
    unmoved = total == 0 if signed and weight == 1.0 else None
    total.add_(reference, alpha=weight)
    if unmoved is not None:
        # 0 + -0.0 is +0.0: the sign of what is alike everywhere would be lost.
        total.copy_(reference.where(unmoved, total))


def _has_negative_zeros(row: torch.Tensor) -> bool:
    """Whether stored values have -0.0 among them: as integers, no number's bits are less."""
    import torch

    integers: torch.dtype = getattr(torch, f"int{8 * row.element_size()}")
    least: int = torch.iinfo(integers).min
    return int(row.view(integers).amin()) == least
