"""EDM2's network pickles: read without running the code in them, and written again.

Such a file is a plain pickle whose objects carry their own source code, and whose tensors are
streams of ``torch.save``'s legacy format, one for each storage. The code is skipped, the values are
addressed where they lie.
"""

from collections.abc import Iterator, Mapping, Set
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import IO

from phema_cli.errors import InputError, PhemaError, StorageError, UnsafePickleError, reading
from phema_cli.formats.base import Checkpoint, Contents, DType, Extent, StoredTensor
from phema_cli.formats.checks import REMEDY, broken, check_text
from phema_cli.formats.image import FileImage, Specs
from phema_cli.formats.objects import module_tensors, refuse_hidden
from phema_cli.formats.torch_pickle import (
    GLOBALS,
    TENSORS,
    Globals,
    Storage,
    TensorStub,
    torch_global,
)
from phema_cli.pickles import Inert, Span, StandIn, stand_ins
from phema_cli.pickles.globals import dict_of
from phema_cli.pickles.opcodes import Unpickler

NAME = "edm2"

#: what precedes the provenance, after the end of the pickle.
_TRAILER = b"\n# phema "
_MAX_TRAILER_BYTES = 256 << 20
#: bytes of the number that says how many elements a storage has.
_COUNT_BYTES = 8
#: bytes of opcodes, source code and names in a network's pickle.
_MOST_OPCODES = 64 << 20
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_OTHER_FORMATS = "write .safetensors or .pt"


def _read_storage(file: IO[bytes], span: Span) -> Storage:
    """The storage whose stream of torch's legacy format lies in ``span``."""
    end = span.offset + span.length
    machine = Unpickler(file, span.offset, end, _storage_global, _persistent)
    magic, protocol, system = machine.load(), machine.load(), machine.load()
    little = isinstance(system, dict) and system.get("little_endian") is True
    storage, keys = machine.load(), machine.load()
    header = (magic, protocol, little)
    if header != (_MAGIC, _PROTOCOL, True) or not isinstance(storage, Storage):
        raise InputError("a storage in an unknown format")
    if keys != [storage.key]:
        raise InputError("a storage of several parts")
    count = machine.take_number(_COUNT_BYTES)
    start, length = machine.tell(), count * storage.dtype.bits // 8
    if start + length != end:
        raise InputError(f"a storage of {length} bytes in a string of {span.length}")
    return storage._replace(record=(start, length))


def _storage_global(module: str, name: str) -> object:
    """What answers a global of a storage, which names its own type alone."""
    return GLOBALS.get((module, name)) if module in {"torch", "torch.storage"} else None


def _persistent(pid: object) -> Storage:
    """The storage that a persistent id of the legacy format names."""
    match pid:
        case ("storage", DType() as dtype, str(key), str(), int(), None):
            return Storage(key, dtype)
        case _:
            raise InputError("unknown persistent id")


def _reconstruct(meta: object) -> Inert:
    """An object that carries its source code: only its state."""
    made = Inert("persistent")
    state = meta.get("state") if isinstance(meta, dict) else None
    made.state = state if isinstance(state, dict) else {}
    return made


def _legacy_bytes(*_: object) -> object:
    """Refuse strings of bytes of old protocols: they are text, and their values have no place."""
    remedy = "load it and pickle it again with protocol=4"
    raise InputError("tensors in a pickle of protocol 2 or older", remedy=remedy)


_GLOBALS: Globals = {
    **GLOBALS,
    ("dnnlib.util", "EasyDict"): StandIn("EasyDict", dict_of),
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): StandIn("persistent", _reconstruct),
    ("_codecs", "encode"): StandIn("_codecs.encode", _legacy_bytes),
}


def _globals(file: IO[bytes]) -> Globals:
    """What answers the globals of the pickle in a file, where its storages are found."""
    # A pickle can ask for the same one again and again, in seven bytes.
    read_once = cache(partial(_read_storage, file))

    def storage(span: object) -> Storage:
        if not isinstance(span, Span):
            raise InputError("a storage that is not a string of bytes")
        return read_once(span)

    return {**_GLOBALS, **stand_ins(("torch.storage",), {"_load_from_bytes": storage})}


def read(path: Path) -> Contents:
    """What a network pickle holds; networks become dicts of their tensors.

    Errors as :meth:`phema_cli.formats.registry.Format.read` says.
    """
    content, end = _load(path)
    if not isinstance(content, dict):
        raise broken("not an EDM2 network pickle", path, "leave it out with --exclude")
    refuse_hidden(content, path)
    try:
        # An inert object with items is a dict of its own class.
        nested = {
            k: module_tensors(v) if isinstance(v, Inert) and not v else v
            for k, v in content.items()
            if isinstance(k, str)
        }
    except InputError as error:
        raise broken(error.what, path) from error
    metadata = _read_trailer(path, end)

    def locate(tensors: Mapping[str, StoredTensor]) -> dict[str, Extent]:
        check_text(tensors, path)
        return {
            name: stub.extent(name, path, stub.storage.record)
            for name, stub in tensors.items()
            if isinstance(stub, TensorStub)
        }

    return Contents(path, NAME, nested, locate, (path,), metadata, path.stem)


def _load(path: Path) -> tuple[object, int]:
    """The pickle's content, and where it ends."""
    try:
        with path.open("rb") as file:
            size, find = path.stat().st_size, partial(torch_global, table=_globals(file))
            machine = Unpickler(file, 0, size, find, most=_MOST_OPCODES, guarded=TENSORS)
            return machine.load(), machine.tell()
    except UnsafePickleError as error:
        remedy = "phema runs no code from files; leave it out with --exclude"
        raise UnsafePickleError(error.what, where=path, remedy=remedy) from None
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    except Exception as error:
        # A broken pickle can raise anything at all.
        reason = error.what if isinstance(error, PhemaError) else str(error)
        remedy = (error.remedy if isinstance(error, PhemaError) else None) or REMEDY
        what = f"not a network pickle, or broken ({reason:.80})"
        raise InputError(what, where=path, remedy=remedy) from error


def _read_trailer(path: Path, end: int) -> dict[str, str]:
    """The provenance after the end of the pickle, if there is one."""
    with reading(path), path.open("rb") as file:
        file.seek(end)
        if file.read(len(_TRAILER)) != _TRAILER:
            return {}
        raw = file.read(_MAX_TRAILER_BYTES)
    try:
        return {"phema": raw.decode().rstrip("\n")}
    except UnicodeDecodeError as error:
        raise broken("its provenance is not text", path) from error


def encode(
    specs: Specs, metadata: Mapping[str, str], ties: Mapping[str, str], carried: Checkpoint
) -> FileImage:
    """Lay out the pickle ``carried`` with other values; as ``formats.registry.Format`` says.

    The provenance comes after the end of the pickle, where loaders don't look.

    Raises:
        InputError: ``carried`` is no such pickle, or its tensors are not those of ``specs``.
    """
    if carried.format != NAME:
        raise InputError(
            f"an EDM2 pickle is made from EDM2 pickles, not from {carried.format}",
            where=carried.path,
            remedy=_OTHER_FORMATS,
        )
    _check_names(specs.keys() | ties.keys(), carried)
    extents = {name: carried.tensors[name] for name in specs}
    for name, extent in extents.items():
        _check_place(extent, *specs[name])
    ordered = sorted(extents.values(), key=lambda e: e.offset)
    if any(a.offset + a.length > b.offset for a, b in pairwise(ordered)):
        raise InputError(
            "tensors share values, but not in every snapshot",
            where=carried.path,
            remedy=_OTHER_FORMATS,
        )
    _, end = _load(carried.path)
    segments = list(_gaps(carried.path, ordered, end))
    tail = _TRAILER + metadata.get("phema", "").encode() + b"\n"
    return FileImage(
        (*segments, (end, tail)), {n: e.offset for n, e in extents.items()}, end + len(tail)
    )


def _check_names(names: Set[str], carried: Checkpoint) -> None:
    """Refuse to leave a tensor of the pickle as it is, or to write one that is not in it."""
    stored = carried.tensors.keys()
    # A further name of a tensor gets its values with the first one.
    for name in sorted((names - stored) | (stored - carried.ties.keys() - names)):
        raise InputError(
            f"tensor {name}: {'gets no values' if name in stored else 'is not in the pickle'}",
            where=carried.path,
            remedy=_OTHER_FORMATS,
        )


def _check_place(extent: Extent, dtype: DType, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that has no place in the pickle."""
    kind = f"{dtype.label} {list(shape)}"
    if (extent.dtype, extent.shape) != (dtype, shape):
        raise InputError(
            f"tensor {extent.name}: the pickle holds {extent.dtype.label} "
            f"{list(extent.shape)}, not {kind}",
            where=extent.file,
            remedy=f"leave --dtype out, or {_OTHER_FORMATS}",
        )
    if extent.strides is not None:
        raise InputError(
            f"tensor {extent.name}: is not stored in row-major order",
            where=extent.file,
            remedy=_OTHER_FORMATS,
        )


def _gaps(path: Path, extents: list[Extent], end: int) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes of all that lies between the values."""
    at = 0
    with reading(path), path.open("rb") as file:
        for low, high in [*((e.offset, e.offset + e.length) for e in extents), (end, end)]:
            if low > at:
                file.seek(at)
                yield at, file.read(low - at)
            at = high
