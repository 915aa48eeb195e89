"""What happens to each tensor: averaged or copied, from what types to which, tied to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phema_cli.errors import InputError
from phema_cli.formats.base import DTYPES, DType, Extent
from phema_cli.globs import matching
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.base import reference
from phema_cli.snapshots.consistency import not_averaged
from phema_cli.snapshots.tensors import averaged
from phema_cli.synthesis.provenance import RESERVED
from phema_cli.synthesis.tiling import Kind


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What happens to a tensor.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: element type in the sources, or one that holds all of theirs.
        out_dtype: element type in the outputs.
        average: averaged if true, else copied from each target's base source.
        stored: element types in the sources that weigh, newest first, where they differ.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    out_dtype: DType
    average: bool
    stored: tuple[DType, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> Kind:
        """What tensors that are averaged alike have in common."""
        return Kind(self.dtype, self.out_dtype, self.stored)

    def read_bytes(self, count: int, sources: int) -> int:
        """Bytes of so many elements in all of the sources that weigh."""
        if self.stored:
            return sum(dtype.size_bytes(count) for dtype in self.stored)
        return self.dtype.size_bytes(count) * sources


def plan_tensors(
    snapshots: Sequence[Snapshot],
    dtype: DType | None,
    copy: Sequence[str],
    *,
    base: int | None = None,
    used: Sequence[int] = (),
) -> tuple[tuple[TensorPlan, ...], dict[str, str]]:
    """Each tensor's treatment, wide types first so that all data are aligned, then as they lie.

    Args:
        snapshots: oldest first.
        dtype: element type of averaged tensors in the outputs; the newest's by default.
        copy: globs of tensor names that are copied.
        base: the snapshot that tensors are copied from, the newest by default.
        used: snapshots that weigh, oldest first; all by default.

    Returns:
        The plans, and further names of their tensors where these are tied in every snapshot.

    Raises:
        InputError: a type can't be averaged, or a name can't be written.
    """
    newest = reference(snapshots)
    given = (newest if base is None else snapshots[base]).checkpoint.tensors
    sources = [snapshots[i] for i in used] or list(snapshots)
    names, copied = set(averaged(snapshots, copy)), matching(copy)
    ties = _ties(snapshots, copy)
    plans = []
    for name, extent in sorted(newest.checkpoint.tensors.items(), key=_place):
        if name in ties:
            continue
        if name == "__metadata__" or not _is_text(name):
            raise InputError(
                f"tensor {name!a}: safetensors has no place for that name",
                where=newest.name,
                remedy="rename it in the snapshots",
            )
        if name in names:
            plans.append(_averaged(extent, sources, dtype))
            continue
        if extent.dtype.kind == "other" and not copied(name):
            raise not_averaged(name, extent, newest.name)
        # What is copied need not be alike in all snapshots.
        kept = given.get(name, extent)
        plans.append(TensorPlan(name, kept.shape, kept.dtype, kept.dtype, average=False))
    return tuple(sorted(plans, key=lambda plan: -plan.out_dtype.bits)), ties


def _averaged(extent: Extent, sources: Sequence[Snapshot], dtype: DType | None) -> TensorPlan:
    """The treatment of a tensor that is averaged, by where it lies in the newest snapshot."""
    name, out = extent.name, dtype or extent.dtype
    stored = tuple(s.checkpoint.tensors[name].dtype for s in reversed(sources))
    kinds = {d.name for d in stored}
    if len(kinds) == 1:
        return TensorPlan(name, extent.shape, stored[0], out, average=True)
    # Of two types neither may hold the other's numbers; these two hold all narrower ones'.
    wide = DTYPES["F64" if "F64" in kinds else "F32"]
    return TensorPlan(name, extent.shape, wide, out, True, stored)


def _ties(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> dict[str, str]:
    """Names whose tensor lies under another name in every snapshot: that other name, by name."""
    checkpoint = reference(snapshots).checkpoint
    known = checkpoint.ties
    shared = {*known, *known.values()}
    # Further names become entries of the metadata in safetensors: not ones that are taken there.
    names = sorted((n for n in checkpoint.tensors if n in shared), key=lambda n: n not in RESERVED)
    copied = matching(copy)
    first: dict[object, str] = {}
    ties: dict[str, str] = {}
    for name in names:
        extents = [s.checkpoint.tensors.get(name) for s in snapshots]
        places = [None if e is None else replace(e, name="") for e in extents]
        kept = first.setdefault((copied(name), *places), name)
        if kept != name and name not in RESERVED:
            ties[name] = kept
    return ties


def _place(item: tuple[str, Extent]) -> tuple[Path, int]:
    """Where a named tensor lies."""
    return item[1].file, item[1].offset


def _is_text(name: str) -> bool:
    """Whether a name can be encoded; half surrogate pairs can't."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def averaged_kinds(tensors: Sequence[TensorPlan]) -> list[Kind]:
    """Each kind of averaged tensors once."""
    return list(dict.fromkeys(t.kind for t in tensors if t.average))
