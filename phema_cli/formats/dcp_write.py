"""The writer of ``torch.distributed.checkpoint``: all bytes of a directory but the tensors' values.

Each tensor is one chunk: ranks that load it take their shards of it. torch is not asked for the
pickle of ``.metadata``: its bytes would change with torch, and outputs have to stay the same.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from phema_cli.formats.base import Checkpoint, DType
from phema_cli.formats.image import INDEX_NAME, PROVENANCE_KEY, FileImage, FolderImage, Specs
from phema_cli.formats.torch_zip import encode_tensor, pickled_dict, plain, torch_shape

#: the version of this layout that torch writes.
_VERSION = "1.0.0"
_METADATA = "torch.distributed.checkpoint.metadata"
_STORAGE = "torch.distributed.checkpoint.filesystem"
#: the classes that the pickle names, by their modules.
_CLASSES = {
    "Metadata": _METADATA,
    "TensorStorageMetadata": _METADATA,
    "TensorProperties": _METADATA,
    "ChunkStorageMetadata": _METADATA,
    "MetadataIndex": _METADATA,
    "_StorageInfo": _STORAGE,
    "Size": "torch",
}
#: fields that each tensor has.
_FIELDS = (
    *("properties", "size", "chunks", "offsets", "sizes"),
    *("fqn", "index", "offset", "relative_path", "length"),
)
#: opcodes of what the pickle has once, and takes from its memo where it is needed.
_SHARED = {
    **{name: f"c{module}\n{name}\n".encode() for name, module in _CLASSES.items()},
    **{name: plain(name) for name in _FIELDS},
    "layout": b"ctorch.serialization\n_get_layout\n" + plain(("torch.strided",)) + b"R",
    "memory format": f"c{_METADATA}\n_MEM_FORMAT_ENCODING\n".encode() + plain((0,)) + b"R",
}
#: their places there, behind those that plain values take.
_MEMO = {name: 64 + place for place, name in enumerate(_SHARED)}

#: keys of nested dicts, and places in lists.
Keys = tuple[str | int, ...]


class _Chunk(NamedTuple):
    """A tensor, and the part of a file that holds it."""

    dtype: DType
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


def lay_out(
    shards: Sequence[Specs],
    metadata: Mapping[str, str],
    ties: Mapping[str, str],
    carried: Checkpoint,
    paths: Mapping[str, Keys],
) -> FolderImage:
    """Lay out a directory; as :class:`phema_cli.formats.registry.Format` says.

    Args:
        shards: the tensors of each file.
        metadata: text to text; only the provenance is stored.
        ties: further names of tensors: their chunk is the same.
        carried: the checkpoint that the output continues, in whose order names come.
        paths: where ``carried`` nests its entries, by their names; empty if nothing is nested.

    Raises:
        InputError: torch has no type for a tensor.
    """
    files: dict[str, FileImage] = {}
    chunks: dict[str, _Chunk] = {}
    digits = len(str(len(shards) - 1))
    for number, specs in enumerate(shards):
        # Names sort as the shards do.
        name = f"__0_{number:0{digits}d}.distcp"
        files[name] = _file(name, specs, chunks)
    chunks |= {alias: chunks[name] for alias, name in ties.items()}
    order = [n for n in carried.tensors if n in chunks]
    order = list(dict.fromkeys([*order, *chunks]))
    names = _stored_names(order, carried.home if paths else "", paths)
    stored = {names[n]: chunks[n] for n in order}
    nested = {name: paths.get(name, (name,)) for name in stored}
    return FolderImage(
        files, (INDEX_NAME, _index(stored, nested, metadata.get(PROVENANCE_KEY, "")))
    )


def _stored_names(names: Sequence[str], home: str, paths: Mapping[str, Keys]) -> dict[str, str]:
    """What the tensors are called in the files, by the model's names.

    Args:
        names: the model's names.
        home: what the files put before all of them.
        paths: the names in the files. They may have a wrapper's prefix behind ``home``.
    """
    longest = max(names, key=len, default="")
    found = [
        n for n in paths if n.startswith(home) and f".{n[len(home) :]}".endswith(f".{longest}")
    ]
    prefixes = [n.removesuffix(longest) for n in found] or [home]
    # What is not in these files goes where the rest is.
    best = max(prefixes, key=lambda p: (sum(p + n in paths for n in names), -len(p)))
    return {name: best + name for name in names}


def _file(name: str, specs: Specs, chunks: dict[str, _Chunk]) -> FileImage:
    """A file of one chunk after the other, whose places are added to ``chunks``."""
    segments: list[tuple[int, bytearray]] = []
    offsets: dict[str, int] = {}
    checksums: dict[str, tuple[int, ...]] = {}
    at = 0
    for tensor, (dtype, shape) in specs.items():
        image = encode_tensor(tensor, dtype, shape)
        for start, data in image.segments:
            # What touches is one segment.
            if segments and segments[-1][0] + len(segments[-1][1]) == at + start:
                segments[-1][1].extend(data)
            else:
                segments.append((at + start, bytearray(data)))
        offsets[tensor] = at + image.offsets[tensor]
        for places in image.checksums.values():
            checksums[tensor] = tuple(at + place for place in places)
        chunks[tensor] = _Chunk(
            dtype, torch_shape(tensor, dtype, shape), name, at, image.size_bytes
        )
        at += image.size_bytes
    return FileImage(tuple((s, bytes(d)) for s, d in segments), offsets, at, checksums)


def _index(stored: Mapping[str, _Chunk], nested: Mapping[str, Keys], record: str) -> bytes:
    """The pickle of a ``Metadata`` object."""
    described = ((plain(name), _described(chunk)) for name, chunk in stored.items())
    places = ((_key(name, chunk), _place(chunk)) for name, chunk in stored.items())
    fields = {
        "state_dict_metadata": pickled_dict(described),
        "planner_data": pickled_dict((plain(name), plain(path)) for name, path in nested.items()),
        "storage_data": pickled_dict(places),
        "storage_meta": plain(None),
        "version": plain(_VERSION),
        PROVENANCE_KEY: plain(record),
    }
    shared = [data + bytes([*b"q", _MEMO[name], *b"0"]) for name, data in _SHARED.items()]
    return b"".join([b"\x80\x02", *shared, _object("Metadata", fields), b"."])


def _described(chunk: _Chunk) -> bytes:
    """The opcodes of what the metadata say of a tensor: its type, its shape, its only chunk."""
    origin = _size((0,) * len(chunk.shape))
    fields = (
        f"ctorch\n{chunk.dtype.label}\n".encode(),
        _shared("layout"),
        # Neither does it require a gradient, nor is it in pinned memory.
        plain(False),
        _shared("memory format"),
        plain(False),
    )
    properties = _shared("TensorProperties") + b")\x81(" + b"".join(fields) + b"tb"
    only = _object("ChunkStorageMetadata", {"offsets": origin, "sizes": _size(chunk.shape)})
    return _object(
        "TensorStorageMetadata",
        {"properties": properties, "size": _size(chunk.shape), "chunks": b"](" + only + b"e"},
    )


def _key(name: str, chunk: _Chunk) -> bytes:
    """The opcodes of the key under which a chunk's place is found."""
    origin = _size((0,) * len(chunk.shape))
    return _object("MetadataIndex", {"fqn": plain(name), "index": plain(0), "offset": origin})


def _place(chunk: _Chunk) -> bytes:
    """The opcodes of a chunk's place."""
    fields = {"relative_path": chunk.file, "offset": chunk.offset, "length": chunk.length}
    return _object("_StorageInfo", {name: plain(value) for name, value in fields.items()})


def _size(shape: tuple[int, ...]) -> bytes:
    """The opcodes of a shape."""
    return _shared("Size") + plain(shape) + b"\x85R"


def _shared(name: str) -> bytes:
    """The opcode that pushes what the pickle has once."""
    return bytes([*b"h", _MEMO[name]])


def _object(name: str, fields: Mapping[str, bytes]) -> bytes:
    """The opcodes of an object with these fields."""
    items = ((_shared(n) if n in _SHARED else plain(n), value) for n, value in fields.items())
    return _shared(name) + b")\x81" + pickled_dict(items) + b"b"
