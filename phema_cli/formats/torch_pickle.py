"""Pickles of torch: tensors described, and where their values lie.

Neither torch nor anything that a pickle names is imported: stand-ins describe what torch's own
functions would make.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, cast

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats.base import DTYPES, MOST_DIMENSIONS, DType, Extent, StoredTensor
from phema_cli.formats.checks import broken
from phema_cli.pickles import Inert, StandIn, stand_ins
from phema_cli.pickles.opcodes import Unpickler

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
_BYTE_BITS = 8
#: bytes that a tensor may have if it repeats the elements of a smaller record.
_MOST_REPEATED = 1 << 30


#: where a storage's bytes begin in the file, and how many they are.
Record = tuple[int, int]


class Storage(NamedTuple):
    """A storage: its key, its element type, and, in formats without archives, its record."""

    key: str
    dtype: DType
    record: Record = (0, 0)


@dataclass(frozen=True, slots=True)
class TensorStub(StoredTensor):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def extent(self, name: str, path: Path, record: Record) -> Extent:
        """Where the values lie in a file, of which ``record`` is the storage.

        Raises:
            InputError: they don't lie inside the record.
        """
        start, length = record
        shape, strides = self.shape, self.strides
        if self.dtype.bits < _BYTE_BITS:
            return self._packed_extent(name, path, record)
        valid = len(shape) == len(strides) and min(*shape, *strides, self.offset, 0) >= 0
        itemsize = self.dtype.bits // 8
        empty = 0 in shape
        last = 0 if empty else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=False))
        if not valid or (self.offset + last) * itemsize > length:
            raise broken(f"tensor {name}: lies outside its record of {length} bytes", path)
        if math.prod(shape) * itemsize > max(length, _MOST_REPEATED):
            raise broken(
                f"tensor {name}: is larger than 1 GiB, from a record of {length} bytes", path
            )
        offset = start + self.offset * itemsize
        contiguous = empty or _row_major(shape, strides)
        return Extent(name, self.dtype, shape, path, offset, None if contiguous else strides)

    def _packed_extent(self, name: str, path: Path, record: Record) -> Extent:
        """The extent of a type that torch packs into bytes: it counts bytes, phema elements."""
        start, length = record
        shape = self.shape
        end = self.offset + math.prod(shape)
        in_record = bool(shape) and min(*shape, self.offset) >= 0 and end <= length
        if not in_record or not _row_major(shape, self.strides):
            what = f"tensor {name}: its {self.dtype.label} values are not in row-major order"
            raise InputError(what, where=path, remedy="call contiguous() on it before saving")
        unpacked = (*shape[:-1], shape[-1] * (_BYTE_BITS // self.dtype.bits))
        return Extent(name, self.dtype, unpacked, path, start + self.offset)


def _row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements lie one after the other in row-major order."""
    step = 1
    if len(shape) != len(strides):
        return False
    for size, stride in zip(shape[::-1], strides[::-1], strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _integers(numbers: object) -> tuple[int, ...]:
    """A tuple of integers; raises ``InputError`` for anything else."""
    if not isinstance(numbers, tuple) or not all(type(n) is int for n in numbers):
        raise InputError("a tensor's shape or strides are not integers")
    if len(numbers) > MOST_DIMENSIONS:
        raise InputError(f"a tensor of {len(numbers)} dimensions has too many")
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
    if not isinstance(storage, Storage):
        raise InputError("a tensor has no storage")
    # A view that is conjugated or negated lazily has other values than its storage.
    if metadata:
        raise InputError("a tensor is lazily conjugated or negated; resolve it before saving")
    (start,) = _integers((offset,))
    return TensorStub(storage, storage.dtype, start, _integers(shape), _integers(strides))


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorStub:
    """A tensor with an element type, whose storage has none."""
    if not isinstance(dtype, DType):
        raise InputError("a tensor has no element type")
    stub = _rebuild_tensor(storage, offset, shape, strides, metadata=metadata)
    return replace(stub, dtype=dtype)


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


def _rebuild_from_type(
    rebuild: object, kind: object, arguments: object, _state: object = None
) -> object:
    """A tensor that has attributes, or is of a subclass.

    torch's own classes leave the tensor's values as they are; what another class makes of them is
    unknown.
    """
    name = kind.name if isinstance(kind, StandIn) else "a call"
    is_torchs = isinstance(rebuild, StandIn) and rebuild.make in _REBUILD.values()
    if not is_torchs or name not in _TENSOR_CLASSES:
        return _hidden(name, rebuild, kind, arguments)
    if not isinstance(arguments, tuple):
        raise InputError("a tensor's arguments are not a tuple")
    return cast("StandIn", rebuild)(*arguments)


def _hidden(name: str, *arguments: object) -> Inert:
    """A tensor whose values are more than those of a storage."""
    return Inert(name, arguments, hides=True)


def _size(values: object = ()) -> tuple[object, ...]:
    if not isinstance(values, list | tuple):
        raise InputError("a size that is not a list")
    return tuple(values)


def _ignored(*_: object) -> None:
    """Answers what says nothing about tensors' values: devices, layouts, memory formats."""


#: classes of tensors whose values are those of the tensor that they are made from.
_TENSOR_CLASSES = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
#: an object of an unknown class that is made from these hides tensors.
TENSORS = (Storage, TensorStub)
_REBUILD: Mapping[str, Callable[..., object]] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
}

#: what answers torch's globals, by module and name: functions, and element types.
Globals = Mapping[tuple[str, str], StandIn | DType]
GLOBALS: Globals = {
    **stand_ins(("torch._utils",), _REBUILD),
    **stand_ins(("torch._tensor",), {"_rebuild_from_type_v2": _rebuild_from_type}),
    **stand_ins(("torch",), {"Size": _size, "device": _ignored}),
    **stand_ins(("torch.serialization",), {"_get_layout": _ignored}),
    ("torch.storage", "UntypedStorage"): DTYPES["U8"],
    **{("torch", name): DTYPES[code] for name, code in STORAGE_DTYPES.items()},
    **{("torch", d.label): d for d in DTYPES.values()},
}


def torch_global(module: str, name: str, table: Globals = GLOBALS) -> StandIn | DType | None:
    """What answers a global of torch, from a format's table; None for globals of others."""
    answer = table.get((module, name))
    if answer is None and module == "torch._utils" and name.startswith("_rebuild_"):
        # Sparse, quantized, on no device: tensors that are more than the values of a storage.
        return StandIn(name, partial(_hidden, f"{module}.{name}"))
    return answer


def _persistent(pid: object) -> Storage:
    """The storage that a persistent id names."""
    match pid:
        case ("storage", DType() as dtype, str(key), str(), int()):
            return Storage(key, dtype)
        case _:
            raise InputError("unknown persistent id")


def load(
    data: bytes,
    path: Path,
    remedy: str = "phema runs no code from files; re-save only the state dict with torch.save",
) -> object:
    """What a pickle holds: plain containers, :class:`TensorStub`, and inert objects.

    Args:
        data: the pickle.
        path: the file, for messages.
        remedy: what to do about a pickle that asks for what could do harm.

    Raises:
        UnsafePickleError: it asks for a global that could do harm; names it.
        InputError: it is broken.
    """
    try:
        machine = Unpickler(BytesIO(data), 0, len(data), torch_global, _persistent, guarded=TENSORS)
        return machine.load()
    except UnsafePickleError as error:
        raise UnsafePickleError(error.what, where=path, remedy=remedy) from None
    except Exception as error:
        # A broken pickle can raise anything at all.
        raise broken(f"broken pickle ({error!s:.80})", path) from error
