"""Averages of a tile: the same few elements of every source, for every target.

A tile's stored values stay in the processor's last cache from the read to the sum, and blocks of
them, as wide numbers, in its nearer ones. One call sums all sources of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phema_cli.formats.base import DType
from phema_cli.profiles import Array
from phema_cli.synthesis.summing import MANY, WIDTH, Bags, Sums, split

if TYPE_CHECKING:
    import torch

#: sources that are summed at a time: BLAS libraries sum many more in other orders.
GROUP = 32
#: elements of a block.
BLOCK = 8 << 10
#: the most sources of a sum that is made in one go.
_MOST_DIRECT = 256
#: bytes of a number in float32 and float64.
_SINGLE, _DOUBLE = 4, 8


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

        So it is where values of 16 bits are read and written, and the error of the sum is too small
        to move a number that all sources share: an eighth of half a unit in the last place. Its
        bound is ``sum_i |x_i|`` times n roundings to float32 and one of the weights, of which two
        parts in the stored type are left.
        """
        if self.dtype != self.out or self.dtype.name not in {"F16", "BF16"}:
            return False
        if len(weights) > _MOST_DIRECT:
            return False
        rounding = len(weights) * 2.0**-24 + (2.0**-18 if self.dtype.name == "BF16" else 2.0**-22)
        most = float(np.abs(weights).sum(axis=0).max(initial=0.0)) * rounding
        return most < 2.0 ** -(self.dtype.mantissa_bits + 2) / 8


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a worker needs to average tiles.

    Attributes:
        tile: bytes for each element of a tile.
        block: bytes for each element of a block.
        compute: bytes of an element of a sum: 4, or 8 for float64.
    """

    tile: int
    block: int
    compute: int


def buffers(kinds: Sequence[Kind], sources: int, targets: int) -> Buffers:
    """What is needed for tensors of these kinds."""
    stored = max((k.dtype.bits // 8 for k in kinds), default=1)
    out = max((k.out.bits // 8 for k in kinds), default=1)
    compute = _DOUBLE if any("F64" in {k.dtype.name, k.out.name} for k in kinds) else _SINGLE
    # In a block: a group's differences, the reference, the sums of this and of earlier groups,
    # and a mask.
    numbers = 2 * min(sources, GROUP) + 2 * targets + 2
    return Buffers(sources * stored + targets * out, numbers * compute, compute)


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
        need = buffers(kinds, sources, targets)
        self.weights = weights
        self.totals: list[float] = totals.tolist()
        self.width = -(-elements // WIDTH) * WIDTH
        self.compute = torch.float64 if need.compute == _DOUBLE else torch.float32
        self.raw = torch.empty(need.tile * self.width, dtype=torch.uint8)
        block = min(BLOCK, self.width)
        self.values = torch.empty((min(sources, GROUP), block), dtype=self.compute)
        self.reference = torch.empty(block, dtype=self.compute)
        self.sums = torch.empty((targets, block), dtype=self.compute)
        self.part = torch.empty((targets, block), dtype=self.compute)
        self.alone = [_alone(column) for column in weights.T]
        starts = range(0, sources, GROUP)
        self.groups = [slice(i, min(i + GROUP, sources)) for i in starts]
        self.add_up = [Sums(weights[group], block, self.compute) for group in self.groups]
        self._tiles: dict[Kind, Tile] = {}

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

    def rows(self, count: int) -> list[memoryview]:
        """Where ``count`` stored values of each source go."""
        return _cut(self._rows, count, self._own.width)

    def averages(self, count: int) -> list[memoryview]:
        """The bytes of each target's average; the next call overwrites them."""
        signed = _has_negative_zeros(self._stored[0, :count])
        self._average(count, signed=signed)
        for k, source in enumerate(self._own.alone):
            if source is not None:
                self._out[k, :count].copy_(self._stored[source, :count])
        return _cut(self._made, count, self._own.width)

    def _average(self, count: int, *, signed: bool) -> None:
        """Put the averages into ``out``."""
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            self._differences(self._stored[:, start:stop], self._out[:, start:stop], signed=signed)

    def _differences(self, stored: torch.Tensor, out: torch.Tensor, *, signed: bool) -> None:
        """One block, (n, elements) to (k, elements)."""
        own, count = self._own, stored.shape[1]
        reference, sums = own.reference[:count], own.sums[:, :count]
        reference.copy_(stored[0])
        # A sum that overflows is a false alarm, and the careful way gives the same bits.
        finite = math.isfinite(float(reference.sum()))
        for number, group in enumerate(own.groups):
            values = own.values[: group.stop - group.start]
            self._subtract(stored[group], reference, values[:, :count], finite=finite)
            own.add_up[number](values, count, own.part if number else own.sums)
            if number:
                sums.add_(own.part[:, :count])
        for k, weight in enumerate(own.totals):
            _add_reference(sums[k], reference, weight, signed=signed)
        out.copy_(sums)

    def _subtract(
        self, stored: torch.Tensor, reference: torch.Tensor, out: torch.Tensor, *, finite: bool
    ) -> None:
        """``out = stored - reference``; equal infinities, as masks have them, are no difference."""
        import torch

        if stored.dtype != out.dtype:
            stored = out.copy_(stored)
        alike = None if finite else stored == reference
        torch.sub(stored, reference, out=out)
        if alike is not None:
            out.masked_fill_(alike, 0.0)


class DirectTile(Tile):
    """``y = sum_i x_i theta_i``, where :meth:`Kind.is_direct` allows it.

    Few targets are summed by a function that reads stored values and writes stored values.
    """

    def __init__(self, own: Averager, kind: Kind) -> None:
        super().__init__(own, kind)
        self._bags: list[Bags] = []
        if len(own.totals) < MANY:
            columns = own.weights.T
            self._bags = [Bags(split(w, self._stored.dtype), own.width) for w in columns]

    def _average(self, count: int, *, signed: bool) -> None:
        """Put the averages into ``out``."""
        import torch

        out, newest = self._out[:, :count], self._stored[0, :count]
        self._sum_up(count)
        # What is not finite in a source is so in every sum.
        if not math.isfinite(float(out[0].sum(dtype=torch.float32))):
            direct = out.clone()
            super()._average(count, signed=signed)
            # Differences say what infinities have in common. Elements beside them are as they are
            # in tiles without any.
            out.copy_(direct.where(direct.isfinite(), out))
        if signed:
            for total, weight in zip(out, self._own.totals, strict=True):
                if weight == 1.0:
                    # Sums of zeros are +0.0, whatever the zeros' sign.
                    total.copy_(newest.where((total == 0) & (newest == 0), total))

    def _sum_up(self, count: int) -> None:
        """Put the sums into ``out``."""
        own = self._own
        for k, bags in enumerate(self._bags):
            self._out[k, :count].copy_(bags(self._stored, count))
        if self._bags:
            return
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            for number, group in enumerate(own.groups):
                values = own.values[: group.stop - group.start]
                values[:, : stop - start].copy_(self._stored[group, start:stop])
                own.add_up[number](values, stop - start, own.part if number else own.sums)
                if number:
                    own.sums.add_(own.part)
            self._out[:, start:stop].copy_(own.sums[:, : stop - start])


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
    """Whether stored values have -0.0 among them; numpy is ten times as fast as torch here."""
    import torch

    size = row.element_size()
    bits = row.view(torch.uint8).numpy().view(f"i{size}")
    return bool((bits == -1 << 8 * size - 1).any())
