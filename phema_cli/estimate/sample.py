"""A bounded sample of the snapshots' elements, the same elements of each, for the solver.

The float tensors of a checkpoint make one string of bytes, of which pages at even distances are
read: every parameter is as likely to be read as any other, and two runs read the same.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import InputError
from phema_cli.estimate.copies import copied_in
from phema_cli.formats.base import DType, Extent, Packed, Part
from phema_cli.formats.chains import link_of
from phema_cli.formats.packing import BLOCK, numbers_of
from phema_cli.formats.reader import FileReader
from phema_cli.formats.strided import is_dense, is_plain
from phema_cli.profiles import Array
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.base import distinct, reference
from phema_cli.snapshots.tensors import averaged, stored_types
from phema_cli.solver import Sample

#: bytes read of all snapshots together, bytes of a page, the most values kept in memory, and the
#: most of one snapshot, of which some ten arrays in float64 are made.
SAMPLE_BYTES = 64 << 20
PAGE_BYTES = 4096
_MOST_VALUES, _MOST_OF_ONE = 8 << 20, 1 << 20
#: elements of a tensor's beginning, tensors that are begun to be read, and the share of their
#: movement that makes the sample where it is more than that of pages.
_MOST_HEAD, _MOST_TENSORS, _MOST_MOVEMENT = 1024, 8192, 0.99
#: pages in one of a packed snapshot: each of its reads is one of every file that it follows.
_PACKED_PAGES = 4
#: elements of packed tensors that are put together at a time.
_PACKED_PIECE = 1 << 14

#: ranges that are read at a time.
_AT_A_TIME = 4096

#: types that are sampled, with numpy's name of what their bytes are read as and the exponent of
#: their smallest normal number.
_KINDS = {"F64": ("<f8", -1022), "F32": ("<f4", -126), "F16": ("<f2", -14), "BF16": ("<u2", -126)}
#: what batch normalization measures: most libraries store it in averages as it was last.
_STATISTICS = ("running_mean", "running_var")

#: in 16 bits an average may equal the weights wherever these move little.
_HALF = 16


@dataclass(frozen=True, slots=True)
class _Range:
    """Elements of a tensor."""

    name: str
    start: int
    count: int


def sample(
    snapshots: Sequence[Snapshot], copy: Sequence[str] = (), *, allow_nonfinite: bool = False
) -> Sample | None:
    """Read the sample.

    Args:
        snapshots: oldest first; they fit together.
        copy: globs of tensor names that are not averaged and so not sampled.
        allow_nonfinite: whether elements that are not finite everywhere are left out instead.

    Returns:
        The sample in the order of the snapshots, or None where less than half of the averaged
        elements are float64, float32, float16 or bfloat16.

    Raises:
        InputError: an element is not a number, or infinite in some snapshots only.
        StorageError: the operating system failed to read.
    """
    averages = set(averaged(snapshots, copy))
    names = {n for n in averages if not n.endswith(_STATISTICS)} or averages
    floats = [e for e in reference(snapshots).checkpoint.stored if e.name in names]
    firsts = distinct(snapshots)
    types = {e.name: stored_types(firsts, e.name) for e in floats}
    # Where types differ the widest says how much is read.
    extents = [
        replace(e, dtype=max(types[e.name], key=lambda d: d.bits))
        for e in floats
        if all(d.name in _KINDS for d in types[e.name])
    ]
    packed = any(link_of(s.checkpoint) is not None for s in snapshots)
    ranges = _ranges(extents, len(snapshots), PAGE_BYTES * (_PACKED_PAGES if packed else 1))
    # A few wide tensors say nothing of many narrow ones, which round thousands of times as much.
    if 2 * sum(e.elements for e in extents) < sum(e.elements for e in floats) or not ranges:
        return None
    wide = any(e.dtype.name == "F64" for e in extents)
    values, errors = _values(snapshots, ranges, wide=wide, packed=packed)
    between = _between_pages(snapshots, extents, ranges, values, wide=wide, packed=packed)
    if between:
        ranges = between
        values, errors = _values(snapshots, ranges, wide=wide, packed=packed)
    finite = np.isfinite(values).all(axis=0)
    if not (allow_nonfinite or finite.all()):
        _check_alike(snapshots, ranges, values)
    units, done = np.empty(values.shape[1]), 0
    for kinds, some in groupby(ranges, key=lambda r: types[r.name]):
        span = slice(done, done + sum(r.count for r in some))
        done = span.stop
        # A value is as coarse as in the coarsest of its types.
        units[span] = np.max([_units(values[-1, span], dtype) for dtype in kinds], axis=0)
    exact = {name for name, kinds in types.items() if all(d.bits > _HALF for d in kinds)}
    copied = copied_in(snapshots, [(r.name, r.count) for r in ranges], values, exact)
    if not finite.all():
        values, units = values[:, finite], units[finite]
    return Sample(values, units, errors, copied)


def _ranges(extents: Sequence[Extent], snapshots: int, page: int) -> list[_Range]:
    """Which elements to read of each snapshot: pages of so many bytes, evenly over all tensors."""
    # Wide types first: then every tensor begins at a whole number of its elements.
    ordered = sorted((e for e in extents if e.elements), key=lambda e: -e.dtype.bits)
    pages = -(-sum(e.length for e in ordered) // page)
    size = min((e.dtype.bits // 8 for e in ordered), default=1)
    values = min(_MOST_VALUES // snapshots, _MOST_OF_ONE)
    most = min(SAMPLE_BYTES // snapshots, values * size) // page
    chosen = min(pages, max(most, 1))
    ranges: list[_Range] = []
    ends = list(accumulate(e.length for e in ordered))
    for i in range(chosen):
        low = i * pages // chosen * page
        high = min(low + page, ends[-1])
        while low < high:
            place = bisect_right(ends, low)
            extent, stop = ordered[place], min(high, ends[place])
            width, begin = extent.dtype.bits // 8, ends[place] - extent.length
            start, count = (low - begin) // width, (stop - low) // width
            last = ranges[-1] if ranges else None
            if last and last.name == extent.name and last.start + last.count == start:
                ranges[-1] = replace(last, count=last.count + count)
            else:
                ranges.append(_Range(extent.name, start, count))
            low = stop
    return ranges


def _between_pages(
    snapshots: Sequence[Snapshot],
    extents: Sequence[Extent],
    ranges: Sequence[_Range],
    values: NDArray[np.floating],
    *,
    wide: bool,
    packed: bool,
) -> list[_Range]:
    """The beginnings of tensors between the pages, if they move more than all that is in pages.

    A small head may move far more than what it stands on, which is a thousand times as large. How
    much a tensor moves is the sum of its squared differences between the oldest and the newest
    snapshot; those that make up ``_MOST_MOVEMENT`` of it are returned. What two averages of a step
    have alike was copied, and is none of them; one alone can't tell, unless nothing else moves.
    """
    elements = sum(e.elements for e in extents)
    if values.shape[1] == elements:
        return []
    rest = [e for e in extents if e.elements]
    newest = snapshots[-1]
    # Packed averages of what was copied are rounded, each in its own way.
    twins = [s for s in snapshots[:-1] if s.tag.step == newest.tag.step and not packed][:1]
    # Where nothing moves in pages, it may do so elsewhere in their tensors.
    if (values != values[-1]).any():
        read = {r.name for r in ranges}
        # Floats that count what was seen move most of all, and are vectors.
        rest = [e for e in rest if twins and e.name not in read and len(e.shape) > 1]
    if not rest:
        return []
    stride = -(-len(rest) // _MOST_TENSORS)
    some = rest[::stride]
    most = max(min(_MOST_HEAD, _MOST_VALUES // (len(snapshots) * len(some))), 1)
    heads = [_Range(e.name, 0, min(e.elements, most)) for e in some]
    read_of = [snapshots[0], *twins, newest]
    (first, *twin, last), _ = _values(read_of, heads, wide=wide, packed=packed)
    counts = np.array([r.count for r in heads])
    starts = np.cumsum(counts) - counts
    differ = np.logical_or.reduceat(last != (twin[0] if twin else first), starts)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.add.reduceat((last - first) ** 2.0, starts)
        moved = np.where(differ, squares / counts * [e.elements for e in some], 0.0)
        in_pages = np.mean((values[0] - values[-1]) ** 2.0) * elements
        if not moved.sum() * stride > in_pages:
            return []
    order = np.argsort(-moved, kind="stable")
    enough = np.searchsorted(np.cumsum(moved[order]), _MOST_MOVEMENT * moved.sum()) + 1
    return [heads[i] for i in sorted(order[:enough])]


def _values(
    snapshots: Sequence[Snapshot], ranges: Sequence[_Range], *, wide: bool, packed: bool
) -> tuple[NDArray[np.floating], Array | None]:
    """The elements of ranges as (n, e), and of packed snapshots the errors of :class:`Sample`."""
    count = sum(r.count for r in ranges)
    values = np.empty((len(snapshots), count), np.float64 if wide else np.float32)
    with FileReader() as reader:
        in_any_order = _in_any_order(snapshots, ranges)
        for row, snapshot in zip(values, snapshots, strict=True):
            done = 0
            for first in range(0, len(ranges), _AT_A_TIME):
                some = ranges[first : first + _AT_A_TIME]
                for part in _read(reader, snapshot.checkpoint.tensors, some, in_any_order):
                    row[done : done + len(part)] = part
                    done += len(part)
        errors = _read_packed(reader, snapshots, ranges, values) if packed else None
    return values, errors


def _in_any_order(snapshots: Sequence[Snapshot], ranges: Sequence[_Range]) -> set[str]:
    """Tensors whose elements lie together in one order that is not row-major, the same in all.

    They are read in that order: which of them are read does not matter, and a range is one run.
    """
    found = set()
    for name in dict.fromkeys(r.name for r in ranges):
        extents = [s.checkpoint.tensors[name] for s in distinct(snapshots)]
        orders = {e.strides for e in extents}
        if orders != {None} and len(orders) == 1 and is_dense(extents[0]):
            found.add(name)
    return found


def _read(
    reader: FileReader,
    tensors: Mapping[str, Extent],
    ranges: Sequence[_Range],
    in_any_order: Collection[str] = (),
) -> list[NDArray[np.floating]]:
    """The elements of all ranges in order, in float32 or float64; of packed tensors zeros.

    Ranges that follow on one another in a file are read, and returned, as one.
    """
    runs: list[tuple[Extent, int, int]] = []
    behind: object = None
    for r in ranges:
        extent = tensors[r.name]
        if r.name in in_any_order:
            extent = replace(extent, strides=None)
        plain = is_plain(extent)
        at = extent.offset + extent.dtype.size_bytes(r.start)
        if plain and behind == (extent.file, extent.dtype, at):
            first, start, count = runs.pop()
            runs.append((first, start, count + r.count))
        else:
            runs.append((extent, r.start, r.count))
        end = at + extent.dtype.size_bytes(r.count)
        behind = (extent.file, extent.dtype, end) if plain else None
    raw = [bytearray(extent.dtype.size_bytes(count)) for extent, _, count in runs]
    reader.read_many(
        [
            (extent, start, memoryview(held))
            for (extent, start, _), held in zip(runs, raw, strict=True)
            if extent.packed is None
        ]
    )
    result = []
    for (extent, _, _), held in zip(runs, raw, strict=True):
        stored = np.frombuffer(held, _KINDS[extent.dtype.name][0])
        result.append(numbers_of(stored) if extent.dtype.name == "BF16" else stored)
    return result


def _read_packed(
    reader: FileReader,
    snapshots: Sequence[Snapshot],
    ranges: Sequence[_Range],
    values: NDArray[np.floating],
) -> Array:
    """Fill (n, e) values in with the elements of packed tensors; each residue is read once.

    Returns:
        (n,) each snapshot's mean square error from the rounding of its residues, whose steps are
        uniform: the square of a step over 12.
    """
    pieces = [
        _Range(r.name, r.start + low, min(_PACKED_PIECE, r.count - low))
        for r in ranges
        for low in range(0, r.count, _PACKED_PIECE)
    ]
    squares = np.zeros(len(snapshots))
    begin = 0
    for name, some in groupby(pieces, key=lambda piece: piece.name):
        spans = []
        for piece in some:
            spans.append((piece, slice(begin, begin + piece.count)))
            begin += piece.count
        chains: dict[Path, dict[int, Packed]] = {}
        for row, snapshot in enumerate(snapshots):
            if (packed := snapshot.checkpoint.tensors[name].packed) is not None:
                keyframe = packed.link.keyframe[packed.name].file
                chains.setdefault(keyframe, {})[row] = packed
        for chain in chains.values():
            _read_chain(reader, chain, spans, values, squares)
    return squares / max(begin, 1)


def _read_chain(
    reader: FileReader,
    chain: Mapping[int, Packed],
    spans: Sequence[tuple[_Range, slice]],
    values: NDArray[np.floating],
    squares: Array,
) -> None:
    """Read pieces of a tensor that is packed in snapshots of one chain.

    Args:
        reader: reads the files.
        chain: the tensor in the snapshots that share a keyframe, by their numbers.
        spans: the pieces, and their columns of ``values``.
        values: (n, e) of all n snapshots; the rows of these are filled.
        squares: (n,) squares of the steps over 12, added up over the elements; added to.
    """
    rows, links = [*chain], [packed.link for packed in chain.values()]
    name = chain[rows[0]].name
    parts = {part.path: part for link in links for part in link.parts}
    numbers = {path: number for number, path in enumerate(parts)}
    coefficients = np.zeros((len(rows), len(parts)))
    for own, link in zip(coefficients, links, strict=True):
        own[[numbers[part.path] for part in link.parts]] = link.coefficients
    last = [numbers[link.parts[-1].path] for link in links]
    for piece, span in spans:
        (whole,) = _read(reader, {piece.name: links[0].keyframe[name]}, [piece])
        residues, steps = _residues(reader, name, [*parts.values()], piece)
        # One product for all rows would be the slower way for matrices of this shape.
        for row, own in zip(rows, coefficients, strict=True):
            # Beyond float32 they are infinite, and reported as such.
            with np.errstate(over="ignore"):
                values[row, span] = whole + own @ residues
        squares[rows] += steps[last] / 12


def _residues(
    reader: FileReader, name: str, parts: Sequence[Part], piece: _Range
) -> tuple[NDArray[np.float64], Array]:
    """Residues (m, count) of a tensor's elements in m files, and the sums of their steps' squares.

    In float64 no product of an integer and a scale is infinite.
    """
    aligned = piece.start // BLOCK * BLOCK
    low, high = piece.start - aligned, piece.start - aligned + piece.count
    residues = np.empty((len(parts), high))
    scales = [
        reader.read_residues(part, name, aligned, row)
        for part, row in zip(parts, residues, strict=True)
    ]
    blocks = np.arange(-(-high // BLOCK) + 1) * BLOCK
    inside = np.diff(blocks.clip(low, high))
    return residues[:, low:], np.square(scales, dtype=np.float64) @ inside


def _units(values: NDArray[np.floating], dtype: DType) -> Array:
    """Unit in the last place of each value in a type."""
    smallest = _KINDS[dtype.name][1]
    _, exponent = np.frexp(values)
    # Next to 0 the numbers lie as near as they ever do.
    exponent = np.where(values == 0, smallest, exponent - 1.0)
    units: Array = np.exp2(np.maximum(exponent, smallest) - dtype.mantissa_bits)
    return units


def _check_alike(
    snapshots: Sequence[Snapshot], ranges: Sequence[_Range], values: NDArray[np.floating]
) -> None:
    """Let nothing pass but finite values and infinities alike in all, as masks have them.

    Raises:
        InputError: any other value that is not finite.
    """
    finite = np.isfinite(values)
    alike = (values == values[-1]).all(axis=0)
    for column in np.flatnonzero(~(finite.all(axis=0) | alike))[:1]:
        row = int(np.flatnonzero(~finite[:, column])[0])
        ends = np.cumsum([r.count for r in ranges])
        name = ranges[int(np.searchsorted(ends, column, side="right"))].name
        raise InputError(
            f"tensor {name} holds {values[row, column]}",
            where=snapshots[row].name,
            remedy="leave the snapshot out with --exclude, or the tensor with --copy",
        )
