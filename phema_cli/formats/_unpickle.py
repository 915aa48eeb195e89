"""Torch's pickles: stand-ins that describe tensors, beside what ``phema_cli.pickles`` answers.

Neither torch nor anything that a pickle asks for is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats._metadata import REMEDY
from phema_cli.formats.base import DTYPES, MOST_DIMENSIONS, DType, StoredTensor
from phema_cli.pickles import Inert, Kind, Machine

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


class Storage(NamedTuple):
    """A storage record: its key in the archive, and its element type."""

    key: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class TensorStub(StoredTensor):
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
    return replace(stub, dtype=dtype.dtype)


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


def _rebuild_typed_object(
    rebuild: object, kind: object, arguments: object, _state: object = None
) -> object:
    """A tensor of a class of its own, or one that has attributes.

    Of torch's classes the values are those of the tensor; what those of others make of it is not
    known.
    """
    if isinstance(rebuild, StandIn) and isinstance(kind, Kind) and kind.name in _TENSORS:
        if not isinstance(arguments, tuple):
            raise InputError("a tensor made of what are no arguments")
        return rebuild(*arguments)
    return _hidden(kind.name if isinstance(kind, Kind) else "a call", rebuild, kind, arguments)


def _hidden(name: str, *arguments: object) -> Inert:
    """A tensor whose values are not known."""
    made = Inert(name, arguments)
    made.hides = True
    return made


_REBUILD = "torch._utils", "_rebuild_"
#: classes of tensors whose values are those of the tensor that they are made from.
_TENSORS = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
#: what hides tensors if it is made from them.
TENSORS = (Storage, TensorStub)

ALLOWED: Mapping[tuple[str, str], object] = {
    ("torch._utils", "_rebuild_tensor"): StandIn(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): StandIn(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): StandIn(_rebuild_typed),
    ("torch._utils", "_rebuild_parameter"): StandIn(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): StandIn(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): StandIn(_rebuild_typed_object),
    ("torch", "Size"): StandIn(_size),
    ("torch", "device"): StandIn(_nothing),
    ("torch.serialization", "_get_layout"): StandIn(_nothing),
    ("torch.storage", "UntypedStorage"): StandIn(dtype=DTYPES["U8"]),
    **{("torch", name): StandIn(dtype=DTYPES[code]) for name, code in STORAGE_DTYPES.items()},
    **{("torch", d.label): StandIn(dtype=d) for d in DTYPES.values()},
}


def stand_in(module: str, name: str, allowed: Mapping[tuple[str, str], object] = ALLOWED) -> object:
    """The stand-in of a global of torch's, None where it has none."""
    known = allowed.get((module, name))
    if known is None and (module, name[: len(_REBUILD[1])]) == _REBUILD:
        # Sparse, quantized, on no device: tensors that are more than the values of a storage.
        return Kind(name, partial(_hidden, f"{module}.{name}"))
    return known


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
        allowed: the format's stand-ins by module and name.
        remedy: what to do about a pickle that asks for what could do harm.

    Raises:
        UnsafePickleError: it asks for a global that could do harm; names it.
        InputError: it is not a pickle of that kind.
    """

    def find(module: str, name: str) -> object:
        return stand_in(module, name, allowed)

    try:
        machine = Machine(BytesIO(data), 0, len(data), find, _described, guarded=TENSORS)
        return machine.load()
    except UnsafePickleError as error:
        raise UnsafePickleError(error.what, where=path, remedy=remedy) from None
    except Exception as error:
        # A broken pickle can raise anything at all.
        raise InputError(f"broken pickle ({error!s:.80})", where=path, remedy=REMEDY) from error
