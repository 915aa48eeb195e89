"""What happens to each tensor: averaged or copied, from what types to which, tied to another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from phema_cli.errors import InputError, UsageError
from phema_cli.formats.base import DTYPES, Checkpoint, DType, Extent
from phema_cli.formats.chains import link_of
from phema_cli.globs import matching
from phema_cli.profiles import Array, CombinationProfile, Profile, stored_at
from phema_cli.request import Request
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.base import distinct, reference
from phema_cli.snapshots.consistency import not_averaged
from phema_cli.snapshots.tensors import averaged, stored_types
from phema_cli.synthesis.packed import Terms
from phema_cli.synthesis.provenance import RESERVED

#: the most sources of a sum that is made in one go.
_MOST_DIRECT = 256
#: error of a weight that is stored as two numbers of a type, relative to it or to 1.
_PARTS = {"F16": 2.0**-22, "BF16": 2.0**-18}


@dataclass(frozen=True, slots=True)
class Kind:
    """Tensors that are treated alike.

    Attributes:
        dtype: type that is read, or one that holds all types that are.
        out: type that is written.
        stored: type that is read of each source, newest first, where they differ.
        packed: whether its rows are those of packed sources: keyframes and residues.
    """

    dtype: DType
    out: DType
    stored: tuple[DType, ...] = ()
    packed: bool = False

    def of(self, sources: Sequence[int]) -> "Kind":
        """The kind of tensors of these sources alone."""
        types = {self.stored[i] for i in sources} if self.stored else {self.dtype}
        return Kind(types.pop(), self.out, (), self.packed) if len(types) == 1 else self

    @property
    def may_be_direct(self) -> bool:
        """Whether its types allow ``sum_i x_i theta_i`` to be summed as it stands."""
        return self.dtype == self.out and self.dtype.name in _PARTS and not self.stored

    def is_direct(self, weights: Array) -> bool:
        """Whether a target's ``sum_i x_i theta_i`` may be summed as it stands.

        So it is where values of 16 bits are read and written, and a number that all sources share
        comes out as it is: the error of its sum is below a quarter of the distance to the next
        number. At most 2 n times a sum of at most ``2 max_j |x_1 + ... + x_j|`` times the number is
        rounded to float32, and each weight to two parts of the stored type.

        Args:
            weights: (n,) float64 of the target's own sources, none of them 0.
        """
        if not self.may_be_direct or len(weights) > _MOST_DIRECT:
            return False
        partial = float(np.abs(weights.cumsum()).max(initial=0.0))
        size = float(np.abs(weights).sum())
        error = 2 * len(weights) * partial * 2.0**-24 + size * _PARTS[self.dtype.name]
        # Below a power of two the next number is nearest: 2^-(m+1) of it away.
        return error < 2.0 ** -(self.dtype.mantissa_bits + 1) / 4


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What happens to a tensor.

    Attributes:
        name: its name.
        shape: its shape.
        kind: its element types: in the sources that weigh, and in the outputs.
        average: averaged if true, else copied from each target's base source.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    average: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def bytes_read(self, terms: Terms | None, used: int, targets: int) -> int:
        """Bytes of it that are read of all sources."""
        if self.kind.packed and terms is not None:
            return math.ceil(self.elements * terms.bits / 8)
        if self.kind.stored:
            return sum(dtype.size_bytes(self.elements) for dtype in self.kind.stored)
        return (used if self.average else targets) * self.kind.dtype.size_bytes(self.elements)


def plan_tensors(
    snapshots: Sequence[Snapshot],
    dtype: DType | None,
    copy: Sequence[str],
    base: int,
    used: Sequence[int],
) -> tuple[tuple[TensorPlan, ...], dict[str, str]]:
    """Each tensor's treatment, wide types first so that all data are aligned, then as they lie.

    Args:
        snapshots: oldest first.
        dtype: element type of averaged tensors in the outputs; the newest's by default.
        copy: globs of tensor names that are copied.
        base: the snapshot that tensors are copied from.
        used: snapshots that weigh, oldest first.

    Returns:
        The plans, and further names of their tensors where these are tied in every snapshot.

    Raises:
        InputError: a type can't be averaged, or a name can't be written.
    """
    newest = reference(snapshots)
    given = snapshots[base].checkpoint.tensors
    sources = [snapshots[i] for i in used] or list(snapshots)
    firsts = distinct(sources)
    linked = [s.checkpoint for s in sources if link_of(s.checkpoint) is not None]
    names, copied = set(averaged(snapshots, copy)), matching(copy)
    extents = sorted(newest.checkpoint.tensors.items(), key=lambda e: (e[1].file, e[1].offset))
    ties = _ties(snapshots, copy)
    plans = []
    for name, extent in extents:
        if name in ties:
            continue
        # Half of a surrogate pair can't be encoded.
        if name == "__metadata__" or name.encode(errors="ignore").decode() != name:
            raise InputError(
                f"tensor {name!a}: safetensors can't store that name",
                where=newest.name,
                remedy="rename it in the snapshots",
            )
        if name in names:
            plans.append(_averaged(extent, sources, firsts, linked, dtype))
            continue
        if extent.dtype.kind == "other" and not copied(name):
            raise not_averaged(name, extent, newest.name)
        # What is copied need not be alike in all snapshots.
        kept = given.get(name, extent)
        plans.append(TensorPlan(name, kept.shape, Kind(kept.dtype, kept.dtype), average=False))
    return tuple(sorted(plans, key=lambda plan: -plan.kind.out.bits)), ties


def _averaged(
    extent: Extent,
    sources: Sequence[Snapshot],
    firsts: Sequence[Snapshot],
    linked: Sequence[Checkpoint],
    dtype: DType | None,
) -> TensorPlan:
    """The treatment of a tensor that is averaged, by where it lies in the newest snapshot.

    ``firsts`` are the distinct ones of the sources, ``linked`` those that have packed tensors.
    """
    name, out = extent.name, dtype or extent.dtype
    kinds = stored_types(firsts, name)
    if len(kinds) == 1:
        # Packed in each file that packs any, under one name in the files.
        held = {c.tensors[name].packed for c in linked}
        packed = None not in held and len({p.name for p in held if p is not None}) == 1
        return TensorPlan(name, extent.shape, Kind(kinds[0], out, (), packed), average=True)
    # Of two types neither may hold the other's numbers; these two hold all narrower ones'.
    wide = DTYPES["F64" if DTYPES["F64"] in kinds else "F32"]
    stored = tuple(s.checkpoint.tensors[name].dtype for s in reversed(sources))
    return TensorPlan(name, extent.shape, Kind(wide, out, stored), average=True)


def _ties(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> dict[str, str]:
    """Names whose tensor lies under another name in every snapshot: that other name, by name."""
    checkpoint = reference(snapshots).checkpoint
    shared = {*checkpoint.ties, *checkpoint.ties.values()}
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


def averaged_kinds(tensors: Sequence[TensorPlan]) -> list[Kind]:
    """Each kind of averaged tensors once."""
    return list(dict.fromkeys(t.kind for t in tensors if t.average))


def base_of(snapshots: Sequence[Snapshot], target: Profile) -> int:
    """The newest snapshot of the whole model at or before the target's step, else the oldest.

    Of combinations, one of their own snapshots.
    """
    own = target.places if isinstance(target, CombinationProfile) else range(len(snapshots))
    whole = [i for i in own if not snapshots[i].partial]
    whole = whole or [i for i, s in enumerate(snapshots) if not s.partial] or [0]
    profiles = {i: snapshots[i].tag.profile for i in whole}
    before = [i for i, p in profiles.items() if min(p.end, stored_at(p)) <= target.end]
    return before[-1] if before else whole[0]


def spare_of(
    snapshots: Sequence[Snapshot], bases: Sequence[int], tensors: Sequence[TensorPlan]
) -> list[int]:
    """The newest snapshot of the whole model, if a base lacks what is copied."""
    copied = [t.name for t in tensors if not t.average]
    if all(n in snapshots[b].checkpoint.tensors for b in set(bases) for n in copied):
        return []
    newest = reference(snapshots)
    return [next(i for i, s in enumerate(snapshots) if s is newest)]


def find_dtype(name: str) -> DType:
    """The float type of that name, as safetensors, torch or people call it (``fp16``).

    Raises:
        UsageError: no float type has that name.
    """
    plain = name.lower().removeprefix("torch.").replace("float", "f").replace("fp", "f")
    plain = plain.replace("bf16", "b16").replace("half", "f16").replace("_", "").removesuffix("fn")
    for dtype in DTYPES.values():
        label = dtype.label.replace("bfloat", "b").replace("float", "f").replace("_", "")
        if dtype.kind == "float" and plain in {label.removesuffix("fn"), dtype.name.lower()}:
            return dtype
    known = ", ".join(d.label for d in DTYPES.values() if d.kind == "float")
    raise UsageError(f"no float type {name!r}", remedy=f"one of {known}")


def float_type(request: Request) -> DType | None:
    """The type that averages get; None where each keeps its own.

    Raises:
        UsageError: no float type has the name that was asked for.
    """
    return find_dtype(request.dtype) if request.dtype else None
