"""Verification: whether an output is what its provenance and its sources make it.

Headers are compared byte by byte, and values are averaged again. Values of 16 bits are summed in
ways that depend on the other targets of the call: all of an output has to be what one way makes.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import CheckFailedError, InputError
from phema_cli.formats.files import FileReader
from phema_cli.profiles import Array
from phema_cli.synthesis.averaging import ways
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.recipe import DEFAULT_DEVICE, Recipe
from phema_cli.synthesis.segments import Segment, segments
from phema_cli.synthesis.tiling import Kind
from phema_cli.synthesis.workers import Tiles
from phema_cli.verify.headers import check_checksums, check_headers

if TYPE_CHECKING:
    import torch

Bytes = bytearray | memoryview
_Maker = Callable[["_Range"], Bytes]
Positions = NDArray[np.int64]

#: bytes of an output that are looked at without ``full``.
SAMPLE_BYTES = 64 << 20
#: elements that are summed in float64 at a time.
_PIECE = 4096


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


def _differing(found: bytearray, wanted: Bytes, bits: int) -> Positions:
    """Indices of elements of so many bits that differ, ascending."""
    places = np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(wanted, np.uint8))
    return np.unique(places * 8 // bits)


def near(held: torch.Tensor, stored: torch.Tensor, weights: Array) -> torch.Tensor:
    """Whether averages are the sums in float64 within the rounding of whatever made them.

    Args:
        held: (m,) averages.
        stored: (n, m) what they were made of, the reference of differences first.
        weights: (n,) float64.

    Returns:
        (m,) of bool.
    """
    import torch

    made, values, own = held.double(), stored.double(), torch.from_numpy(weights)
    exact = own @ values
    kind = torch.finfo(held.dtype)
    units = torch.ldexp(torch.full_like(exact, kind.eps), torch.frexp(exact).exponent - 1)
    units.clamp_(min=kind.smallest_normal * kind.eps)
    # Differences from the reference are taken, weighed and added up in float32 or float64.
    sizes = own.abs() @ (values.abs() + values[0].abs())
    wide = torch.float64 in {held.dtype, stored.dtype}
    step = torch.finfo(torch.float64 if wide else torch.float32).eps / 2
    within = (made - exact).abs() <= units / 2 + (len(weights) + 2) * step * sizes
    return (within & exact.isfinite()) | (made == exact) | (made.isnan() & exact.isnan())


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
        exact = json.loads(recipe.origins[0])["device"] == DEFAULT_DEVICE
        # What a GPU has summed is looked at more closely where its bits differ.
        self._closely = None if exact else Tiles(recipe, reader)
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
                places = _differing(found, wanted, plan.out_dtype.bits)
                if plan.average and self._closely is not None:
                    places = self._far(self._closely, tile, places, found)
                if len(places):
                    return number, int(places[0])
            self._progress(tile.size_bytes)
        return None

    def _written(self, tile: _Range) -> bytearray:
        """What the output holds."""
        found = bytearray(tile.size_bytes)
        file = self._output.files[self._output.homes[tile.segment.plan.name]]
        at = tile.segment.places[0].offset + tile.segment.plan.out_dtype.size_bytes(tile.start)
        self._reader.read_bytes(file.path, at, memoryview(found))
        return found

    def _far(self, tiles: Tiles, tile: _Range, places: Positions, found: bytearray) -> Positions:
        """Those of the elements that are not within rounding of the sums in float64."""
        import torch

        plan = tile.segment.plan
        held = torch.frombuffer(found, dtype=getattr(torch, plan.out_dtype.label))
        # Averages may have taken the place of the values that they were made of.
        stored, _ = tiles.read(tile.segment, tile.start, tile.count).values(tile.count)
        weights = self._recipe.weights[tiles.used, 0]
        pieces = [places[i : i + _PIECE] for i in range(0, len(places), _PIECE)]
        far = [piece[~near(held[piece], stored[:, piece], weights).numpy()] for piece in pieces]
        return np.concatenate(far)

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
