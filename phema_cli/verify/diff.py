"""Compares two checkpoints tensor by tensor, a chunk of each at a time."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from phema_cli.formats.base import Checkpoint, DType, Extent
from phema_cli.formats.packing import numbers_of
from phema_cli.formats.reader import NUMPY_TYPES, FileReader
from phema_cli.profiles import Array
from phema_cli.snapshots.reading import NothingNestedError, read_checkpoint

Bytes: TypeAlias = NDArray[np.uint8]

_CHUNK_ELEMENTS = 512 << 10
#: of complex numbers.
_PARTS = {"C64": "<f4", "C128": "<f8"}


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far a tensor of B is from the one of A.

    Attributes:
        name: the tensor's name.
        elements: its number of elements.
        max_abs: largest absolute difference of two elements.
        rms: root of the mean square difference.
        relative: rms over the root of the mean square of A; infinite where A is 0 and B is not,
            or where one of them is not finite and the other differs.
    """

    name: str
    elements: int
    max_abs: float
    rms: float
    relative: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Attributes:
        tensors: differences of the tensors that both have in one shape.
        relative: root of the sum of all square differences over that of A's squares, over the
            float tensors.
        only_a: names that only A has.
        only_b: names that only B has.
        reshaped: names whose shapes differ, or whose types can't be compared.
    """

    tensors: tuple[TensorDifference, ...]
    relative: float
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    reshaped: tuple[str, ...]

    @property
    def worst(self) -> float:
        """The largest relative difference of a tensor; infinite where names or shapes differ."""
        if self.only_a or self.only_b or self.reshaped:
            return math.inf
        return max((t.relative for t in self.tensors), default=0.0)


def read_pair(
    a: str | os.PathLike[str], b: str | os.PathLike[str], key: str | None
) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints that are to be compared.

    Args:
        a: the first.
        b: the second.
        key: a dict of weights; one of the two may be weights and nothing else.

    Errors as :func:`phema_cli.snapshots.reading.read_checkpoint`.
    """
    found: list[Checkpoint] = []
    plain = 0
    for path in (a, b):
        try:
            found.append(read_checkpoint(path, key))
        except NothingNestedError:
            plain += 1
            if plain > 1:
                raise
            found.append(read_checkpoint(path))
    return found[0], found[1]


def compare(
    a: Checkpoint, b: Checkpoint, progress: Callable[[int], None] | None = None
) -> Comparison:
    """Compare B with A; dtypes may differ, differences are taken in float64.

    Raises:
        InputError: a file is shorter than its header says.
        StorageError: the operating system failed to read.
    """
    common = [n for n in a.tensors if n in b.tensors]
    same = [n for n in common if _comparable(a.tensors[n], b.tensors[n])]
    differences: list[TensorDifference] = []
    total_square, total_a = 0.0, 0.0
    with FileReader() as reader:
        for name in same:
            largest, square, square_a = _tensor(reader, a.tensors[name], b.tensors[name])
            if a.tensors[name].dtype.kind == "float":
                total_square += square
                total_a += square_a
            n = a.tensors[name].elements
            rms = math.sqrt(square / n) if n else 0.0
            differences.append(TensorDifference(name, n, largest, rms, _ratio(square, square_a)))
            if progress is not None:
                progress(a.tensors[name].length + b.tensors[name].length)
    return Comparison(
        tuple(differences),
        _ratio(total_square, total_a),
        tuple(n for n in a.tensors if n not in b.tensors),
        tuple(n for n in b.tensors if n not in a.tensors),
        tuple(n for n in common if not _comparable(a.tensors[n], b.tensors[n])),
    )


def _comparable(a: Extent, b: Extent) -> bool:
    """Whether two tensors have one shape, and types whose difference means something."""
    numbers = "other" not in (a.dtype.kind, b.dtype.kind)
    return a.shape == b.shape and (numbers or a.dtype is b.dtype)


def _ratio(square: float, of: float) -> float:
    """``sqrt(square / of)``, 0 for 0/0 and infinite where the difference is not a number."""
    if square == 0:
        return 0.0
    return math.sqrt(square / of) if of > 0 and math.isfinite(square) else math.inf


def _tensor(reader: FileReader, a: Extent, b: Extent) -> tuple[float, float, float]:
    """Largest difference, sum of square differences, and sum of A's squares."""
    largest, square, square_a = 0.0, 0.0, 0.0
    exact = a.dtype is b.dtype and a.dtype.kind == "exact"
    for start in range(0, a.elements, _CHUNK_ELEMENTS):
        count = min(_CHUNK_ELEMENTS, a.elements - start)
        raw_x, raw_y = _raw(reader, a, start, count), _raw(reader, b, start, count)
        x, y = _values(raw_x, a.dtype), _values(raw_y, b.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            d = np.abs(y - x)
            found, found_a = float(d @ d), float(x @ x)
            if not math.isfinite(found + found_a):
                # What is not a number on both sides, or the same infinity, does not differ.
                d[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
                d[np.isnan(d)] = math.inf
                finite = x[np.isfinite(x)]
                found, found_a = float(d @ d), float(finite @ finite)
        if exact:
            # Neighbouring integers beyond 2^53 are one number in float64.
            other = (raw_x != raw_y).reshape(count, -1).any(axis=1)
            d[other & (d == 0)] = 1.0
            found = float(d @ d)
        largest = max(largest, float(d.max()))
        square += found
        square_a += found_a
    return largest, square, square_a


def _raw(reader: FileReader, extent: Extent, start: int, count: int) -> Bytes:
    """The bytes of a range of a tensor."""
    held = np.empty(extent.dtype.size_bytes(count), np.uint8)
    reader.read_elements(extent, start, held.data)
    return held


def _values(raw: Bytes, dtype: DType) -> Array:
    """Elements as float64; complex numbers as pairs, odd types by their bytes."""
    if dtype.name == "BF16":
        return numbers_of(raw.view("<u2")).astype(np.float64)
    if dtype.kind == "float" and dtype.name not in NUMPY_TYPES:
        import torch

        wide: Array = torch.from_numpy(raw).view(getattr(torch, dtype.label)).double().numpy()
        return wide
    part = _PARTS.get(dtype.name, "u1") if dtype.kind == "other" else NUMPY_TYPES[dtype.name]
    return raw.view(part).astype(np.float64)
