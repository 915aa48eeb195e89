"""Verification: whether an output is what its provenance and its sources make it.

Headers are compared byte by byte, and values are averaged again. Values of 16 bits are summed in
ways that depend on the other targets of the call: all of an output has to be what one way makes.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from phema_cli.errors import CheckFailedError, InputError
from phema_cli.formats.files import FileReader
from phema_cli.synthesis.averaging import ways
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.segments import Segment, segments
from phema_cli.synthesis.tiling import Kind
from phema_cli.synthesis.workers import Tiles
from phema_cli.verify.headers import check_checksums, check_headers

Bytes = bytearray | memoryview
_Maker = Callable[["_Range"], Bytes]

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


def verify(recipe: Recipe, *, full: bool = False, progress: Progress | None = None) -> Verification:
    """Compare an output with what a recipe makes.

    Args:
        recipe: as :func:`phema_cli.verify.recipe.remake` gives it; its one output exists.
        full: whether all tensors are made again, and not a random choice of tiles.
        progress: called with bytes of the output that were looked at.

    Raises:
        CheckFailedError: something differs; the tensor and element are named.
        StorageError: the operating system failed to read.
    """
    (output,) = recipe.outputs
    with FileReader() as reader:
        try:
            check_headers(output, reader)
            checker = _Checker(recipe, reader, progress or (lambda _: None))
            tiles = list(_tiles(recipe))
            chosen = tiles if full else _chosen(tiles)
            for kind in dict.fromkeys(tile.kind for tile in chosen):
                checker.check(kind, [tile for tile in chosen if tile.kind == kind])
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
    def kind(self) -> Kind | None:
        """What it has in common with others that are averaged alike, None where it is copied."""
        return self.segment.plan.kind if self.segment.plan.average else None

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


def _first_differing(found: bytearray, wanted: Bytes, bits: int) -> int:
    """The index of the first element of so many bits that differs; there is one."""
    differs = np.frombuffer(found, np.uint8) != np.frombuffer(wanted, np.uint8)
    return int(differs.argmax()) * 8 // bits


class _Checker:
    """Makes tiles again and compares them.

    Args:
        recipe: what makes them.
        reader: what reads them, and the output.
        progress: called with bytes of the output that were looked at.

    Attributes:
        sums: CRC-32 of tensors that were checked from their first to their last element.
    """

    def __init__(self, recipe: Recipe, reader: FileReader, progress: Progress) -> None:
        self._recipe = recipe
        (self._output,) = recipe.outputs
        self._reader = reader
        self._progress = progress
        self.sums: dict[str, int] = {}

    def check(self, kind: Kind | None, tiles: Sequence[_Range]) -> None:
        """Compare ranges of one kind with what one way of summing makes of all of them.

        Raises:
            CheckFailedError: no way does; the way that gets furthest names the element.
        """
        makers = [self._copied] if kind is None else self._averaged(kind)
        furthest = (0, 0)
        for make in makers:
            found = self._first_difference(tiles, make)
            if found is None:
                return
            furthest = max(furthest, found)
        number, element = furthest
        self._refuse(tiles[number], element)

    def _copied(self, tile: _Range) -> Bytes:
        """The values of a range that is copied."""
        wanted = bytearray(tile.size_bytes)
        plan = tile.segment.plan
        giver = self._recipe.giver(0, plan.name)
        self._reader.read_elements(tile.segment.sources[giver], tile.start, memoryview(wanted))
        return wanted

    def _averaged(self, kind: Kind) -> Iterator[_Maker]:
        """What makes a range's averages, one after the other in each way."""
        for way in ways(kind, self._recipe.weights):
            tiles = Tiles(self._recipe, self._reader, way=way)

            def make(tile: _Range, tiles: Tiles = tiles) -> memoryview:
                read = tiles.read(tile.segment, tile.start, tile.count)
                return read.averages(tile.count)[0]

            yield make

    def _first_difference(self, tiles: Sequence[_Range], make: _Maker) -> tuple[int, int] | None:
        """The first range and its first element that are not as they are made."""
        for number, tile in enumerate(tiles):
            plan = tile.segment.plan
            found = self._written(tile)
            before = self.sums.get(plan.name, 0) if tile.start else 0
            self.sums[plan.name] = zlib.crc32(found, before)
            wanted = make(tile)
            if found != wanted:
                return number, _first_differing(found, wanted, plan.out_dtype.bits)
            self._progress(tile.size_bytes)
        return None

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
