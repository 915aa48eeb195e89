"""Quantized weights: integers, or narrow floats, with the scales beside them that they need.

Integers are copied from the newest snapshot, and scales would be averaged: a model of neither. The
names are those that libraries write: torchao, optimum-quanto, bitsandbytes, compressed-tensors,
GPTQ and AWQ, HQQ, the float8 checkpoints of DeepSeek and ComfyUI, the blocks of gpt-oss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from phema_cli.errors import InputError
from phema_cli.formats.base import Extent
from phema_cli.formats.reader import FileReader
from phema_cli.globs import matching
from phema_cli.snapshots.consistency import NARROW, UNQUANTIZED, Finding, Snapshot

#: what a scale's name has in the place of one of these endings of the values' name, or behind it.
_ENDINGS = ("_packed", "_blocks", "_quantized", "int_data", "qdata", "_data._data", "data")
_SCALES = (
    "_scale",
    "_scales",
    "_scale_inv",
    "scale",
    "scales",
    ".scale",
    ".scales",
    ":scale",
    ".absmax",
    "_absmax",
)
#: what a scale is called in the module of values that are called so.
_VALUES = ("weight", "qweight", "W_q", "codes")
_BESIDE = (
    "scale",
    "scales",
    "SCB",
    "weight_scale",
    "weight_scale_inv",
    "weight_scales",
    "scale_weight",
    "qscales",
    "codebooks",
)
_STATE = ".quant_state."
#: bytes of a matrix of integers that are compared.
_COMPARED = 1 << 16


def quantized(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> Iterator[Finding]:
    """The first quantized tensor of the first snapshot that has some.

    Args:
        snapshots: oldest first.
        copy: globs of tensor names that are copied, with their scales, if the user wants it so.
    """
    if (changing := _changing(snapshots, copy)) is not None:
        yield changing
        return
    for snapshot in snapshots:
        found = list(_found(snapshot.checkpoint.tensors.values(), copy))
        if found:
            extent, scale = found[0]
            beside = f" with a scale beside them ({scale})" if scale else ""
            more = f" (and {len(found) - 1} more tensors)" if len(found) > 1 else ""
            error = InputError(
                f"tensor {extent.name}: {extent.dtype.label} values{beside} are quantized "
                f"weights, which can't be averaged{more}",
                where=snapshot.name,
                remedy=UNQUANTIZED,
            )
            yield Finding("error", error)
            return


def _changing(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> Finding | None:
    """The error for a matrix of integers that training changes, whatever it is called.

    Buffers of that kind stay as they are; packed weights move with the weights.
    """
    whole = [s for s in snapshots if not s.partial]
    if not whole or whole[0] is whole[-1]:
        return None
    first, last = whole[0].checkpoint.tensors, whole[-1].checkpoint.tensors
    copied = matching(copy)
    for name, extent in last.items():
        if extent.dtype.kind != "exact" or not _may_be(extent) or copied(name):
            continue
        other = first.get(name)
        if other is None or (other.dtype, other.shape) != (extent.dtype, extent.shape):
            continue
        if not _same_beginning(other, extent):
            error = InputError(
                f"tensor {name}: {extent.dtype.label} values that change during training are "
                "quantized or packed weights, which can't be averaged",
                where=whole[-1].name,
                remedy=UNQUANTIZED,
            )
            return Finding("error", error)
    return None


def _same_beginning(one: Extent, other: Extent) -> bool:
    """Whether two tensors of one type begin with the same values."""
    count = min(one.elements, _COMPARED // (one.dtype.bits // 8))
    rows = [bytearray(count * one.dtype.bits // 8) for _ in range(2)]
    with FileReader() as reader:
        reader.read_many([(e, 0, memoryview(r)) for e, r in zip((one, other), rows, strict=True)])
    return rows[0] == rows[1]


def _found(extents: Collection[Extent], copy: Sequence[str]) -> Iterator[tuple[Extent, str | None]]:
    """Quantized tensors, each with the name of its scale where it has one."""
    suspects = [e for e in extents if _may_be(e)]
    if not suspects:
        return
    copied = matching(copy)
    names = {e.name for e in extents}
    states = {n.partition(_STATE)[0]: n for n in names if _STATE in n}
    for extent in suspects:
        beside = (n for n in _companions(extent.name) if n in names and n != extent.name)
        scale = next(beside, None) or states.get(extent.name)
        if scale is None and extent.dtype.kind != "other":
            continue
        # Both as they are make a model; values of one snapshot and the mean of scales don't.
        if not all(copied(n) for n in (extent.name, scale) if n is not None):
            yield extent, scale


def _may_be(extent: Extent) -> bool:
    """Whether a tensor's type and shape are those of quantized weights."""
    if extent.dtype.kind == "exact":
        return len(extent.shape) > 1 and extent.dtype.name != "BOOL"
    return extent.dtype.bits <= NARROW


def _companions(name: str) -> Iterator[str]:
    """What the scale of values of that name may be called."""
    module, dot, own = name.rpartition(".")
    for stem in (name, *(name.removesuffix(e) for e in _ENDINGS if name.endswith(e))):
        yield from (stem + ending for ending in _SCALES)
    if own in _VALUES:
        yield from (module + dot + other for other in _BESIDE)
