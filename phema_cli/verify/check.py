"""Verification: whether an output is what its provenance and its sources make it.

Headers are compared byte by byte, and values are averaged again. Version 0.1 summed in ways that
depended on the other targets of the call: its averages may differ by one unit in the last place.
"""

import itertools
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import CheckFailedError, InputError, reading
from phema_cli.formats.image import HASH_DIGITS
from phema_cli.formats.reader import FileReader
from phema_cli.synthesis.layout import Output, OutputFile
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.tiles import Run, Segment, runs
from phema_cli.synthesis.workers import Chunk, Worker, one_thread
from phema_cli.system.pools import Progress

Positions = NDArray[np.int64]

#: bytes of an output that are checked without ``full``.
SAMPLE_BYTES = 64 << 20
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Verification:
    """How much of an output was checked, without a difference.

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
    bitwise: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Compare an output with what a recipe makes.

    Args:
        recipe: as :func:`phema_cli.verify.recipe.remake` gives it; its one output exists.
        full: whether all tensors are made again, not a random sample of tiles.
        bitwise: whether averages must agree to the bit, not to one unit in the last place.
        progress: called with bytes of the output that were checked.

    Raises:
        CheckFailedError: something differs; the tensor and element are named.
        StorageError: the operating system failed to read.
    """
    (output,) = recipe.outputs
    sums: dict[str, int] = {}
    with FileReader() as reader, one_thread():
        try:
            _check_headers(output, reader)
            worker = Worker(recipe, reader)
            tiles = list(runs(recipe, recipe.tile_elements))
            chosen = tiles if full else _sample(tiles)
            for tile in chosen:
                for chunk in worker.chunks(tile):
                    _compare(reader, output, sums, tile.segment, chunk, bitwise=bitwise)
                if progress is not None:
                    progress(tile.size_bytes)
            if full:
                _check_checksums(output, sums, reader)
        except InputError as error:
            raise CheckFailedError.of(error) from error
    checked, total = (sum(t.size_bytes for t in part) for part in (chosen, tiles))
    return Verification(len(recipe.sources), len(output.finals), checked, total)


def _sample(tiles: list[Run]) -> list[Run]:
    """A random sample of tiles, another one each time."""
    left, chosen = SAMPLE_BYTES, []
    for tile in random.sample(tiles, len(tiles)):
        if left > 0:
            chosen.append(tile)
            left -= tile.size_bytes
    return chosen


def _differing(written: bytearray, wanted: memoryview, bits: int) -> Positions:
    """Indices of elements of so many bits that differ, ascending."""
    places = np.flatnonzero(np.frombuffer(written, np.uint8) != np.frombuffer(wanted, np.uint8))
    return np.unique(places * 8 // bits)


def _far_apart(written: bytearray, wanted: memoryview, bits: int) -> Positions:
    """Indices of floats of so many bits that are neither equal nor neighbours, ascending."""
    size = bits // 8
    one, other = (_ordinals(np.frombuffer(data, f"<i{size}")) for data in (written, wanted))
    steps = one - other
    return np.flatnonzero((steps < -1) | (steps > 1))


def _ordinals(bits: NDArray[np.signedinteger[Any]]) -> NDArray[np.int64]:
    """Floats, given as integers of the same bits, as integers in the order of the floats."""
    wide = bits.astype(np.int64)
    least = np.int64(np.iinfo(bits.dtype).min)
    return np.where(wide < 0, least - wide, wide)


def _compare(
    reader: FileReader,
    output: Output,
    sums: dict[str, int],
    segment: Segment,
    chunk: Chunk,
    *,
    bitwise: bool,
) -> None:
    """Compare bytes of an output with what its sources make.

    Args:
        reader: what reads the output.
        output: what is there.
        sums: gets the CRC-32 of each tensor's bytes, which come in their order.
        segment: where they lie.
        chunk: what they should be.
        bitwise: whether averages must agree to the bit.

    Raises:
        CheckFailedError: an element differs.
    """
    plan, offset, wanted = segment.plan, chunk.start, chunk.data
    file = output.files[output.homes[plan.name]]
    written = _read(reader, file.path, segment.places[0].offset + offset, len(wanted))
    sums[plan.name] = zlib.crc32(written, sums.get(plan.name, 0) if offset else 0)
    if written == wanted:
        return
    bits = plan.kind.out.bits
    differing = _far_apart if plan.average and not bitwise else _differing
    places = differing(written, wanted, bits)
    if len(places):
        element = int(places[0]) + offset * 8 // bits
        ((tensor, _, _, first),) = segment.parts(element, element + 1)
        raise CheckFailedError(
            f"tensor {tensor.name} differs from what its sources make, first in element {first:,}",
            where=output.path,
        )


def _check_headers(output: Output, reader: FileReader) -> None:
    """Compare all bytes of the files except those of tensors and of their checksums.

    Raises:
        CheckFailedError: a file is missing, too many, of another size, or has other bytes.
    """
    with reading(output.path):
        for file in output.made:
            _check_file(file, reader)
        stale = output.stale()
    if stale:
        raise CheckFailedError("does not belong to this output", where=stale[0])


def _check_file(file: OutputFile, reader: FileReader) -> None:
    """Compare a file's size and its header."""
    size = file.path.stat().st_size if file.path.exists() else 0
    if size != file.image.size_bytes:
        raise CheckFailedError(
            f"has {size:,} bytes instead of {file.image.size_bytes:,}", where=file.path
        )
    lengths = dict.fromkeys(itertools.chain(*file.image.checksums.values()), _CRC_BYTES)
    lengths |= {place: HASH_DIGITS[algorithm] for place, algorithm in file.image.hashes.items()}
    checksums = {place + i for place, length in lengths.items() for i in range(length)}
    for offset, data in file.image.segments:
        written = _read(reader, file.path, offset, len(data))
        # Headers are long, and equal as a rule.
        pairs = enumerate(zip(written, data, strict=True), offset) if written != data else ()
        for place, (a, b) in pairs:
            if a != b and place not in checksums:
                raise CheckFailedError(
                    f"byte {place:,}, which belongs to no tensor, differs", where=file.path
                )


def _read(reader: FileReader, path: Path, offset: int, count: int) -> bytearray:
    """Bytes of a file."""
    data = bytearray(count)
    reader.read_bytes(path, offset, memoryview(data))
    return data


def _check_checksums(output: Output, sums: Mapping[str, int], reader: FileReader) -> None:
    """Compare each CRC-32 and hash that the files hold with those of the tensors' bytes.

    Args:
        output: what is there.
        sums: CRC-32 by name of the tensor.
        reader: what reads it.

    Raises:
        CheckFailedError: one differs.
    """
    for file in output.files:
        for name, places in file.image.checksums.items():
            for place in places:
                written = _read(reader, file.path, place, _CRC_BYTES)
                if written != sums.get(name, 0).to_bytes(_CRC_BYTES, "little"):
                    raise CheckFailedError(f"tensor {name}: its CRC-32 differs", where=file.path)
        for place, algorithm in file.image.hashes.items():
            written = _read(reader, file.path, place, HASH_DIGITS[algorithm])
            with file.path.open("rb") as stream:
                if written != file.image.hash_of(stream, algorithm).encode():
                    raise CheckFailedError("the hash in its metadata differs", where=file.path)
