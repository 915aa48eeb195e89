"""What formats read: element types, and the places of tensors in files.

A format's module reads a file into :class:`Contents`: nested content without the tensors' values.
Its callers decide which tensors are the weights, and make a :class:`Checkpoint` of them, in which
each has an :class:`Extent`. ``image.py`` has what a module that writes lays out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, KeysView, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from phema_cli.formats.boxes import Box
from phema_cli.formats.stamps import Stamp

#: of a tensor; torch and numpy have no more.
MOST_DIMENSIONS = 64
#: ending of the name of a file that is not complete yet.
PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class DType:
    """An element type, by its name in safetensors.

    Attributes:
        name: safetensors name, e.g. ``BF16``.
        label: torch's name, e.g. ``bfloat16``.
        bits: bits of an element.
        kind: ``float`` is averaged, ``exact`` (integers, booleans) is copied, ``other`` is refused
            unless the user has it copied.
        mantissa_bits: stored bits of the mantissa, for ``float``.
    """

    name: str
    label: str
    bits: int
    kind: Literal["float", "exact", "other"]
    mantissa_bits: int = 0

    def size_bytes(self, elements: int) -> int:
        """Bytes of so many elements."""
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
    """A tensor in a file's content, whose place need not be known yet."""

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
        strides: steps in elements along each dimension; None if the elements lie one after the
            other in row-major order.
        pieces: the boxes that the tensor is split into, in any order, if it does not lie in one
            place; ``file``, ``offset`` and ``strides`` mean nothing then.
        packed: if the tensor is packed (``packing.py``), what it is a sum of; its residues lie at
            ``offset``, and ``dtype`` is that of the sum.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None
    pieces: tuple[Piece, ...] = ()
    packed: Packed | None = None

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def length(self) -> int:
        """Bytes of the tensor's values."""
        return self.dtype.size_bytes(self.elements)

    @property
    def stored_bytes(self) -> int:
        """Bytes that they take in the file."""
        if self.packed is None:
            return self.length
        held = self.packed.link.parts[-1].tensors[self.packed.name]
        return sum(extent.length for extent in held)


class Piece(NamedTuple):
    """A box of a tensor that is stored apart from the rest.

    Attributes:
        box: the part of the tensor that it is.
        extent: where its elements lie; its shape is the box's.
    """

    box: Box
    extent: Extent


class Entry(NamedTuple):
    """A tensor in a header.

    Attributes:
        dtype: its element type.
        shape: its shape.
        low: its first byte behind the header.
        file: of a checkpoint of several files, the number of the one that holds it.
    """

    dtype: DType
    shape: tuple[int, ...]
    low: int
    file: int = 0


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Entries:
    """What headers say of tensors, held once for all files that say the same.

    No byte belongs to two tensors.

    Attributes:
        named: by the tensors' names, in the order of the data.
        size_bytes: of all tensors.
        digest: the same for the same headers.
        shards: the entries of each file, if there are several; held, so that others share them.
    """

    named: Mapping[str, Entry]
    size_bytes: int
    digest: bytes = b""
    shards: tuple[Entries, ...] = ()


class Tensors(Mapping[str, Extent]):
    """The tensors of a checkpoint by name; an extent is made when it is asked for.

    Args:
        entries: what its headers say.
        places: each file, and where its data begin.
    """

    __slots__ = ("entries", "places")

    def __init__(self, entries: Entries, places: tuple[tuple[Path, int], ...]) -> None:
        self.entries = entries
        self.places = places

    def __getitem__(self, name: str) -> Extent:
        """Where a tensor lies."""
        dtype, shape, low, number = self.entries.named[name]
        file, start = self.places[number]
        return Extent(name, dtype, shape, file, start + low)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor."""
        return name in self.entries.named

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the data."""
        return iter(self.entries.named)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.entries.named)

    def keys(self) -> KeysView[str]:
        """The names, as a dict has them."""
        return self.entries.named.keys()


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The residues that a file holds.

    Attributes:
        path: the file.
        bits: of an integer.
        tensors: where the integers and the scales of each tensor lie.
    """

    path: Path
    bits: int
    tensors: Mapping[str, tuple[Extent, Extent]]


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """What the packed tensors of a file are sums of.

    Attributes:
        keyframe: where the whole tensors lie, by name.
        parts: the residues of the file and of those before it, oldest first.
        coefficients: (p,) of each part; 1 of the file's own, which is the last.
        checksum: of the file's tensors.
    """

    keyframe: Mapping[str, Extent]
    parts: tuple[Part, ...]
    coefficients: tuple[float, ...]
    checksum: str


class Packed(NamedTuple):
    """What a packed tensor is a sum of.

    Attributes:
        link: the files.
        name: the tensor's in them.
    """

    link: Link
    name: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a checkpoint, as its headers describe them; no tensor's values.

    Attributes:
        path: the file or directory that the user would name.
        format: a key of ``FORMATS``.
        files: all files that hold values, sorted.
        tensors: extents by tensor name, in the order in which the files list them.
        metadata: text to text.
        base_name: what its files are called, without shard number and ending.
        key: dotted name of the dict of weights, if the files hold more than that.
        unnamed: whether the tensors are a list, so that their names are numbers.
        stamps: of each local file, from before its header was read.
        home: what comes before the model's own names in the files, in the raw weights if there are.
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
    home: str = ""

    def __repr__(self) -> str:
        """``<Checkpoint ckpts/ema.pt: 10 tensors, torch>``."""
        return f"<Checkpoint {self.path}: {len(self.tensors)} tensors, {self.format}>"

    @property
    def ties(self) -> dict[str, str]:
        """The first name of each tensor that has several, by each further name."""
        if isinstance(self.tensors, Tensors):
            return {}  # no byte belongs to two
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
        if isinstance(self.tensors, Tensors):
            return self.tensors.entries.size_bytes
        return sum(e.stored_bytes for e in self.stored)

    @property
    def parameters(self) -> int:
        """Elements of all float tensors."""
        return sum(e.elements for e in self.stored if e.dtype.kind == "float")


#: looks up where tensors of the content lie; the names are the caller's.
Locate = Callable[[Mapping[str, StoredTensor]], Mapping[str, Extent]]


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a checkpoint's files hold, nested as it was saved, but no tensor's values.

    Attributes:
        path: the file or directory that the user would name.
        format: a key of ``FORMATS``.
        content: nested dicts and lists of :class:`StoredTensor`, plain values, and inert objects.
        locate: looks up where tensors of ``content`` lie; :func:`located` if they are extents.
        files: the files that hold values, sorted; if empty, those of the extents.
        metadata: text to text.
        base_name: what its files are called, without shard number and ending.
        stamps: of each local file; the registry adds them.
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
        """The checkpoint that some of the tensors make up.

        Args:
            tensors: tensors of ``content``, under the names that they get.
            key: dotted name of the dict, or prefix of names, that they come from.
            unnamed: whether their names are numbers.

        Raises:
            InputError, StorageError: as ``locate`` says.
        """
        extents = self.locate(tensors)
        places = (p for e in extents.values() for p in ([q.extent for q in e.pieces] or [e]))
        files = self.files or tuple(sorted({place.file for place in places}))
        return Checkpoint(
            self.path,
            self.format,
            files,
            extents,
            self.metadata,
            self.base_name,
            key,
            unnamed,
            {f: self.stamps[f] for f in files if f in self.stamps},
        )


def located(tensors: Mapping[str, StoredTensor]) -> Mapping[str, Extent]:
    """:data:`Locate` for formats whose content has extents already: only names may differ."""
    if isinstance(tensors, Tensors):
        return tensors
    extents = {name: e for name, e in tensors.items() if isinstance(e, Extent)}
    extents.update({n: replace(e, name=n) for n, e in extents.items() if e.name != n})
    return extents
