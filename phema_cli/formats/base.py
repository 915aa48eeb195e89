"""What a checkpoint is reduced to: extents of tensor data in files, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Kind = Literal["float", "exact", "other"]
#: of a tensor; torch and numpy have no more.
MOST_DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, by its name in safetensors.

    Attributes:
        name: safetensors name, e.g. ``BF16``.
        label: the name that users know, e.g. ``bfloat16``.
        bits: bits of an element.
        kind: ``float`` is averaged, ``exact`` (integers, booleans) copied, ``other`` refused
            unless the user has it copied.
        mantissa_bits: stored bits of the mantissa, for ``float``.
    """

    name: str
    label: str
    bits: int
    kind: Kind
    mantissa_bits: int = 0

    def size_bytes(self, elements: int) -> int:
        """Bytes that so many elements take."""
        return -(-elements * self.bits // 8)


DTYPES: Mapping[str, DType] = MappingProxyType(
    {
        d.name: d
        for d in (
            DType("F64", "float64", 64, "float", 52),
            DType("F32", "float32", 32, "float", 23),
            DType("F16", "float16", 16, "float", 10),
            DType("BF16", "bfloat16", 16, "float", 7),
            DType("F8_E4M3", "float8_e4m3fn", 8, "float", 3),
            DType("F8_E5M2", "float8_e5m2", 8, "float", 2),
            DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, "float", 3),
            DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, "float", 2),
            DType("F8_E8M0", "float8_e8m0fnu", 8, "other"),
            DType("F6_E3M2", "float6_e3m2", 6, "other"),
            DType("F6_E2M3", "float6_e2m3", 6, "other"),
            DType("F4", "float4_e2m1fn_x2", 4, "other"),
            DType("C64", "complex64", 64, "other"),
            DType("C128", "complex128", 128, "other"),
            DType("I64", "int64", 64, "exact"),
            DType("I32", "int32", 32, "exact"),
            DType("I16", "int16", 16, "exact"),
            DType("I8", "int8", 8, "exact"),
            DType("U64", "uint64", 64, "exact"),
            DType("U32", "uint32", 32, "exact"),
            DType("U16", "uint16", 16, "exact"),
            DType("U8", "uint8", 8, "exact"),
            DType("BOOL", "bool", 8, "exact"),
        )
    }
)


class StoredTensor:
    """A tensor in what a format found, before its place in the file is looked up.

    Attributes:
        dtype: its element type.
        shape: its shape.
    """

    __slots__ = ()

    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Extent(StoredTensor):
    """Where a tensor's elements lie.

    Attributes:
        name: the tensor's name.
        dtype: its element type.
        shape: its shape.
        file: the file that holds it.
        offset: byte in the file at which the first element lies.
        strides: steps in elements along each dimension, or None when the elements lie one after
            the other in row-major order.
        pieces: the boxes that the tensor is split into, in any order, where it does not lie in
            one place; ``file``, ``offset`` and ``strides`` say nothing then.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None
    pieces: tuple[Piece, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def length(self) -> int:
        """Bytes of the tensor's values."""
        return self.dtype.size_bytes(self.elements)


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor that is stored apart from the rest.

    Attributes:
        origin: index in the tensor of the box's first element.
        extent: where its elements lie; its shape is the box's.
    """

    origin: tuple[int, ...]
    extent: Extent

    def elements_before(self, flat: int, shape: tuple[int, ...]) -> int:
        """How many of its elements come before the tensor's element ``flat``, in row-major order.

        The box's own order is that of the tensor, so that they are its first ones.

        Args:
            flat: index in the flattened tensor, up to the number of its elements.
            shape: the tensor's shape.
        """
        count, block, inside = 0, math.prod(shape), self.extent.elements
        for size, origin, length in zip(shape, self.origin, self.extent.shape, strict=True):
            block //= size
            inside //= length
            digit, flat = divmod(flat, block)
            count += min(max(digit - origin, 0), length) * inside
            if not origin <= digit < origin + length:
                break
        return count

    def places(self, low: int, high: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Indices in the flattened tensor of the box's elements ``low`` to ``high``."""
        rest = np.arange(low, high)
        flat = np.zeros_like(rest)
        step = 1
        dimensions = zip(shape[::-1], self.origin[::-1], self.extent.shape[::-1], strict=True)
        for size, origin, length in dimensions:
            rest, digit = np.divmod(rest, length)
            flat += (digit + origin) * step
            step *= size
        return flat


#: inode, bytes, and the time of the last change in ns.
Stamp = tuple[int, int, int]
#: ending of what is not complete yet.
PARTIAL = ".partial"


def stamp(path: Path) -> Stamp:
    """What a file has that another one, or a later version, does not; raises ``OSError``."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as its headers describe it; no tensor data.

    Attributes:
        path: the file or directory that the user would name.
        format: a key of the format registry.
        files: all files that hold tensor data, sorted.
        tensors: extents by tensor name, in the order in which the files list them.
        metadata: string metadata of the checkpoint.
        base_name: what its files are called, without shard number and suffix.
        key: dotted name of the dict of weights, where the files hold more than that.
        unnamed: whether tensors are a list, so that their names are numbers.
        stamps: what told each local file from another when the headers were read.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    tensors: Mapping[str, Extent]
    metadata: Mapping[str, str] = field(default_factory=dict)
    base_name: str = "model"
    key: str | None = None
    unnamed: bool = False
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)

    @property
    def ties(self) -> dict[str, str]:
        """Names whose tensor is stored once, under another name: that other, first name by name."""
        first: dict[object, str] = {}
        ties: dict[str, str] = {}
        for name, e in self.tensors.items():
            place = (e.file, e.offset, e.dtype.name, e.shape, e.strides, e.pieces)
            kept = first.setdefault(place, name) if e.elements else name
            if kept != name:
                ties[name] = kept
        return ties

    @property
    def stored(self) -> list[Extent]:
        """Extents of all tensors, tied ones once."""
        ties = self.ties
        return [e for name, e in self.tensors.items() if name not in ties]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(e.length for e in self.stored)

    @property
    def parameters(self) -> int:
        """Elements of all float tensors."""
        return sum(e.elements for e in self.stored if e.dtype.kind == "float")


#: looks up where tensors lie, by any names.
Locate = Callable[[Mapping[str, StoredTensor]], dict[str, Extent]]


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a checkpoint's files hold, nested as it was saved, but the tensors' values.

    Attributes:
        path: the file or directory that the user would name.
        format: a key of the format registry.
        content: nested dicts and lists of :class:`StoredTensor`, plain values, and inert objects.
        locate: looks up where tensors of ``content`` lie.
        files: the files that hold tensor data, sorted; where empty, those of the extents.
        metadata: string metadata of the checkpoint.
        base_name: what its files are called, without shard number and suffix.
        stamps: what told each local file from another when the headers were read.
    """

    path: Path
    format: str
    content: object
    locate: Locate
    files: tuple[Path, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    base_name: str = "model"
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)

    def checkpoint(
        self, tensors: Mapping[str, StoredTensor], key: str | None = None, *, unnamed: bool = False
    ) -> Checkpoint:
        """The checkpoint that some of the tensors are, under the names given.

        Args:
            tensors: tensors of ``content``.
            key: dotted name of the dict, or prefix of names, that they were taken from.
            unnamed: whether their names are numbers.

        Raises:
            InputError, StorageError: as ``locate`` says.
        """
        extents = self.locate(tensors)
        places = (e for extent in extents.values() for e in _places(extent))
        files = self.files or tuple(sorted({e.file for e in places}))
        metadata, stamps = self.metadata, {f: s for f, s in self.stamps.items() if f in files}
        return Checkpoint(
            self.path,
            self.format,
            files,
            extents,
            metadata,
            self.base_name,
            key,
            unnamed,
            stamps,
        )


def located(tensors: Mapping[str, StoredTensor]) -> dict[str, Extent]:
    """:data:`Locate` for formats whose headers say where tensors lie: only names may differ."""
    extents = {name: e for name, e in tensors.items() if isinstance(e, Extent)}
    return {name: e if e.name == name else replace(e, name=name) for name, e in extents.items()}


def _places(extent: Extent) -> list[Extent]:
    """Where the parts of a tensor lie."""
    return [piece.extent for piece in extent.pieces] or [extent]


#: element type and shape of tensors to be written, by name.
Specs = Mapping[str, tuple[DType, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class FileImage:
    """A file to be written: all of its bytes but the tensors' values.

    Attributes:
        segments: bytes by the offset at which they lie, ascending.
        offsets: where each tensor's values go, in row-major order and one after the other.
        size_bytes: bytes of the whole file.
        checksums: for tensors whose CRC-32 the file holds, the offsets at which it goes (32 bits,
            little-endian).
    """

    segments: tuple[tuple[int, bytes], ...]
    offsets: Mapping[str, int]
    size_bytes: int
    checksums: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Format(Protocol):
    """What a format's module provides to be read."""

    NAME: str

    def read(self, path: Path) -> Contents:
        """Find what the checkpoint at ``path`` holds; no tensor's values are read.

        Args:
            path: a file with an ending of the format's.

        Raises:
            InputError: the file is not what its name says, or is broken.
            UnsafePickleError: reading it would run code.
            StorageError: the operating system failed.
        """
        ...


class Writer(Protocol):
    """What a format's module provides in addition where phema writes the format."""

    def encode(
        self,
        specs: Specs,
        metadata: Mapping[str, str],
        ties: Mapping[str, str],
        carried: Checkpoint,
    ) -> FileImage:
        """Lay out a file.

        Args:
            specs: the tensors to be written, in the order in which they should lie.
            metadata: text to text, the provenance among it.
            ties: further names of tensors in ``specs``, by that further name.
            carried: the checkpoint that the output continues: what a format holds beside tensors
                is taken from it.

        Raises:
            InputError: the format can't hold that.
        """
        ...
