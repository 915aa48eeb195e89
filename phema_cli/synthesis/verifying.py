"""Verification: whether an output is what its provenance and its sources make it.

The recipe is made again from what the output records. Its headers are compared byte by byte, and
values are averaged again: bytes are the same, or, where other ways of summing round otherwise, the
nearest numbers to the sum in float64.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phema_cli.errors import CheckFailedError, InputError
from phema_cli.formats.base import Checkpoint, DType, FileReader
from phema_cli.profiles import Array, PowerProfile
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.scan import PROVENANCE_KEY, Scan
from phema_cli.solver import Solution
from phema_cli.solver.diagnostics import Figures
from phema_cli.solver.movement import nominal
from phema_cli.solver.system import evaluate
from phema_cli.synthesis.averaging import Tile
from phema_cli.synthesis.layout import Output
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.provenance import is_whole, source_entry
from phema_cli.synthesis.recipe import Recipe, make_recipe
from phema_cli.synthesis.segments import Segment, segments
from phema_cli.synthesis.solving import time_of
from phema_cli.synthesis.workers import Tiles

if TYPE_CHECKING:
    import torch

#: bytes of an output that are looked at without ``full``.
SAMPLE_BYTES = 64 << 20
#: how far from half a unit in the last place a number of 16 bits may be off its sum.
_SLACK = 2.0**-4
_CRC_BYTES = 4


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


def provenance_of(out: Checkpoint) -> dict[str, Any]:
    """What an output records of how it was made.

    Raises:
        CheckFailedError: nothing, or nothing that phema writes.
    """
    try:
        record = json.loads(out.metadata[PROVENANCE_KEY])
        sources = [(s["name"], float(s["weight"])) for s in record["sources"]]
        float(record["target"]["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckFailedError(
            "records no provenance that phema wrote", where=out.path, remedy="synthesize it again"
        ) from error
    if record.get("schema") != "phema/synthesis/1" or not sources:
        raise CheckFailedError("records a provenance of another schema", where=out.path)
    if not is_whole(record):
        raise CheckFailedError("its provenance was changed after it was written", where=out.path)
    return record  # type: ignore[no-any-return]


def remake(out: Checkpoint, found: Scan) -> Recipe:
    """The recipe that an output says it was made by, for what a scan found.

    Raises:
        CheckFailedError: a source is missing or another one, or the output can't come of them.
        PhemaError: the scan is of no use.
    """
    record = provenance_of(out)
    snapshots = found.require()
    step = float(record["target"]["step"])
    target = PowerProfile(1.0, time_of(snapshots, step))
    system = evaluate([s.tag.profile for s in snapshots], [target])
    nothing = Figures(0.0, None, None, None, 1.0, 1.0)
    recipe = make_recipe(
        snapshots,
        [target],
        Solution(_weights(out, record, snapshots), (nothing,), nominal(system, 0.0)),
        [out.path if len(out.files) == 1 else out.files[0].parent],
        step=step,
        method=str(record["method"]),
        form=out.format,
        dtype=_stored_as(out, found),
        copy=record.get("copy", ()),
        max_shard_bytes=_shard_bytes(out),
        origins=[out.metadata[PROVENANCE_KEY]],
        allow_nonfinite=True,
    )
    if recipe.outputs[0].finals[: len(out.files)] != list(out.files):
        made = ", ".join(p.name for p in recipe.outputs[0].finals)
        raise CheckFailedError(f"its files should be {made}", where=out.path)
    return replace(recipe, jobs=1)


def _weights(out: Checkpoint, record: dict[str, Any], snapshots: Sequence[Snapshot]) -> Array:
    """The recorded weights, (n, 1), each at its snapshot.

    Raises:
        CheckFailedError: a source is missing, or is not what it was.
    """
    weights = np.zeros((len(snapshots), 1))
    places = {s.name: i for i, s in enumerate(snapshots)}
    for entry in record["sources"]:
        name = entry["name"]
        if name not in places:
            raise CheckFailedError(
                f"its source {name} is not among the snapshots",
                where=out.path,
                remedy="pass the directory that it was made from",
            )
        now = source_entry(snapshots[places[name]])
        changed = next((k for k, v in now.items() if k in entry and entry[k] != v), None)
        if changed is not None:
            raise CheckFailedError(
                f"its source {name} had {changed} {entry[changed]}, not {now[changed]}",
                where=out.path,
            )
        weights[places[name]] = entry["weight"]
    return weights


def verify(recipe: Recipe, *, full: bool = False, progress: Progress | None = None) -> Verification:
    """Compare an output with what a recipe makes.

    Args:
        recipe: as :func:`remake` gives it; its one output exists.
        full: whether all tensors are made again, and not a random choice of tiles.
        progress: called with bytes of the output that were looked at.

    Raises:
        CheckFailedError: something differs; the tensor and element are named.
        StorageError: the operating system failed to read.
    """
    (output,) = recipe.outputs
    with FileReader() as reader:
        try:
            _check_headers(output, reader)
            checker = _Checker(recipe, output, reader)
            tiles = list(checker.tiles())
            chosen = tiles if full else _chosen(tiles)
            for tile in chosen:
                checker.check(tile)
                if progress is not None:
                    progress(tile.size_bytes)
            if full:
                _check_checksums(output, checker.sums, reader)
        except InputError as error:
            raise CheckFailedError(error.what, where=error.where, remedy=error.remedy) from error
    checked, total = (sum(t.size_bytes for t in part) for part in (chosen, tiles))
    return Verification(len(recipe.sources), len(output.finals), checked, total)


def _stored_as(out: Checkpoint, found: Scan) -> DType | None:
    """The type that averaged tensors were converted to, None where they are as in the sources."""
    newest = found.require()[-1].checkpoint.tensors
    for name, extent in out.tensors.items():
        if name in newest and newest[name].dtype != extent.dtype:
            return extent.dtype
    return None


def _shard_bytes(out: Checkpoint) -> int | None:
    """A limit that splits tensors into the shards that are there."""
    if len(out.files) == 1:
        return None
    by_file: dict[Path, list[int]] = {}
    for extent in out.stored:
        by_file.setdefault(extent.file, []).append(extent.length)
    return max((sum(sizes) for sizes in by_file.values() if len(sizes) > 1), default=1)


def _check_headers(output: Output, reader: FileReader) -> None:
    """Compare all bytes of the files but those of tensors."""
    for file in output.files:
        size = file.path.stat().st_size if file.path.exists() else 0
        if size != file.image.size_bytes:
            raise CheckFailedError(
                f"has {size:,} bytes instead of {file.image.size_bytes:,}", where=file.path
            )
        places = (p for found in file.image.checksums.values() for p in found)
        later = {place + i for place in places for i in range(_CRC_BYTES)}
        for offset, data in file.image.segments:
            found = bytearray(len(data))
            reader.read_bytes(file.path, offset, memoryview(found))
            if found != data:
                _check_bytes(file.path, offset, found, data, later)
    index = output.index
    if index is not None and (not index[0].exists() or index[0].read_bytes() != index[1]):
        raise CheckFailedError("is not the index of these shards", where=index[0])


def _check_bytes(path: Path, offset: int, found: bytearray, wanted: bytes, later: set[int]) -> None:
    """Refuse bytes that differ, but where checksums go."""
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a != b and offset + i not in later:
            raise CheckFailedError(f"byte {offset + i:,}, of no tensor, differs", where=path)


def _check_checksums(output: Output, sums: Mapping[str, int], reader: FileReader) -> None:
    """Compare each CRC-32 that the files hold with that of the tensor's bytes."""
    for file in output.files:
        for name, places in file.image.checksums.items():
            for place in places:
                found = bytearray(_CRC_BYTES)
                reader.read_bytes(file.path, place, memoryview(found))
                if found != sums.get(name, 0).to_bytes(_CRC_BYTES, "little"):
                    raise CheckFailedError(f"tensor {name}: its CRC-32 differs", where=file.path)


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


def _chosen(tiles: list[_Range]) -> list[_Range]:
    """Tiles at random, other ones each time."""
    random.shuffle(tiles)
    left, chosen = SAMPLE_BYTES, []
    for tile in tiles:
        if left > 0:
            chosen.append(tile)
            left -= tile.size_bytes
    return chosen


class _Checker:
    """Makes tiles again and compares them."""

    def __init__(self, recipe: Recipe, output: Output, reader: FileReader) -> None:
        self._recipe = recipe
        self._output = output
        self._reader = reader
        self._tiles = Tiles(recipe, reader)
        self._weights: Array = recipe.weights[self._tiles.used]
        #: CRC-32 of tensors that are checked from their first to their last element.
        self.sums: dict[str, int] = {}

    def tiles(self) -> Iterator[_Range]:
        """All ranges, in the order of the output."""
        size = self._recipe.tile_elements
        for segment in segments(self._recipe):
            for start in range(0, segment.elements, size):
                yield _Range(segment, start, min(size, segment.elements - start))

    def check(self, tile: _Range) -> None:
        """Compare a range."""
        plan = tile.segment.plan
        found = bytearray(tile.size_bytes)
        file = self._output.files[self._output.homes[plan.name]]
        at = tile.segment.places[0].offset + plan.out_dtype.size_bytes(tile.start)
        self._reader.read_bytes(file.path, at, memoryview(found))
        self.sums[plan.name] = zlib.crc32(found, self.sums.get(plan.name, 0))
        if not plan.average:
            wanted = bytearray(tile.size_bytes)
            source = tile.segment.sources[self._recipe.bases[0]]
            self._reader.read_elements(source, tile.start, memoryview(wanted))
            if found != wanted:
                self._refuse(tile, _first(found, wanted) * 8 // plan.dtype.bits)
            return
        own = self._tiles.read(tile.segment, tile.start, tile.count)
        (made,) = own.averages(tile.count)
        if made != found:
            self._compare(tile, own, found)

    def _compare(self, tile: _Range, own: Tile, found: bytearray) -> None:
        """See whether what differs is within rounding."""
        import torch

        stored, made = own.values(tile.count)
        dtype = tile.segment.plan.out_dtype
        held = torch.frombuffer(found, dtype=getattr(torch, dtype.label))
        raw = (x.contiguous().view(torch.uint8).view(-1, dtype.bits // 8) for x in (held, made[0]))
        different = torch.ne(*raw).any(dim=1).nonzero()[:, 0]
        for element in different.tolist():
            # Wider averages have the same bits whatever else was made with them.
            narrow = dtype.name in {"F16", "BF16"}
            if not (narrow and self._is_nearest(stored[:, element], held[element], dtype)):
                self._refuse(tile, element)

    def _is_nearest(self, stored: torch.Tensor, held: torch.Tensor, dtype: DType) -> bool:
        """Whether a stored average is the sum in float64, rounded once."""
        exact = float(self._weights[:, 0] @ stored.double().numpy())
        unit = 2.0 ** (np.frexp(exact)[1] - 1 - dtype.mantissa_bits)
        return bool(abs(float(held) - exact) <= (0.5 + _SLACK) * unit)

    def _refuse(self, tile: _Range, element: int) -> None:
        """Say which tensor and element differ."""
        plan, low, _, first = next(
            part
            for part in tile.segment.parts(tile.start, tile.start + tile.count)
            if part[1] <= element < part[2]
        )
        within = first + element - low
        raise CheckFailedError(
            f"tensor {plan.name} differs from what its sources make, first in element {within:,}",
            where=self._output.path,
        )


def _first(a: bytearray, b: bytearray) -> int:
    """The first byte that differs."""
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
