"""EDM2's network pickles: read by extents without running the code in them, and written again.

Such a file is a plain pickle whose objects carry their own source code, and whose tensors are
streams of ``torch.save``'s old format, one a storage. The code is passed over, the values are
addressed where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from phema_cli.errors import InputError, PhemaError, StorageError, UnsafePickleError
from phema_cli.formats._metadata import REMEDY, check_text
from phema_cli.formats._modules import module_tensors
from phema_cli.formats._unpickle import ALLOWED, TENSORS, StandIn, Storage, TensorStub, stand_in
from phema_cli.formats.base import (
    Checkpoint,
    Contents,
    DType,
    Extent,
    FileImage,
    Specs,
    StoredTensor,
)
from phema_cli.formats.hidden import refuse_hidden
from phema_cli.formats.torch_zip import tensor_extent
from phema_cli.pickles import Inert, Kind, Machine, Span, dict_of

NAME = "edm2"

#: what precedes the provenance, behind the end of the pickle.
_TRAILER = b"\n# phema "
_MAX_TRAILER_BYTES = 256 << 20
#: of the number of a storage's elements.
_COUNT_BYTES = 8
#: bytes of opcodes, source code and names in a network's pickle.
_MOST_OPCODES = 64 << 20
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(slots=True)
class _Reader:
    """What is known while a file is read: where each storage lies, by its key."""

    file: IO[bytes]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    known: dict[Span, Storage] = field(default_factory=dict)

    def find(self, module: str, name: str) -> object:
        """The stand-in of a global."""
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return StandIn(self.storage)
        return stand_in(module, name, _FOUND)

    def storage(self, span: object) -> Storage:
        """A storage that lies in ``span`` as a stream of torch's old format."""
        if not isinstance(span, Span):
            raise InputError("a storage that is no string of bytes")
        # A pickle of seven bytes can ask for it again, as often as it likes.
        if span not in self.known:
            self.known[span] = self._read_storage(span)
        return self.known[span]

    def _read_storage(self, span: Span) -> Storage:
        """The storage, where its span is met for the first time."""
        end = span.offset + span.length
        machine = Machine(self.file, span.offset, end, _find_storage, _described)
        magic, protocol, system = machine.load(), machine.load(), machine.load()
        little = isinstance(system, dict) and system.get("little_endian") is True
        storage, keys = machine.load(), machine.load()
        known = (magic, protocol, little) == (_MAGIC, _PROTOCOL, True)
        if not known or not isinstance(storage, Storage):
            raise InputError("a storage in an unknown format")
        if keys != [storage.key]:
            raise InputError("a storage of several parts")
        count = machine.take_number(_COUNT_BYTES)
        start, length = machine.tell(), count * storage.dtype.bits // 8
        if start + length != end:
            raise InputError(f"a storage of {length} bytes in {span.length}")
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
    remedy = "load it and pickle it again with protocol=4"
    raise InputError("tensors in a pickle of protocol 2 or older", remedy=remedy)


#: stand-ins by global.
_FOUND: Mapping[tuple[str, str], object] = {
    **ALLOWED,
    ("dnnlib.util", "EasyDict"): Kind("EasyDict", dict_of),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): StandIn(_persistent),
    ("_codecs", "encode"): StandIn(_old_bytes),
}


def read(path: Path) -> Contents:
    """What a network pickle holds; networks are dicts of their tensors.

    Errors as :class:`phema_cli.formats.base.Format` says.
    """
    content, places, end = _load(path)
    if not isinstance(content, dict):
        raise InputError("not an EDM2 network pickle", where=path, remedy="leave it out: --exclude")
    refuse_hidden(content, path)
    try:
        named = {k: v for k, v in content.items() if isinstance(k, str)}
        # An inert object with items is a dict of a class of its own.
        nested = {
            k: module_tensors(v) if isinstance(v, Inert) and not v else v for k, v in named.items()
        }
    except InputError as error:
        raise InputError(error.what, where=path, remedy=REMEDY) from error
    metadata = _read_trailer(path, end)

    def locate(tensors: Mapping[str, StoredTensor]) -> dict[str, Extent]:
        check_text(tensors, path)
        return {
            name: tensor_extent(name, t, path, *places[t.storage.key])
            for name, t in tensors.items()
            if isinstance(t, TensorStub)
        }

    return Contents(path, NAME, nested, locate, (path,), metadata, path.stem)


def _load(path: Path) -> tuple[object, Mapping[str, tuple[int, int]], int]:
    """The pickle's content, the places of its storages, and where it ends."""
    try:
        with path.open("rb") as file:
            reader = _Reader(file)
            size = path.stat().st_size
            machine = Machine(file, 0, size, reader.find, most=_MOST_OPCODES, guarded=TENSORS)
            return machine.load(), reader.places, machine.tell()
    except UnsafePickleError as error:
        remedy = "phema runs no code from files; leave it out with --exclude"
        raise UnsafePickleError(error.what, where=path, remedy=remedy) from None
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    except Exception as error:
        # A broken pickle can raise anything at all.
        reason = error.what if isinstance(error, PhemaError) else str(error)
        advice = error.remedy if isinstance(error, PhemaError) else None
        what = f"not a network pickle, or broken ({reason:.80})"
        raise InputError(what, where=path, remedy=advice or REMEDY) from error


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
    if carried.format != NAME:
        raise InputError(
            f"an EDM2 pickle is made from EDM2 pickles, not from {carried.format}",
            where=carried.path,
            remedy="write .safetensors or .pt",
        )
    _check_names(specs.keys() | ties.keys(), carried)
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


def _check_names(names: Set[str], carried: Checkpoint) -> None:
    """Refuse to leave tensors of the pickle as they are, or to write what is not in it."""
    known = carried.tensors.keys()
    # A further name of a tensor has its values wherever these are written.
    for name in sorted((names - known) | (known - carried.ties.keys() - names)):
        raise InputError(
            f"tensor {name}: {'gets no values' if name in known else 'is not in the pickle'}",
            where=carried.path,
            remedy="write .safetensors or .pt",
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
