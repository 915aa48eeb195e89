"""Averages of a tile: the same few elements of every source, for every target.

A tile's stored values stay in the processor's last cache from the read to the sum, and blocks of
them, as wide numbers, in its nearer ones. One call sums all sources of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeAlias

from phema_cli.profiles import Array
from phema_cli.synthesis.summing import Bags, Sums, split
from phema_cli.synthesis.tiling import GROUP, Kind, buffers

if TYPE_CHECKING:
    import torch

#: targets up to which one sum after the other is as fast as a matrix product of wide numbers.
_FEW = 8
_DOUBLE = 8
#: types that no average of numbers that float32 holds is too large for.
_WIDE_RANGE = {"F64", "F32", "BF16"}

#: stored values of n sources: (n, width), or a row each where their types differ.
Rows: TypeAlias = "torch.Tensor | list[torch.Tensor]"

#: how a tile is summed: as it stands, for few targets or for many, or as differences.
Way = Literal["few", "many", "differences"]


class Averager:
    """A worker's buffers.

    Args:
        kinds: kinds of all averaged tensors.
        weights: (n, k) float64; sources newest first, each with a weight for some target.
        totals: (k,) what the weights sum to; exactly 1 where they were meant to.
        elements: the most elements of a tile.
        way: how tiles are summed, if that is not for the weights to say.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        weights: Array,
        totals: Array,
        elements: int,
        way: Way | None = None,
    ) -> None:
        import torch

        sources, targets = weights.shape
        self.need = need = buffers(kinds, sources, targets, elements)
        self.weights = weights
        self.totals: list[float] = totals.tolist()
        self.compute = torch.float64 if need.compute == _DOUBLE else torch.float32
        self.raw = torch.empty(need.raw * need.width, dtype=torch.uint8)
        empty = partial(torch.empty, dtype=self.compute)
        self.values = empty((need.group, need.block))
        self.reference = empty(need.sums)
        self.sums = empty((targets, need.sums))
        self.part = empty((targets, need.sums))
        self.alone = [_alone(column) for column in weights.T]
        starts = range(0, sources, GROUP)
        self.groups = [slice(i, min(i + GROUP, sources)) for i in starts]
        # By the length of the rows that are summed.
        self.add_up = {
            width: [Sums(weights[group], width, self.compute) for group in self.groups]
            for width in {need.block, need.sums}
        }
        self._way = way
        self._tiles: dict[Kind, Tile] = {}

    def tile(self, kind: Kind) -> Tile:
        """The buffers as a tile of that kind."""
        if kind not in self._tiles:
            self._tiles[kind] = self._make_tile(kind)
        return self._tiles[kind]

    def _make_tile(self, kind: Kind) -> Tile:
        """A tile, summed in the way asked for, else in the fastest one."""
        way = self._way or _fastest(kind, self.weights)
        return Tile(self, kind) if way == "differences" else DirectTile(self, kind, way)


def _fastest(kind: Kind, weights: Array) -> Way:
    """The way in which targets that are made together are summed."""
    if not kind.is_direct(weights):
        return "differences"
    return "few" if weights.shape[1] <= _FEW else "many"


def ways(kind: Kind, weights: Array) -> list[Way]:
    """The ways in which one target may have been summed, alone or along with others.

    Args:
        kind: what it was summed of.
        weights: (n, 1) its own weights.
    """
    # What is not summed directly for one target is not so for it and more.
    return ["few", "many", "differences"] if kind.is_direct(weights) else ["differences"]


def _alone(weights: Array) -> int | None:
    """The source that a target is, where it has weight 1 and the others 0."""
    used = weights.nonzero()[0]
    return int(used[0]) if len(used) == 1 and weights[used[0]] == 1.0 else None


class Tile:
    """``y = s r + sum_i x_i (theta_i - r)`` with r the newest source and s the weights' sum.

    What is alike in all sources has differences of exactly zero and comes out as it is. Fill
    ``rows``, then take ``averages``.

    Attributes:
        sound: whether the last averages, and the sources that they were made of, are surely finite.
    """

    def __init__(self, own: Averager, kind: Kind) -> None:
        self._own = own
        self._stored, self._out = _views(own, kind)
        self._rows = _bytes(self._stored)
        self._made = _bytes(self._out)
        self._narrow = kind.out.name not in _WIDE_RANGE
        self.sound = True
        self._in_place = own.need.in_place(kind)
        self._size = own.need.sums if self._in_place else own.need.block

    def values(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is in ``rows`` (n, count), and the averages (k, count), as numbers."""
        return _stack(self._stored, count, self._own.compute), self._out[:, :count]

    def rows(self, count: int) -> list[memoryview]:
        """Where ``count`` stored values of each source go."""
        return _cut(self._rows, count, self._own.need.width)

    def averages(self, count: int) -> list[memoryview]:
        """The bytes of each target's average; ``rows`` and they are overwritten by the next."""
        self._make(count)
        return _cut(self._made, count, self._own.need.width)

    def _make(self, count: int) -> None:
        """Put the targets into ``out``."""
        kept = {
            k: self._stored[source][:count].to(self._out.dtype, copy=True)
            for k, source in enumerate(self._own.alone)
            if source is not None
        }
        self._average(count, signed=_has_negative_zeros(self._stored[0][:count]))
        for k, values in kept.items():
            self._out[k, :count].copy_(values)

    def _is_sound(self, count: int) -> bool:
        """Whether averages are finite; a sum of them that overflows is a false alarm."""
        # What is not finite in a source is so in every average; rounding may be too much for any.
        rows = self._out[:, :count] if self._narrow else self._out[:1, :count]
        if rows.element_size() == 1:
            rows = rows.to(self._own.compute)
        return math.isfinite(float(rows.sum(dtype=self._own.compute)))

    def _average(self, count: int, *, signed: bool) -> None:
        """Put the averages into ``out``."""
        self._by_blocks(count, partial(self._differences, signed=signed))
        self.sound = self._is_sound(count)

    def _by_blocks(self, count: int, average: Callable[[int, int], torch.Tensor]) -> None:
        """Put what is made of each block, (k, elements), into ``out``."""
        for start in range(0, count, self._size):
            stop = min(start + self._size, count)
            self._out[:, start:stop].copy_(average(start, stop))

    def _differences(self, start: int, stop: int, *, signed: bool) -> torch.Tensor:
        """The averages (k, elements) of one block."""
        reference = self._own.reference[: stop - start]
        reference.copy_(self._stored[0][start:stop])
        # A sum that overflows is a false alarm, and the careful way gives the same bits.
        finite = math.isfinite(float(reference.sum()))

        def widen(stored: torch.Tensor, out: torch.Tensor) -> None:
            _subtract(stored, reference, out, finite=finite)

        sums = self._sum_up(start, stop, widen)
        for total, weight in zip(sums, self._own.totals, strict=True):
            _add_reference(total, reference, weight, signed=signed)
        return sums

    def _sum_up(
        self, start: int, stop: int, widen: Callable[[torch.Tensor, torch.Tensor], None]
    ) -> torch.Tensor:
        """The sums (k, elements) over what ``widen`` makes of stored values, group by group."""
        own, count = self._own, stop - start
        sums: torch.Tensor = own.sums[:, :count]
        for number, (group, add_up) in enumerate(
            zip(own.groups, own.add_up[self._size], strict=True)
        ):
            values = own.values[: group.stop - group.start]
            if isinstance(self._stored, list):
                for row, out in zip(self._stored[group], values, strict=True):
                    widen(row[start:stop], out[:count])
            else:
                values = self._stored[group] if self._in_place else values
                widen(self._stored[group, start:stop], values[:, :count])
            add_up(values, count, own.part if number else own.sums)
            if number:
                sums.add_(own.part[:, :count])
        return sums


class DirectTile(Tile):
    """``y = sum_i x_i theta_i``, where :meth:`Kind.is_direct` allows it.

    Few targets are summed by a function that reads stored values and writes stored values.
    """

    def __init__(self, own: Averager, kind: Kind, way: Way) -> None:
        super().__init__(own, kind)
        if isinstance(self._stored, list):
            raise AssertionError("several types are not summed directly")  # noqa: TRY004 - a bug, no input
        self._together = self._stored
        parts = split(own.weights, self._stored.dtype) if way == "few" else None
        self._bags = None if parts is None else Bags(parts, own.need.width)

    def _average(self, count: int, *, signed: bool) -> None:
        """Put the averages into ``out``."""
        if self._bags is not None:
            self._bags(self._together, count, self._out)
        else:
            self._by_blocks(count, partial(self._sum_up, widen=_widen))
        self.sound = self._is_sound(count)
        if not self.sound:
            self._mend(count, signed=signed)
        newest = self._stored[0][:count]
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


def _views(own: Averager, kind: Kind) -> tuple[Rows, torch.Tensor]:
    """Bytes as stored values, n rows of the tile's width, and averages (k, width)."""
    import torch

    sources, targets = own.weights.shape
    width = own.need.width
    sizes = [width * d.bits // 8 for d in kind.stored or [kind.dtype] * sources]
    out_size = width * kind.out.bits // 8
    held, made = own.raw[: sum(sizes)], own.raw[sum(sizes) :][: targets * out_size]
    averages = made.view(targets, out_size).view(getattr(torch, kind.out.label))
    if not kind.stored:
        return held.view(sources, sizes[0]).view(getattr(torch, kind.dtype.label)), averages
    ends = accumulate(sizes)
    rows = zip(ends, sizes, kind.stored, strict=True)
    return [held[e - s : e].view(getattr(torch, d.label)) for e, s, d in rows], averages


def _stack(rows: Rows, count: int, wide: torch.dtype) -> torch.Tensor:
    """The first elements of each row, (n, count); as wide numbers where their types differ."""
    import torch

    if isinstance(rows, list):
        return torch.stack([row[:count].to(wide) for row in rows])
    return rows[:, :count]


def _bytes(rows: Rows) -> list[memoryview]:
    """The memory of each row."""
    import torch

    return [row.view(torch.uint8).numpy().data for row in rows]


def _cut(rows: list[memoryview], count: int, width: int) -> list[memoryview]:
    """The first ``count`` of ``width`` elements of each row."""
    return rows if count == width else [row[: len(row) // width * count] for row in rows]


def _widen(stored: torch.Tensor, out: torch.Tensor) -> None:
    """Stored values as wide numbers."""
    out.copy_(stored)


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
