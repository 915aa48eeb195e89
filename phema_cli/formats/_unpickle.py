"""What torch's pickles may ask for: stand-ins that describe tensors, and plain containers.

Neither torch nor anything that a pickle asks for is imported: each allowed global is answered by a
stand-in, every other one is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats._metadata import REMEDY
from phema_cli.formats.base import DTYPES, MOST_DIMENSIONS, DType
from phema_cli.pickles.machine import Machine
from phema_cli.pickles.values import Kind, dict_of, set_of

STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "C128",
    # Storages without a dtype of their own: the tensor says it.
    "UntypedStorage": "U8",
}

#: characters of a path.
_MOST_PATH = 4096


class Storage(NamedTuple):
    """A storage record: its key in the archive, and its element type."""

    key: str
    dtype: DType


class TensorStub(NamedTuple):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class StandIn:
    """Answers a global. A pickle can pass it on and call it, but not change it."""

    __slots__ = ("call", "dtype")

    def __init__(
        self, call: Callable[..., object] | None = None, dtype: DType | None = None
    ) -> None:
        self.call = call
        self.dtype = dtype

    def __call__(self, *arguments: object) -> object:
        """What torch's function of that name gives, described."""
        if self.call is None:
            raise InputError("the pickle calls a type")
        return self.call(*arguments)


def _whole(numbers: object) -> tuple[int, ...]:
    """A tuple of whole numbers, else an InputError."""
    if not isinstance(numbers, tuple) or not all(type(n) is int for n in numbers):
        raise InputError("a tensor's shape or strides are not whole numbers")
    if len(numbers) > MOST_DIMENSIONS:
        raise InputError(f"a tensor of {len(numbers)} dimensions")
    return numbers


def _rebuild_tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object = False,
    _hooks: object = None,
    metadata: object = None,
) -> TensorStub:
    """The stub of ``torch._utils._rebuild_tensor`` and its second version."""
    if not isinstance(storage, Storage):
        raise InputError("a tensor has no storage")
    # Stored values of lazily conjugated or negated views are not the tensor's values.
    if metadata:
        raise InputError("a tensor is lazily conjugated or negated; resolve it before saving")
    (start,) = _whole((offset,))
    return TensorStub(storage, storage.dtype, start, _whole(shape), _whole(strides))


def _rebuild_typed(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorStub:
    """The stub of the third version, whose storage has no element type of its own."""
    if not isinstance(dtype, StandIn) or dtype.dtype is None:
        raise InputError("a tensor has no element type")
    stub = _rebuild_tensor(storage, offset, shape, strides, metadata=metadata)
    return stub._replace(dtype=dtype.dtype)


def _first(tensor: object, *_: object) -> object:
    """A parameter is its tensor."""
    return tensor


def _size(values: object = ()) -> tuple[object, ...]:
    """A ``torch.Size`` is a tuple."""
    if not isinstance(values, list | tuple):
        raise InputError("a size of what is no list")
    return tuple(values)


def _nothing(*_: object) -> None:
    """A device is of no use here."""


def _path(*parts: object) -> str:
    """A path is its text."""
    if not all(isinstance(p, str) for p in parts) or sum(map(len, map(str, parts))) > _MOST_PATH:
        raise InputError("a path that is none")
    return "/".join(map(str, parts))


ALLOWED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): Kind("OrderedDict", dict_of),
    ("builtins", "set"): Kind("set", set_of),
    ("__builtin__", "set"): Kind("set", set_of),
    ("torch._utils", "_rebuild_tensor"): StandIn(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): StandIn(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): StandIn(_rebuild_typed),
    ("torch._utils", "_rebuild_parameter"): StandIn(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): StandIn(_first),
    ("torch", "Size"): StandIn(_size),
    ("torch", "device"): StandIn(_nothing),
    ("argparse", "Namespace"): Kind("Namespace"),
    ("pathlib", "PosixPath"): StandIn(_path),
    ("pathlib", "PurePosixPath"): StandIn(_path),
    ("pathlib", "WindowsPath"): StandIn(_path),
    # Python 3.13 keeps paths in a module of their own.
    ("pathlib._local", "PosixPath"): StandIn(_path),
    ("pathlib._local", "WindowsPath"): StandIn(_path),
    ("torch.storage", "UntypedStorage"): StandIn(dtype=DTYPES["U8"]),
    **{("torch", name): StandIn(dtype=DTYPES[code]) for name, code in STORAGE_DTYPES.items()},
    **{("torch", d.label): StandIn(dtype=d) for d in DTYPES.values()},
}

_REMEDY = "phema runs no code from files; re-save only the state dict with torch.save"


def _described(pid: object) -> Storage:
    """The storage that a persistent id names."""
    match pid:
        case ("storage", StandIn(dtype=DType() as dtype), str(key), str(), int()):
            return Storage(key, dtype)
        case _:
            raise InputError("unknown persistent id")


def load(
    data: bytes,
    path: Path,
    allowed: Mapping[tuple[str, str], object] = ALLOWED,
    remedy: str = _REMEDY,
) -> object:
    """What a pickle holds: plain containers, :class:`TensorStub`, and inert objects.

    Args:
        data: the pickle.
        path: the file, for messages.
        allowed: stand-ins by module and name.
        remedy: what to do about a pickle that asks for others.

    Raises:
        UnsafePickleError: it asks for a global that is not allowed; names it.
        InputError: it is not a pickle of that kind.
    """

    def find(module: str, name: str) -> object:
        return allowed.get((module, name))

    try:
        return Machine(BytesIO(data), 0, len(data), find, _described).load()
    except UnsafePickleError as error:
        raise UnsafePickleError(error.what, where=path, remedy=remedy) from None
    except Exception as error:
        # A broken pickle can raise anything at all.
        raise InputError(f"broken pickle ({error!s:.80})", where=path, remedy=REMEDY) from error
