"""A restricted unpickler: builds tensors' descriptions and plain containers, and runs nothing else.

It imports neither torch nor anything that a pickle asks for: each allowed global is answered by a
stand-in of this module, every other one is refused by name.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError, UnsafePickleError
from phema_cli.formats.base import DTYPES, DType

_STORAGE_DTYPES = {
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
_TORCH_DTYPES = {d.label: d for d in DTYPES.values()}


@dataclass(frozen=True, slots=True)
class StorageType:
    """Stands for a ``torch.*Storage`` class."""

    dtype: DType


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage record: its key in the archive, element type and number of elements."""

    key: str
    dtype: DType
    elements: int


@dataclass(frozen=True, slots=True)
class TensorStub:
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """Stands for a value that is of no use here (a device, a hook); holds nothing."""

    def __init__(self, *_: object) -> None:
        pass


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> TensorStub:
    return TensorStub(storage, storage.dtype, int(offset), tuple(shape), tuple(strides))


def _rebuild_typed(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    _requires_grad: bool,
    _hooks: object,
    dtype: DType,
    *_: object,
) -> TensorStub:
    return TensorStub(storage, dtype, int(offset), tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: TensorStub, *_: object) -> TensorStub:
    return tensor


def _size(values: tuple[int, ...] = ()) -> tuple[int, ...]:
    return tuple(values)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): Opaque,
    ("torch.storage", "UntypedStorage"): StorageType(DTYPES["U8"]),
    **{("torch", name): StorageType(DTYPES[code]) for name, code in _STORAGE_DTYPES.items()},
    **{("torch", label): dtype for label, dtype in _TORCH_DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Answers every global from ``_ALLOWED``."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as the base class has it
        """Return the stand-in of an allowed global; refuse others before anything is built."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise UnsafePickleError(f"the pickle asks for {module}.{name}") from None

    def persistent_load(self, pid: object) -> Storage:
        """Describe the storage that a persistent id names."""
        match pid:
            case ("storage", StorageType(dtype=dtype), str(key), str(), int(elements)):
                return Storage(key, dtype, elements)
            case _:
                raise InputError(f"unknown persistent id {pid!r:.60}")


def load(data: bytes, path: Path) -> object:
    """Unpickle ``data`` to plain containers and :class:`TensorStub`.

    Raises:
        UnsafePickleError: it asks for a global that is not allowed; names it.
        InputError: it is not a pickle of that kind.
    """
    unpickle: Callable[[], object] = _Unpickler(BytesIO(data)).load
    try:
        return unpickle()
    except UnsafePickleError as error:
        raise UnsafePickleError(
            error.what,
            where=path,
            remedy="phema runs no code from files; re-save only the state dict with torch.save",
        ) from None
    except Exception as error:
        raise InputError(f"broken pickle ({error!s:.80})", where=path) from error
