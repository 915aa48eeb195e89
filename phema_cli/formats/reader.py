"""Reads bytes and elements of tensors from files that it keeps open."""

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import StorageError
from phema_cli.formats.base import Contents, Extent, Packed, Part, StoredTensor
from phema_cli.formats.checks import broken
from phema_cli.formats.packing import BLOCK, INFINITE, Floats, numbers_of, places_of, unpack
from phema_cli.formats.remote import ends_early, is_remote, read_ranges
from phema_cli.formats.strided import Bands, is_plain
from phema_cli.system.files import open_file, read_at

#: elements that are summed of a packed tensor at a time, a multiple of its blocks.
_SUMMED = 1 << 16
#: elements from which on what lies together is copied as such, not one by one.
_LEAST_RUN = 64


class OpenFiles:
    """Descriptors of files by path, at most ``limit`` of them open at a time.

    Not shared between threads: each worker has its own.

    Args:
        limit: how many files may be open.
        flags: ``os.O_*`` to open them with.
    """

    def __init__(self, limit: int = 64, flags: int = os.O_RDONLY) -> None:
        self._limit = max(1, limit)
        self._flags = flags
        self._open: OrderedDict[Path, int] = OrderedDict()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all files."""
        while self._open:
            self._close(*self._open.popitem())

    def _close(self, path: Path, descriptor: int) -> None:
        """Close a file; if it was written to, a failure may mean that bytes are lost."""
        try:
            os.close(descriptor)
        except OSError as error:
            if self._flags != os.O_RDONLY:
                raise StorageError.wrap(error, path, "write") from error

    def descriptor(self, path: Path) -> int:
        """The file's descriptor, opened now if need be.

        Raises:
            OSError: it can't be opened.
            StorageError: another file was closed to make room, and what was written to it is lost.
        """
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= self._limit:
                self._close(*self._open.popitem(last=False))
            self._open[path] = open_file(path, self._flags)
        return self._open[path]


class FileReader(OpenFiles):
    """Positional reads of bytes and of tensors' elements.

    Args:
        limit: how many files may be open.
        held_bytes: bytes of tensors in other orders than row-major, which are read in bands.
    """

    def __init__(self, limit: int = 64, held_bytes: int = 32 << 20) -> None:
        super().__init__(limit)
        self._bands = Bands(self.read_runs, held_bytes)

    def read_bytes(self, path: Path, offset: int, out: memoryview) -> None:
        """:meth:`read_runs` of a single one."""
        self.read_runs(path, [(offset, out)])

    def read_runs(self, path: Path, runs: Iterable[tuple[int, memoryview]]) -> None:
        """Fill buffers with the bytes of a file, each from an offset on.

        Raises:
            InputError: the file ends before a buffer is full.
            StorageError: the operating system failed.
        """
        if is_remote(path):
            read_ranges([(path, *run) for run in runs])
            return
        try:
            descriptor = self.descriptor(path)
            for offset, out in runs:
                done = read_at(descriptor, out, offset)
                while done < len(out):
                    got = read_at(descriptor, out[done:], offset + done)
                    if got == 0:
                        raise ends_early(path, offset + done)
                    done += got
        except OSError as error:
            raise StorageError.wrap(error, path, "read") from error

    def read_rows(self, extents: Sequence[Extent], start: int, rows: Sequence[memoryview]) -> None:
        """:meth:`read_elements` of several extents, from the same element on.

        Args:
            extents: tensors of one type.
            start: index of the first element, which begins at a whole byte.
            rows: for each extent the same number of bytes, a whole number of elements.
        """
        begin, size = extents[0].dtype.size_bytes(start), len(rows[0])
        others = []
        for extent, row in zip(extents, rows, strict=True):
            # This one call decides how fast phema is: no layer lies between. All else goes to
            # read_many.
            descriptor = self._open.get(extent.file)
            plain = extent.strides is None and not extent.pieces and extent.packed is None
            if descriptor is not None and plain:
                with suppress(OSError):
                    if read_at(descriptor, row, extent.offset + begin) == size:
                        continue
            others.append((extent, start, row))
        self.read_many(others)

    def read_many(self, requests: Sequence[tuple[Extent, int, memoryview]]) -> None:
        """:meth:`read_elements` for each request; one call fetches all that is remote."""
        remote = []
        for extent, start, out in requests:
            if is_remote(extent.file) and is_plain(extent):
                offset = extent.offset + extent.dtype.size_bytes(start)
                remote.append((extent.file, offset, out))
            else:
                self.read_elements(extent, start, out)
        read_ranges(remote)

    def read_elements(self, extent: Extent, start: int, out: memoryview) -> None:
        """Fill ``out`` with the extent's elements, in row-major order, from ``start`` on.

        Args:
            extent: a tensor; elements of less than a byte lie one after the other.
            start: index of the first element, which begins at a whole byte.
            out: bytes, a whole number of elements.
        """
        if extent.packed is not None:
            self._sum(extent.packed, start, out)
        elif extent.pieces:
            self._assemble(extent, start, out)
        elif extent.strides is None:
            self.read_bytes(extent.file, extent.offset + extent.dtype.size_bytes(start), out)
        else:
            self._bands.fill(extent, start, out)

    def read_residues(self, part: Part, name: str, start: int, out: NDArray[np.floating]) -> Floats:
        """Fill ``out`` with a packed file's residues of a tensor; returns their blocks' scales.

        Args:
            part: the file.
            name: the tensor's.
            start: index of the first element, which is the first of its block.
            out: float32 or float64.

        Raises:
            InputError: a scale is negative or not finite.
        """
        held = np.empty(-(-len(out) * part.bits // 8), np.uint8)
        raw = np.empty(-(-len(out) // BLOCK), np.uint16)
        self.read_packed(part, name, start, held.data, raw.view(np.uint8).data)
        wide = numbers_of(raw)
        unpack(held, wide, part.bits, out)
        return wide

    def read_packed(
        self, part: Part, name: str, start: int, integers: memoryview, scales: memoryview
    ) -> None:
        """Read stored integers of a tensor, and the scales of their blocks.

        Args:
            part: the file.
            name: the tensor's.
            start: index of the first element, which is the first of its block.
            integers: filled.
            scales: filled.

        Raises:
            InputError: a scale is negative or not finite.
        """
        for place, held in zip(places_of(part, name, start), (integers, scales), strict=True):
            self.read_bytes(part.path, place, held)
        # As unsigned integers, bits from those of infinity on are infinities, NaN and negative.
        if len(scales) and np.frombuffer(scales, np.uint16).max() >= INFINITE:
            raise broken(f"tensor {name}: a scale is negative or not finite", part.path)

    def _sum(self, packed: Packed, start: int, out: memoryview) -> None:
        """Sum what a packed tensor consists of, in float64: keyframe, then residues in order."""
        link, name = packed
        made = np.frombuffer(out, np.float32)
        for low in range(0, len(made), _SUMMED):
            piece = made[low : low + _SUMMED]
            first = start + low
            aligned = first // BLOCK * BLOCK
            residues = np.empty(first + len(piece) - aligned, np.float32)
            moved = np.zeros(len(piece))
            self.read_elements(link.keyframe[name], first, piece.view(np.uint8).data)
            # Sums beyond float32 are infinite: whoever uses them counts them.
            with np.errstate(over="ignore", invalid="ignore"):
                for part, coefficient in zip(link.parts, link.coefficients, strict=True):
                    self.read_residues(part, name, aligned, residues)
                    moved += coefficient * residues[first - aligned :].astype(np.float64)
                piece[:] = piece + moved

    def _assemble(self, extent: Extent, start: int, out: memoryview) -> None:
        """Put the elements of all pieces into their places."""
        itemsize = extent.dtype.bits // 8
        target = np.frombuffer(out, dtype=f"V{itemsize}")
        for box, held in extent.pieces:
            low = box.elements_before(start, extent.shape)
            high = box.elements_before(start + len(target), extent.shape)
            if low == high:
                continue
            first, last = box.places(np.array([low, high - 1]), extent.shape) - start
            if last - first == high - 1 - low:
                inside = out[first * itemsize : (last + 1) * itemsize]
                self.read_elements(held, low, inside)
                continue
            part = np.empty(high - low, target.dtype)
            self.read_elements(held, low, part.view(np.uint8).data)
            run = box.run(extent.shape)
            if run < _LEAST_RUN:
                target[box.places(np.arange(low, high), extent.shape) - start] = part
                continue
            # The first and the last run may lie in the range in part only.
            begins = np.arange(low // run * run, high, run)
            begins[0] = low
            places = (box.places(begins, extent.shape) - start).tolist()
            parts = np.split(part, begins[1:] - low)
            for place, elements in zip(places, parts, strict=True):
                target[place : place + len(elements)] = elements


#: numpy's names of types, where it has them.
NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BOOL": "?",
    **{f"{kind.upper()}{bits}": f"<{kind}{bits // 8}" for kind in "iu" for bits in (8, 16, 32, 64)},
}


def value_of(tensor: StoredTensor, contents: Contents) -> float | None:
    """The number in a tensor of one element; None for larger tensors and other types.

    Raises:
        InputError, StorageError: it can't be read.
    """
    kind = NUMPY_TYPES.get(tensor.dtype.name)
    if kind is None or math.prod(tensor.shape) != 1:
        return None
    out = bytearray(tensor.dtype.bits // 8)
    with FileReader() as reader:
        reader.read_elements(contents.locate({"value": tensor})["value"], 0, memoryview(out))
    return float(np.frombuffer(out, kind)[0])
