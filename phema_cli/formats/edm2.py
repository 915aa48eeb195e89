"""EDM2's network pickles: read by extents without running the code in them, and written again.

Such a file is a plain pickle whose objects carry their own source code, and whose tensors are
streams of ``torch.save``'s old format, one a storage. The code is passed over, the values are
addressed where they lie.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from phema_cli.errors import InputError, StorageError, UnsafePickleError
from phema_cli.formats._metadata import REMEDY, check_text
from phema_cli.formats._nested import find_weights
from phema_cli.formats._pickle_machine import Inert, Kind, Machine, Span, dict_of, set_of
from phema_cli.formats._unpickle import ALLOWED, StandIn, Storage, TensorStub
from phema_cli.formats.base import Checkpoint, DType, Extent, FileImage, Specs
from phema_cli.formats.torch_zip import tensor_extent

NAME = "edm2"
SUFFIXES = (".pkl",)

#: what precedes the provenance, behind the end of the pickle.
_TRAILER = b"\n# phema "
_MAX_TRAILER_BYTES = 256 << 20
_COUNT = struct.Struct("<Q")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MODULES = "torch.nn.modules."
# A module may be there twice, so that a short pickle can hold more of them than can be counted.
_MOST_MODULES, _MOST_DEPTH = 100_000, 100
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


@dataclass(slots=True)
class _Reader:
    """What is known while a file is read: where each storage lies, by its key."""

    file: IO[bytes]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def find(self, module: str, name: str) -> object:
        """The stand-in of a global."""
        own = {
            ("dnnlib.util", "EasyDict"): Kind("EasyDict", dict_of),
            ("collections", "OrderedDict"): Kind("OrderedDict", dict_of),
            **{(place, "set"): Kind("set", set_of) for place in ("builtins", "__builtin__")},
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): StandIn(_persistent),
            ("torch.storage", "_load_from_bytes"): StandIn(self.storage),
            ("_codecs", "encode"): StandIn(_old_bytes),
            ("numpy", "dtype"): Kind("dtype"),
            ("numpy", "ndarray"): Kind("ndarray"),
            **{(place, "scalar"): Kind("scalar") for place in _NUMPY},
            **{(place, "_reconstruct"): Kind("array") for place in _NUMPY},
        }
        if (module, name) in own:
            return own[module, name]
        if module.startswith(_MODULES) and name.isidentifier():
            return Kind(f"{module}.{name}")
        return ALLOWED.get((module, name))

    def storage(self, span: object) -> Storage:
        """A storage that lies in ``span`` as a stream of torch's old format."""
        if not isinstance(span, Span):
            raise InputError("a storage that is no string of bytes")
        back = self.file.tell()
        self.file.seek(span.offset)
        machine = Machine(self.file, span.offset + span.length, _find_storage, _described)
        magic, protocol, system = machine.load(), machine.load(), machine.load()
        little = isinstance(system, dict) and system.get("little_endian") is True
        storage, keys = machine.load(), machine.load()
        known = (magic, protocol, little) == (_MAGIC, _PROTOCOL, True)
        if not known or not isinstance(storage, Storage):
            raise InputError("a storage in an unknown format")
        if keys != [storage.key]:
            raise InputError("a storage of several parts")
        count = int.from_bytes(self.file.read(_COUNT.size), "little")
        start, length = self.file.tell(), count * storage.dtype.bits // 8
        if start + length != span.offset + span.length:
            raise InputError(f"a storage of {length} bytes in {span.length}")
        self.file.seek(back)
        # Storages of several objects may have one key; their place is theirs alone.
        placed = storage._replace(key=str(start))
        self.places[placed.key] = (start, length)
        return placed


def _find_storage(module: str, name: str) -> object:
    """The stand-in of a kind of storage; a storage asks for nothing else."""
    return ALLOWED.get((module, name)) if module in {"torch", "torch.storage"} else None


def _described(pid: object) -> Storage:
    """The storage that a persistent id of the old format names."""
    match pid:
        case ("storage", StandIn(dtype=DType() as dtype), str(key), str(), int(), None):
            return Storage(key, dtype)
        case _:
            raise InputError("unknown persistent id")


def _persistent(meta: object) -> Inert:
    """An object that carries its source code: its state alone."""
    made = Inert("persistent")
    state = meta.get("state") if isinstance(meta, dict) else None
    made.state = state if isinstance(state, dict) else {}
    return made


def _old_bytes(*_: object) -> object:
    """Strings of bytes of old protocols are text: their values have no place."""
    raise InputError("tensors in a pickle of protocol 2 or older")


def read_index(path: Path, key: str | None = None) -> Checkpoint:
    """Reduce a network pickle to extents.

    Args:
        path: the file.
        key: which entry holds the network; ``ema`` by default.

    Raises:
        InputError: not such a pickle, or broken.
        UnsafePickleError: it asks for anything but tensors, modules and plain containers.
        StorageError: the operating system failed.
    """
    content, places, end = _load(path)
    if not isinstance(content, dict):
        raise InputError("not an EDM2 network pickle", where=path, remedy="leave it out: --exclude")
    try:
        nested = {k: _state_dict(v) if isinstance(v, Inert) else v for k, v in content.items()}
    except InputError as error:
        raise InputError(error.what, where=path, remedy=REMEDY) from error
    weights = find_weights(nested, key, path, TensorStub)
    check_text(weights.tensors, path)
    tensors = {
        name: tensor_extent(name, stub, path, *places[stub.storage.key])
        for name, stub in weights.tensors.items()
    }
    metadata = _read_trailer(path, end)
    return Checkpoint(
        path, NAME, (path,), tensors, metadata, path.stem, weights.key, weights.unnamed
    )


def _load(path: Path) -> tuple[object, Mapping[str, tuple[int, int]], int]:
    """The pickle's content, the places of its storages, and where it ends."""
    try:
        with path.open("rb") as file:
            reader = _Reader(file)
            content = Machine(file, path.stat().st_size, reader.find).load()
            return content, reader.places, file.tell()
    except UnsafePickleError as error:
        remedy = "phema runs no code from files; leave it out with --exclude"
        raise UnsafePickleError(error.what, where=path, remedy=remedy) from None
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    except Exception as error:
        # A broken pickle can raise anything at all.
        what = f"not a network pickle, or broken ({error!s:.80})"
        raise InputError(what, where=path, remedy=REMEDY) from error


def _state_dict(module: Inert) -> dict[str, object]:
    """The tensors of a module and those below it, named as ``state_dict`` names them."""
    return dict(_named(module, "", iter(range(_MOST_MODULES))))


def _named(module: Inert, prefix: str, budget: Iterator[int]) -> Iterator[tuple[str, object]]:
    """Names and tensors, in the order of the module."""
    if next(budget, None) is None or prefix.count(".") > _MOST_DEPTH:
        raise InputError("more modules than a network has")
    state = module.state
    passing = state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, tensor in _items(state.get(kind)):
            hidden = kind == "_buffers" and isinstance(passing, set) and name in passing
            if isinstance(tensor, TensorStub) and not hidden:
                yield f"{prefix}{name}", tensor
    for name, child in _items(state.get("_modules")):
        if isinstance(child, Inert):
            yield from _named(child, f"{prefix}{name}.", budget)


def _items(value: object) -> Iterator[tuple[object, object]]:
    """Entries of a dict, none of anything else."""
    if isinstance(value, dict):
        yield from value.items()


def _read_trailer(path: Path, end: int) -> dict[str, str]:
    """The provenance behind the end of the pickle, where there is one."""
    try:
        with path.open("rb") as file:
            file.seek(end)
            if file.read(len(_TRAILER)) != _TRAILER:
                return {}
            raw = file.read(_MAX_TRAILER_BYTES)
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    try:
        return {"phema": raw.decode().rstrip("\n")}
    except UnicodeDecodeError as error:
        raise InputError("its provenance is not text", where=path, remedy=REMEDY) from error


def encode(
    specs: Specs, metadata: Mapping[str, str], ties: Mapping[str, str], carried: Checkpoint
) -> FileImage:
    """The pickle that ``carried`` is, with other values; as ``formats.base.Writer`` says.

    The provenance comes behind the end of the pickle, where loaders don't look.

    Raises:
        InputError: ``carried`` is no such pickle, or its tensors are not those of ``specs``.
    """
    del ties
    if carried.format != NAME:
        raise InputError(
            f"an EDM2 pickle is made from EDM2 pickles, not from {carried.format}",
            where=carried.path,
            remedy="write .safetensors or .pt",
        )
    extents = {name: carried.tensors[name] for name in specs}
    for name, extent in extents.items():
        _check(extent, *specs[name])
    ordered = sorted(extents.values(), key=lambda e: e.offset)
    if any(a.offset + a.length > b.offset for a, b in pairwise(ordered)):
        raise InputError(
            "tensors share values, but not in every snapshot",
            where=carried.path,
            remedy="write .safetensors or .pt",
        )
    _, _, end = _load(carried.path)
    segments = list(_gaps(carried.path, ordered, end))
    tail = _TRAILER + metadata.get("phema", "").encode() + b"\n"
    return FileImage(
        (*segments, (end, tail)), {n: e.offset for n, e in extents.items()}, end + len(tail)
    )


def _check(extent: Extent, dtype: DType, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that has no place in the pickle."""
    kind = f"{dtype.label} {list(shape)}"
    if (extent.dtype, extent.shape) != (dtype, shape):
        raise InputError(
            f"tensor {extent.name}: the pickle holds {extent.dtype.label} "
            f"{list(extent.shape)}, not {kind}",
            where=extent.file,
            remedy="leave --dtype out, or write .safetensors or .pt",
        )
    if extent.strides is not None:
        raise InputError(
            f"tensor {extent.name}: is not stored in row-major order",
            where=extent.file,
            remedy="write .safetensors or .pt",
        )


def _gaps(path: Path, extents: list[Extent], end: int) -> Iterator[tuple[int, bytes]]:
    """All bytes of the pickle that are no values."""
    at = 0
    try:
        with path.open("rb") as file:
            for low, high in [*((e.offset, e.offset + e.length) for e in extents), (end, end)]:
                if low > at:
                    file.seek(at)
                    yield at, file.read(low - at)
                at = high
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
