"""Averages of a tile: the same few elements of every source, for every target.

A target's average depends on its own sources and weights alone. A tile's stored values stay in the
processor's last cache from the read to the sum, and blocks of them, widened, in its nearer ones.

``sum_i x_i row_i`` is the chain of fused multiply-adds over the rows, first to last, from zero:
``sums.py`` finds the fastest function that gives its bits, so that the number of sums made at once
shows in none of them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from phema_cli.formats.packing import BLOCK
from phema_cli.profiles import Array
from phema_cli.synthesis.memory import GROUP, buffers
from phema_cli.synthesis.packed import Residues, Terms
from phema_cli.synthesis.sums import LEAST_ROWS, Some, add_up, consecutive, has_negative_zeros
from phema_cli.synthesis.tensors import Kind

if TYPE_CHECKING:
    import torch

#: elements of a piece of a row, at most, where values of 16 bits are summed as they are stored.
_PIECE = 2048

#: arguments of ``embedding_bag``: places of rows' pieces, ends of bags, weights.
Bags: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"


@dataclass(frozen=True, slots=True)
class _Group:
    """Targets that are summed of the same sources in the same way.

    Attributes:
        targets: their numbers.
        place: the same, to take their rows by.
        sources: theirs, newest first.
        totals: what the weights of each sum to.
        parts: for differences from the first source, at most ``GROUP`` others at a time, residues
            apart, and their weights: a row for each target, and zeros up to ``LEAST_ROWS``.
        bags: what sums values of 16 bits as they are stored; None where differences are summed.
    """

    targets: list[int]
    place: Some
    sources: list[int]
    totals: list[float]
    parts: list[tuple[list[int], torch.Tensor]]
    bags: Bags | None


@dataclass(frozen=True, slots=True)
class _Tile:
    """The buffers as a tile of one kind.

    Attributes:
        stored: what the n sources hold: (n, width), or a row each where their types differ.
        out: (k, width) the averages.
        stored_bytes: the memory of each source's row.
        out_bytes: the memory of each average.
        copied: for targets that are one of the sources, that source, by target.
        groups: all other targets.
        whole: sources from here on are residues.
        in_place: whether differences may take the place of the stored values.
    """

    stored: torch.Tensor | list[torch.Tensor]
    out: torch.Tensor
    stored_bytes: list[memoryview]
    out_bytes: list[memoryview]
    copied: dict[int, int]
    groups: list[_Group]
    whole: int
    in_place: bool


class Averager:
    """A worker's buffers, and the averages that it makes in them.

    Fill ``rows``, then take ``averages``.

    Args:
        kinds: kinds of all averaged tensors.
        weights: (n, k) float64; sources newest first, each with a weight for some target.
        totals: (k,) what the weights sum to; exactly 1 where they were meant to.
        elements: the most elements of a tile.
        packed: the rows of packed tensors; residues are differences already.

    Attributes:
        finite: whether the last averages, and the sources that they were made of, are surely
            finite.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        weights: Array,
        totals: Array,
        elements: int,
        packed: Terms | None = None,
    ) -> None:
        import torch

        targets = weights.shape[1]
        need = buffers(kinds, len(weights), targets, elements, packed)
        self._weights = weights
        self._packed = packed
        bits = [] if packed is None else [part.bits for part in packed.parts]
        self._residues = Residues(bits, need.width)
        self._totals: list[float] = totals.tolist()
        self._width, self._block = need.width, need.block
        self._piece = math.gcd(need.width, _PIECE)
        self._compute = torch.float64 if need.wide else torch.float32
        self._raw = torch.empty(need.raw * need.width, dtype=torch.uint8)
        self._values = torch.empty((need.group, need.block), dtype=self._compute)
        self._reference = torch.empty(need.block, dtype=self._compute)
        self._sums = torch.empty((max(targets, LEAST_ROWS), need.block), dtype=self._compute)
        self._partial = torch.empty_like(self._sums)
        self._tiles: dict[Kind, _Tile] = {}
        self.finite = True

    def rows(self, kind: Kind, count: int) -> list[memoryview]:
        """Where ``count`` stored values go: of sources, or of whole rows, integers and scales."""
        rows = self._tile(kind).stored_bytes
        whole = [row[: len(row) // self._width * count] for row in rows]
        return whole + self._residues.rows(count) if kind.packed else whole

    def averages(self, kind: Kind, count: int) -> list[memoryview]:
        """The bytes of each target's average; the next call overwrites them, this one ``rows``."""
        tile = self._tile(kind)
        self.finite = True
        if kind.packed:
            self._residues.filled()
        for k, source in tile.copied.items():
            tile.out[k, :count].copy_(tile.stored[source][:count])
            self.finite &= self._is_finite(tile.out[k : k + 1, :count])
        for group in tile.groups:
            self._average(tile, group, count)
        return [row[: len(row) // self._width * count] for row in tile.out_bytes]

    def values(self, kind: Kind, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is in ``rows`` (n, count), and the last averages (k, count), as numbers."""
        import torch

        tile = self._tile(kind)
        stored = tile.stored
        if isinstance(stored, list):
            stored = torch.stack([row.to(self._compute) for row in stored])
        if kind.packed:
            stored = torch.cat([stored[:, :count], self._residues.values(count)])
        return stored[:, :count], tile.out[:, :count]

    def _tile(self, kind: Kind) -> _Tile:
        """The buffers as a tile of that kind."""
        if kind in self._tiles:
            return self._tiles[kind]
        import torch

        weights, sources = self._weights, len(self._weights)
        if kind.packed and self._packed is not None:
            weights, sources = self._packed.weights, len(self._packed.whole)
        targets = weights.shape[1]
        types: list[torch.dtype] = [getattr(torch, d.label) for d in kind.stored]
        sizes = [self._width * d.bits // 8 for d in kind.stored or [kind.dtype] * sources]
        out_size = self._width * kind.out.bits // 8
        held, made = self._raw[: sum(sizes)], self._raw[sum(sizes) :][: targets * out_size]
        stored: torch.Tensor | list[torch.Tensor]
        if types:
            rows = zip(held.split_with_sizes(sizes), types, strict=True)
            stored = [row.view(dtype) for row, dtype in rows]
        else:
            stored = held.view(sources, sizes[0]).view(getattr(torch, kind.dtype.label))
        out = made.view(targets, out_size).view(getattr(torch, kind.out.label))
        copied, groups = self._groups(kind, weights, sources)
        self._tiles[kind] = _Tile(
            stored,
            out,
            [row.view(torch.uint8).numpy().data for row in stored],
            [row.view(torch.uint8).numpy().data for row in out],
            copied,
            groups,
            sources,
            in_place=isinstance(stored, torch.Tensor)
            and not kind.packed
            and stored.dtype == self._compute
            and [len(group.sources) for group in groups] == [sources],
        )
        return self._tiles[kind]

    def _groups(self, kind: Kind, every: Array, whole: int) -> tuple[dict[int, int], list[_Group]]:
        """Targets that are one source each, and the others by sources and way of summing.

        ``every`` has the weights (n, k) of a kind's rows; those from ``whole`` on are residues.
        """
        import torch

        copied: dict[int, int] = {}
        alike: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
        for k, column in enumerate(every.T):
            used = column.nonzero()[0]
            if not len(used) or used[0] >= whole:
                # Where keyframes cancel each other, differences of one are taken all the same.
                used = np.concatenate([[0], used])
            sources = used.tolist()
            if len(sources) == 1 and column[sources[0]] == 1.0:
                copied[k] = sources[0]
            else:
                direct = not kind.packed and kind.of(sources).is_direct(column[used])
                key = direct, tuple(sources)
                alike.setdefault(key, []).append(k)
        groups = []
        for (direct, used_by_all), targets in alike.items():
            sources = list(used_by_all)
            weights = every[sources][:, targets]
            parts = []
            # The first source is what others differ from. Residues are no differences of it.
            ends = bisect_left(sources, whole), len(sources)
            for first, end in zip((1, max(ends[0], 1)), ends, strict=True):
                for start in range(first, end, GROUP):
                    some = slice(start, min(start + GROUP, end))
                    own = torch.from_numpy(weights[some].T.copy()).to(self._compute)
                    lacking = max(LEAST_ROWS - len(targets), 0)
                    parts.append((sources[some], torch.nn.functional.pad(own, (0, 0, 0, lacking))))
            # Where types differ the rows of these sources are put together first.
            rows = list(range(len(sources))) if kind.stored else sources
            bags = self._bags(weights, rows, kind.out.label) if direct else None
            totals = [self._totals[k] for k in targets]
            groups.append(_Group(targets, consecutive(targets), sources, totals, parts, bags))
        return copied, groups

    def _bags(self, weights: Array, rows: list[int], label: str) -> Bags:
        """What ``embedding_bag`` sums these rows by, which widens nothing and sums in float32.

        Rows are cut into pieces, and piece j of all rows is a bag for each target, by itself. A
        weight (n, k) is the sum of two numbers of the rows' type.
        """
        import torch

        dtype: torch.dtype = getattr(torch, label)
        exact = torch.from_numpy(np.ascontiguousarray(weights.T))
        high = exact.to(dtype)
        halves = torch.stack([high, (exact - high.double()).to(dtype)], dim=-1)
        pieces, entries = self._width // self._piece, 2 * len(rows)
        place = torch.arange(pieces)[:, None, None, None] + pieces * torch.tensor(rows)[:, None]
        return (
            place.expand(pieces, *halves.shape).reshape(-1).int(),
            torch.arange(0, pieces * len(halves) * entries + 1, entries).int(),
            halves.reshape(-1).repeat(pieces),
        )

    def _average(self, tile: _Tile, group: _Group, count: int) -> None:
        """Put the averages of these targets into the tile's ``out``."""
        newest = tile.stored[group.sources[0]][:count]
        signed = has_negative_zeros(newest)
        if group.bags is None:
            self._add_differences(tile, group, count, signed=signed)
            self.finite &= self._is_finite(tile.out[group.place, :count])
            return
        self._add_stored(tile, group, group.bags, count)
        direct = tile.out[group.place, :count]
        if not self._is_finite(direct):
            # Differences say what infinities have in common. Other elements stay as they are in
            # tiles without any.
            direct = direct.clone()
            self._add_differences(tile, group, count, signed=signed)
            made = tile.out[group.place, :count]
            self.finite &= self._is_finite(made)
            tile.out[group.place, :count] = direct.where(direct.isfinite(), made)
        if signed:
            # Sums of zeros are +0.0: zeros that all sources share get their sign.
            for k, total in zip(group.targets, group.totals, strict=True):
                row = tile.out[k, :count]
                if total == 1.0:
                    row.copy_(newest.where((row == 0) & (newest == 0), row))

    def _is_finite(self, out: torch.Tensor) -> bool:
        """Whether averages of the same sources are finite; an overflowing sum is a false alarm."""
        import torch

        # What is not finite in a source is so in every average. Rounding to a type with a smaller
        # range than float32's may be too much for any of them.
        wide = out.dtype in {torch.float64, torch.float32, torch.bfloat16}
        rows = out[:1] if wide else out
        if rows.element_size() == 1:
            rows = rows.to(self._compute)
        return math.isfinite(float(rows.sum(dtype=self._compute)))

    def _add_stored(self, tile: _Tile, group: _Group, bags: Bags, count: int) -> None:
        """``y = sum_i x_i theta_i`` of values of 16 bits, as they are stored."""
        import torch

        places, ends, weights = bags
        rows = tile.stored
        if isinstance(rows, list):
            rows = torch.stack([rows[i] for i in group.sources])
        targets, pieces = len(group.targets), -(-count // self._piece)
        entries = pieces * targets * 2 * len(group.sources)
        sums = torch.nn.functional.embedding_bag(
            places[:entries],
            rows.view(-1, self._piece),
            ends[: pieces * targets + 1],
            mode="sum",
            per_sample_weights=weights[:entries],
            include_last_offset=True,
        )
        by_target = sums.view(pieces, targets, self._piece).transpose(0, 1)
        for k, total in zip(group.targets, by_target, strict=True):
            tile.out[k, : total.numel()].view(total.shape).copy_(total)

    def _add_differences(self, tile: _Tile, group: _Group, count: int, *, signed: bool) -> None:
        """``y = s r + sum_i x_i (theta_i - r)``, block by block.

        r is the newest source and s the weights' sum. What is alike in all sources has differences
        of exactly zero and comes out as it is.
        """
        for start in range(0, count, self._block):
            span = slice(start, min(start + self._block, count))
            reference = self._reference[: span.stop - start]
            reference.copy_(tile.stored[group.sources[0]][span])
            sums = self._sum_up(tile, group, span, reference)
            for k, total, weight in zip(group.targets, sums, group.totals, strict=True):
                unmoved = total == 0 if signed and weight == 1.0 else None
                total.add_(reference, alpha=weight)
                if unmoved is not None:
                    # 0 + -0.0 is +0.0: the sign of what is alike everywhere would be lost.
                    total.copy_(reference.where(unmoved, total))
                tile.out[k, span].copy_(total)

    def _sum_up(
        self, tile: _Tile, group: _Group, span: slice, reference: torch.Tensor
    ) -> torch.Tensor:
        """The sums (k, elements) of a block's differences, part after part of the sources."""
        targets, count = len(group.targets), len(reference)
        sums: torch.Tensor = self._sums[:targets, :count]
        # A sum that overflows is a false alarm, and the careful way gives the same bits.
        finite = math.isfinite(float(reference.sum()))
        if not group.parts:
            sums.zero_()
        for part, (sources, weights) in enumerate(group.parts):
            if sources[0] < tile.whole:
                values = self._differences(tile, sources, span, reference, finite=finite)
                add_up(weights, targets, values, count, self._partial if part else self._sums)
                if part:
                    sums.add_(self._partial[:targets, :count])
                continue
            places = [source - tile.whole for source in sources]
            held = self._values[: len(sources), : -(-count // BLOCK) * BLOCK]
            more = self._residues.add_up(places, weights, targets, span.start, held, self._partial)
            own = self._sums[:targets, : held.shape[1]].view(more.shape)
            own.add_(more) if part else own.copy_(more)
        return sums

    def _differences(
        self,
        tile: _Tile,
        sources: list[int],
        span: slice,
        reference: torch.Tensor,
        *,
        finite: bool,
    ) -> torch.Tensor:
        """Differences of whole sources from the reference.

        Returns:
            (sources, width); columns beyond the block's may hold anything.
        """
        import torch

        count, stored = len(reference), tile.stored
        values = self._values[: len(sources)]
        if not sources:
            return values
        place = consecutive(sources)
        if isinstance(place, slice) and isinstance(stored, torch.Tensor):
            if tile.in_place:
                values = stored[place, span.start :]
            pairs = [(stored[place, span], values[:, :count])]
        else:
            rows = [stored[i][span] for i in sources]
            pairs = list(zip(rows, values[:, :count], strict=True))
        for row, wide in pairs:
            held = row if row.dtype == wide.dtype else wide.copy_(row)
            # Equal infinities, as masks have them, are no difference.
            alike = None if finite else held == reference
            torch.sub(held, reference, out=wide)
            if alike is not None:
                wide.masked_fill_(alike, 0.0)
        return values
