"""Verification: whether an output is what its provenance and its sources make it.

Headers are compared byte by byte, and values are averaged again. Version 0.1 summed in ways that
depended on the other targets of the call: its averages may differ by one unit in the last place.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import CheckFailedError, InputError
from phema_cli.formats.reader import FileReader
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.segments import Segment, segments
from phema_cli.synthesis.workers import Tiles
from phema_cli.verify.headers import check_checksums, check_headers

Bytes = bytearray | memoryview
Positions = NDArray[np.int64]

#: bytes of an output that are looked at without ``full``.
SAMPLE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found to be as it should.

    Attributes:
        sources: sources that the output was made of.
        files: files of the output.
        checked_bytes: bytes of tensors that were made again.
        total_bytes: bytes of tensors in the output.
    """

    sources: int
    files: int
    checked_bytes: int
    total_bytes: int


def verify(
    recipe: Recipe,
    *,
    full: bool = False,
    exact: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Compare an output with what a recipe makes.

    Args:
        recipe: as :func:`phema_cli.verify.recipe.remake` gives it; its one output exists.
        full: whether all tensors are made again, and not a random choice of tiles.
        exact: whether averages have to be alike to the bit, and not to one unit in the last place.
        progress: called with bytes of the output that were looked at.

    Raises:
        CheckFailedError: something differs; the tensor and element are named.
        StorageError: the operating system failed to read.
    """
    (output,) = recipe.outputs
    with FileReader() as reader:
        try:
            check_headers(output, reader)
            checker = _Checker(recipe, reader, progress or (lambda _: None), exact=exact)
            tiles = list(_tiles(recipe))
            chosen = tiles if full else _chosen(tiles)
            for tile in chosen:
                checker.check(tile)
            if full:
                check_checksums(output, checker.sums, reader)
        except InputError as error:
            raise CheckFailedError(error.what, where=error.where, remedy=error.remedy) from error
    checked, total = (sum(t.size_bytes for t in part) for part in (chosen, tiles))
    return Verification(len(recipe.sources), len(output.finals), checked, total)


@dataclass(frozen=True, slots=True)
class _Range:
    """A range of a segment's elements."""

    segment: Segment
    start: int
    count: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the output."""
        return self.segment.plan.out_dtype.size_bytes(self.count)


def _tiles(recipe: Recipe) -> Iterator[_Range]:
    """All ranges, in the order of the output."""
    size = recipe.tile_elements
    for segment in segments(recipe):
        for start in range(0, segment.elements, size):
            yield _Range(segment, start, min(size, segment.elements - start))


def _chosen(tiles: list[_Range]) -> list[_Range]:
    """Tiles at random, other ones each time."""
    left, chosen = SAMPLE_BYTES, []
    for tile in random.sample(tiles, len(tiles)):
        if left > 0:
            chosen.append(tile)
            left -= tile.size_bytes
    return chosen


def _differing(found: bytearray, wanted: Bytes, bits: int) -> Positions:
    """Indices of elements of so many bits that differ, ascending."""
    places = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(wanted, np.uint8))
    return np.unique(places * 8 // bits)


def _apart(found: bytearray, wanted: Bytes, bits: int) -> Positions:
    """Indices of floats of so many bits that are neither alike nor neighbours, ascending."""
    size = bits // 8
    one, other = (_ordinals(np.frombuffer(data, f"<i{size}")) for data in (found, wanted))
    steps = one - other
    return np.flatnonzero((steps < -1) | (steps > 1))


def _ordinals(bits: NDArray[np.signedinteger[Any]]) -> NDArray[np.int64]:
    """Patterns of floats as integers in the order of the numbers."""
    wide = bits.astype(np.int64)
    least = np.int64(np.iinfo(bits.dtype).min)
    return np.where(wide < 0, least - wide, wide)


class _Checker:
    """Makes tiles again and compares them.

    Args:
        recipe: what makes them.
        reader: what reads them, and the output.
        progress: called with bytes of the output that were looked at.
        exact: whether averages have to be alike to the bit.

    Attributes:
        sums: CRC-32 of tensors that were checked from their first to their last element.
    """

    def __init__(
        self, recipe: Recipe, reader: FileReader, progress: Progress, *, exact: bool
    ) -> None:
        self._recipe = recipe
        (self._output,) = recipe.outputs
        self._reader = reader
        self._progress = progress
        self._tiles = Tiles(recipe, reader)
        self._exact = exact
        self.sums: dict[str, int] = {}

    def check(self, tile: _Range) -> None:
        """Compare a range with what its sources make.

        Raises:
            CheckFailedError: an element differs.
        """
        plan = tile.segment.plan
        found = self._written(tile)
        before = self.sums.get(plan.name, 0) if tile.start else 0
        self.sums[plan.name] = zlib.crc32(found, before)
        wanted = self._averaged(tile) if plan.average else self._copied(tile)
        if found != wanted:
            compare = _apart if plan.average and not self._exact else _differing
            places = compare(found, wanted, plan.out_dtype.bits)
            if len(places):
                self._refuse(tile, int(places[0]))
        self._progress(tile.size_bytes)

    def _averaged(self, tile: _Range) -> Bytes:
        """The averages of a range."""
        return self._tiles.averages(tile.segment, tile.start, tile.count)[0]

    def _copied(self, tile: _Range) -> Bytes:
        """The values of a range that is copied."""
        wanted = bytearray(tile.size_bytes)
        giver = self._recipe.giver(0, tile.segment.plan.name)
        self._reader.read_elements(tile.segment.sources[giver], tile.start, memoryview(wanted))
        return wanted

    def _written(self, tile: _Range) -> bytearray:
        """What the output holds."""
        found = bytearray(tile.size_bytes)
        file = self._output.files[self._output.homes[tile.segment.plan.name]]
        at = tile.segment.places[0].offset + tile.segment.plan.out_dtype.size_bytes(tile.start)
        self._reader.read_bytes(file.path, at, memoryview(found))
        return found

    def _refuse(self, tile: _Range, element: int) -> None:
        """Say which tensor and element differ."""
        plan, low, _, first = next(
            part
            for part in tile.segment.parts(tile.start, tile.start + tile.count)
            if part[1] <= element < part[2]
        )
        raise CheckFailedError(
            f"tensor {plan.name} differs from what its sources make, "
            f"first in element {first + element - low:,}",
            where=self._output.path,
        )
