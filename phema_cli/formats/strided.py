"""Reads tensors whose elements do not lie in row-major order: transposed ones, channels last.

Rows of such a tensor lie in runs of the file, one run of many for each column of a transposed
matrix, and the more rows are read at a time the longer they are. So a long read, one of many from
the front of a tensor to its back, reads a band of rows, from which the next ones are served, and
each byte is read once. A short one reads what it asks for.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from phema_cli.formats.base import Extent

#: reads bytes of a file from offsets on.
Read: TypeAlias = "Callable[[Path, Sequence[tuple[int, memoryview]]], None]"
Elements: TypeAlias = "NDArray[np.unsignedinteger | np.complexfloating]"

#: bytes of a read that is one of many, from front to back.
_LONG = 8 << 10
#: elements of a run for each that is wanted, at most: gaps cost less than another read.
_GAPS = 8
#: numpy's types of elements of so many bytes, which are moved and not looked at.
_MOVED = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}


def is_strided(extent: Extent) -> bool:
    """Whether a tensor, or a piece of it, is not in row-major order."""
    return extent.strides is not None or any(is_strided(p.extent) for p in extent.pieces)


def is_plain(extent: Extent) -> bool:
    """Whether the elements lie in one place, in row-major order, as they are."""
    return extent.strides is None and not extent.pieces and extent.packed is None


def is_dense(extent: Extent) -> bool:
    """Whether the elements lie one after the other, in whatever order of the dimensions."""
    step = 1
    for stride, size in sorted(zip(extent.strides or (), extent.shape, strict=False)):
        if size > 1 and stride != step:
            return False
        step *= size
    return not extent.pieces


class Bands:
    """Bands of strided tensors.

    Args:
        read: reads the runs.
        most: bytes of all bands, half of it for one that is put into order.
    """

    def __init__(self, read: Read, most: int) -> None:
        self._read, self._most = read, most // 2
        self._held: OrderedDict[object, tuple[int, Elements]] = OrderedDict()

    def fill(self, extent: Extent, start: int, out: memoryview) -> None:
        """Fill ``out`` with elements in row-major order, from ``start`` on; all of them exist."""
        target = np.frombuffer(out, _MOVED[extent.dtype.bits // 8])
        key = extent.file, extent.offset, extent.shape, extent.strides
        low, band = self._held.pop(key, (0, target[:0]))
        room = self._most // target.itemsize // (len(self._held) + 1) if len(out) > _LONG else 0
        done = 0
        while done < len(target):
            at = start + done
            if not low <= at < low + len(band):
                low, band = self._band(extent, at, max(len(target) - done, room))
            some = band[at - low :][: len(target) - done]
            target[done : done + len(some)] = some
            done += len(some)
        if start + done < extent.elements:
            self._held[key] = low, band
            while sum(held.nbytes for _, held in self._held.values()) > self._most:
                self._held.popitem(last=False)

    def _band(self, extent: Extent, at: int, most: int) -> tuple[int, Elements]:
        """Some rows of one dimension, in row-major order, of which the first has an element.

        Args:
            extent: a tensor.
            at: index of the element.
            most: elements of the rows; with gaps twice as many are read.

        Returns:
            The index of the band's first element, and the band.
        """
        shape, strides = extent.shape, extent.strides or ()
        axis, runs, row = self._rows(shape, strides, at, most)
        index = np.unravel_index(at // row, shape[: axis + 1])
        place = sum(int(i) * s for i, s in zip(index, strides, strict=False))
        itemsize = extent.dtype.bits // 8
        held = np.empty(runs.elements, _MOVED[itemsize])
        data, size = held.view(np.uint8).data, runs.length * itemsize
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        base = extent.offset + place * itemsize
        places = (base + offset * itemsize for offset in runs.offsets)
        self._read(extent.file, list(zip(places, pieces, strict=True)))
        return at // row * row, runs.in_order(held)

    @staticmethod
    def _rows(
        shape: tuple[int, ...], strides: tuple[int, ...], at: int, most: int
    ) -> tuple[int, _Runs, int]:
        """The dimension whose rows make the band, the runs of these, and the elements of a row."""
        axis = 0
        while True:
            row = math.prod(shape[axis + 1 :])
            left = shape[axis] - at // row % shape[axis]
            rows = min(left, most // row)
            while rows:
                runs = _Runs((rows, *shape[axis + 1 :]), strides[axis:])
                if runs.elements <= 2 * most:
                    return axis, runs, row
                rows //= 2
            axis += 1


class _Runs:
    """The runs of the file that hold a strided array.

    Args:
        shape: of the array, no size 0.
        strides: in elements.

    Attributes:
        offsets: where each run begins, in elements.
        length: elements of a run, those in gaps too.
        elements: of all runs.
    """

    def __init__(self, shape: Sequence[int], strides: Sequence[int]) -> None:
        self._shape = tuple(shape)
        order = sorted(range(len(shape)), key=lambda d: strides[d])
        moving = [d for d in order if shape[d] > 1 and strides[d]]
        self.length, wanted = 1, 1
        inner = 0
        for d in moving:
            length = self.length + (shape[d] - 1) * strides[d]
            if length > _GAPS * wanted * shape[d]:
                break
            self.length, wanted, inner = length, wanted * shape[d], inner + 1
        # Where an element lies in the runs, one behind the other; those of size 1 do not move.
        self._steps = [0] * len(shape)
        for d in moving[:inner]:
            self._steps[d] = strides[d]
        count = self.length
        offsets = np.zeros(1, np.int64)
        for d in moving[inner:]:
            self._steps[d] = count
            count *= shape[d]
            offsets = (np.arange(shape[d])[:, None] * strides[d] + offsets).ravel()
        self.offsets = offsets.tolist()
        self.elements = count

    def in_order(self, held: Elements) -> Elements:
        """The array's elements in row-major order, of all runs."""
        steps = [step * held.itemsize for step in self._steps]
        return np.ascontiguousarray(as_strided(held, self._shape, steps)).ravel()
