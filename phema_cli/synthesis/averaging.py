"""Averages of a tile: the same few elements of every source, for every target.

A target's average depends on its own sources and weights alone, not on the targets beside it. A
tile's stored values stay in the processor's last cache from the read to the sum, and blocks of
them, as wide numbers, in its nearer ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

from phema_cli.profiles import Array
from phema_cli.synthesis.summing import Bags, Sums
from phema_cli.synthesis.tiling import GROUP, LEAST_ROWS, Kind, buffers

if TYPE_CHECKING:
    import torch

_DOUBLE = 8

#: stored values of n sources: (n, width), or a row each where their types differ.
Rows: TypeAlias = "torch.Tensor | list[torch.Tensor]"
#: some of several rows, by their numbers; a slice where they follow on one another.
Some: TypeAlias = slice | list[int]


@dataclass(frozen=True, slots=True)
class _Alike:
    """Targets that are summed of the same sources in the same way.

    Attributes:
        targets: their numbers.
        sources: theirs, newest first.
        totals: what the weights of each sum to.
        direct: what sums values as they stand; None where differences are summed.
        groups: sources whose differences are summed in one call, and what sums them.
    """

    targets: list[int]
    sources: list[int]
    totals: list[float]
    direct: Bags | None
    groups: list[tuple[Some, Sums]]

    @property
    def place(self) -> Some:
        """The targets, to take their rows by."""
        return _some(self.targets)


@dataclass(slots=True)
class _Tile:
    """The buffers as a tile of one kind.

    Attributes:
        stored: what the sources hold.
        out: (k, width) the averages.
        rows: the memory of each source's row.
        made: that of each average.
        copied: the source of targets that are one, by target.
        alike: all other targets.
        in_place: whether differences may take the place of the stored values.
    """

    stored: Rows
    out: torch.Tensor
    rows: list[memoryview]
    made: list[memoryview]
    copied: dict[int, int]
    alike: list[_Alike]
    in_place: bool


class Averager:
    """A worker's buffers, and the averages that it makes in them.

    Fill ``rows``, then take ``averages``.

    Args:
        kinds: kinds of all averaged tensors.
        weights: (n, k) float64; sources newest first, each with a weight for some target.
        totals: (k,) what the weights sum to; exactly 1 where they were meant to.
        elements: the most elements of a tile.

    Attributes:
        sound: whether the last averages, and the sources that they were made of, are surely finite.
    """

    def __init__(self, kinds: Sequence[Kind], weights: Array, totals: Array, elements: int) -> None:
        import torch

        sources, targets = weights.shape
        need = buffers(kinds, sources, targets, elements)
        self._weights = weights
        self._totals: list[float] = totals.tolist()
        self._width, self._block = need.width, need.block
        self._compute = torch.float64 if need.compute == _DOUBLE else torch.float32
        self._raw = torch.empty(need.raw * need.width, dtype=torch.uint8)
        self._values = torch.empty((need.group, need.block), dtype=self._compute)
        self._reference = torch.empty(need.block, dtype=self._compute)
        self._sums = torch.empty((max(targets, LEAST_ROWS), need.block), dtype=self._compute)
        self._part = torch.empty_like(self._sums)
        self._tiles: dict[Kind, _Tile] = {}
        self.sound = True

    def rows(self, kind: Kind, count: int) -> list[memoryview]:
        """Where ``count`` stored values of each source go."""
        return _cut(self._tile(kind).rows, count, self._width)

    def values(self, kind: Kind, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is in ``rows`` (n, count), and the last averages (k, count), as numbers."""
        tile = self._tile(kind)
        return _stack(tile.stored, count, self._compute), tile.out[:, :count]

    def averages(self, kind: Kind, count: int) -> list[memoryview]:
        """The bytes of each target's average; the next call overwrites them, this one ``rows``."""
        tile = self._tile(kind)
        self.sound = True
        for k, source in tile.copied.items():
            tile.out[k, :count].copy_(tile.stored[source][:count])
            self.sound &= self._is_sound(tile.out[k : k + 1, :count])
        for alike in tile.alike:
            self._average(tile, alike, count)
        return _cut(tile.made, count, self._width)

    def _tile(self, kind: Kind) -> _Tile:
        """The buffers as a tile of that kind."""
        if kind not in self._tiles:
            stored, out = _views(self._raw, self._weights.shape, self._width, kind)
            copied, alike = self._dealt(kind)
            self._tiles[kind] = _Tile(
                stored,
                out,
                _bytes(stored),
                _bytes(out),
                copied,
                alike,
                in_place=not isinstance(stored, list)
                and stored.dtype == self._compute
                and [len(a.sources) for a in alike] == [len(stored)],
            )
        return self._tiles[kind]

    def _dealt(self, kind: Kind) -> tuple[dict[int, int], list[_Alike]]:
        """Targets that are one source each, and the others by sources and way of summing."""
        copied: dict[int, int] = {}
        alike: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
        for k, column in enumerate(self._weights.T):
            used = column.nonzero()[0]
            if len(used) == 1 and column[used[0]] == 1.0:
                copied[k] = int(used[0])
            else:
                sources = tuple(used.tolist())
                key = kind.of(sources).is_direct(column[used]), sources
                alike.setdefault(key, []).append(k)
        return copied, [
            self._alike(kind, targets, list(sources), direct=direct)
            for (direct, sources), targets in alike.items()
        ]

    def _alike(self, kind: Kind, targets: list[int], sources: list[int], *, direct: bool) -> _Alike:
        """What sums these sources for these targets."""
        import torch

        weights = self._weights[sources][:, targets]
        bags = None
        if direct:
            rows = range(len(sources)) if kind.stored else sources
            dtype: torch.dtype = getattr(torch, kind.out.label)
            bags = Bags(weights, rows, self._width, dtype)
        groups = [
            (
                _some(sources[start : start + GROUP]),
                Sums(weights[start : start + GROUP], self._compute),
            )
            for start in range(0, len(sources), GROUP)
        ]
        totals = [self._totals[k] for k in targets]
        return _Alike(targets, sources, totals, bags, groups)

    def _average(self, tile: _Tile, alike: _Alike, count: int) -> None:
        """Put the averages of these targets into the tile's ``out``."""
        newest = tile.stored[alike.sources[0]][:count]
        signed = _has_negative_zeros(newest)
        if alike.direct is None:
            self._add_differences(tile, alike, count, signed=signed)
            self.sound &= self._is_sound(tile.out[alike.place, :count])
            return
        rows = tile.stored
        if isinstance(rows, list):
            import torch

            rows = torch.stack([rows[i] for i in alike.sources])
        for k, total in zip(alike.targets, alike.direct(rows, count), strict=True):
            tile.out[k, : total.numel()].view(total.shape).copy_(total)
        if not self._is_sound(tile.out[alike.place, :count]):
            self.sound &= self._mend(tile, alike, count, signed=signed)
        if signed:
            _restore_zeros(tile.out, alike, newest)

    def _is_sound(self, out: torch.Tensor) -> bool:
        """Whether averages of the same sources are finite; an overflowing sum is a false alarm."""
        # What is not finite in a source is so in every average; rounding may be too much for any.
        rows = out[:1] if _is_wide(out) else out
        if rows.element_size() == 1:
            rows = rows.to(self._compute)
        return math.isfinite(float(rows.sum(dtype=self._compute)))

    def _mend(self, tile: _Tile, alike: _Alike, count: int, *, signed: bool) -> bool:
        """Make what is not finite from differences: they say what infinities have in common.

        Other elements stay as they are in tiles without any. Returns whether all are finite now.
        """
        direct = tile.out[alike.place, :count].clone()
        self._add_differences(tile, alike, count, signed=signed)
        made = tile.out[alike.place, :count]
        sound = self._is_sound(made)
        tile.out[alike.place, :count] = direct.where(direct.isfinite(), made)
        return sound

    def _add_differences(self, tile: _Tile, alike: _Alike, count: int, *, signed: bool) -> None:
        """``y = s r + sum_i x_i (theta_i - r)``, block by block.

        r is the newest source and s the weights' sum. What is alike in all sources has differences
        of exactly zero and comes out as it is.
        """
        for start in range(0, count, self._block):
            stop = min(start + self._block, count)
            reference = self._reference[: stop - start]
            reference.copy_(tile.stored[alike.sources[0]][start:stop])
            sums = self._sum_up(tile, alike, slice(start, stop), reference)
            for k, total, weight in zip(alike.targets, sums, alike.totals, strict=True):
                _add_reference(total, reference, weight, signed=signed)
                tile.out[k, start:stop].copy_(total)

    def _sum_up(
        self, tile: _Tile, alike: _Alike, span: slice, reference: torch.Tensor
    ) -> torch.Tensor:
        """The sums (k, elements) of a block's differences, a group of sources after the other."""
        count = span.stop - span.start
        sums: torch.Tensor = self._sums[: len(alike.targets), :count]
        # A sum that overflows is a false alarm, and the careful way gives the same bits.
        finite = math.isfinite(float(reference.sum()))
        for number, (sources, add_up) in enumerate(alike.groups):
            values = self._values[: add_up.rows]
            if tile.in_place and not isinstance(tile.stored, list):
                values = tile.stored[sources][:, span.start :]
            for rows, wide in _taken(tile.stored, sources, span, values[:, :count]):
                _subtract(rows, reference, wide, finite=finite)
            add_up(values, count, self._part if number else self._sums)
            if number:
                sums.add_(self._part[: len(alike.targets), :count])
        return sums


def _some(numbers: list[int]) -> Some:
    """Ascending numbers, as a slice where they follow on one another."""
    first, last = numbers[0], numbers[-1]
    return slice(first, last + 1) if last - first + 1 == len(numbers) else numbers


def _taken(
    stored: Rows, sources: Some, span: slice, wide: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Stored values of some sources in a block, and where they go as wide numbers."""
    if isinstance(sources, slice) and not isinstance(stored, list):
        yield stored[sources, span], wide
        return
    rows = stored[sources] if isinstance(sources, slice) else [stored[i] for i in sources]
    for row, out in zip(rows, wide, strict=True):
        yield row[span], out


def _restore_zeros(out: torch.Tensor, alike: _Alike, newest: torch.Tensor) -> None:
    """Give zeros that all sources share their sign: sums of zeros are +0.0."""
    for k, total in zip(alike.targets, alike.totals, strict=True):
        if total == 1.0:
            row = out[k, : len(newest)]
            row.copy_(newest.where((row == 0) & (newest == 0), row))


def _is_wide(values: torch.Tensor) -> bool:
    """Whether no average of numbers that float32 holds is too large for the type."""
    import torch

    return values.dtype in {torch.float64, torch.float32, torch.bfloat16}


def _views(
    raw: torch.Tensor, shape: tuple[int, ...], width: int, kind: Kind
) -> tuple[Rows, torch.Tensor]:
    """Bytes as stored values, n rows of the tile's width, and averages (k, width)."""
    import torch

    sources, targets = shape
    sizes = [width * d.bits // 8 for d in kind.stored or [kind.dtype] * sources]
    out_size = width * kind.out.bits // 8
    held, made = raw[: sum(sizes)], raw[sum(sizes) :][: targets * out_size]
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
