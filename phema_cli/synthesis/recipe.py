"""The recipe: all that a synthesis will do, decided before a tensor is read.

Pure: from snapshots, targets and weights to the tensors' treatment, the bytes of the output
headers and the place of each tensor in them. The engine executes it, ``--dry-run`` prints it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from phema_cli.errors import InputError
from phema_cli.formats.base import DType, Extent
from phema_cli.formats.locations import is_remote
from phema_cli.profiles import Array, Profile
from phema_cli.snapshots import Snapshot
from phema_cli.solver import Solution
from phema_cli.solver.diagnostics import SUM_ROUNDING
from phema_cli.synthesis.layout import DEFAULT_FORMAT, Output, lay_out
from phema_cli.synthesis.provenance import RESERVED, output_metadata, provenance
from phema_cli.synthesis.tiling import Kind, tile_elements

DEFAULT_MAX_MEMORY = 256 << 20
#: the device that averages by default.
DEFAULT_DEVICE = "cpu"


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What happens to a tensor.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: element type in the sources.
        out_dtype: element type in the outputs.
        average: averaged if true, else copied from each target's base source.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    out_dtype: DType
    average: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> Kind:
        """What tensors that are averaged alike have in common."""
        return Kind(self.dtype, self.out_dtype)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A synthesis, decided.

    Attributes:
        sources: n snapshots that are read, oldest first.
        targets: k profiles.
        step: their time as the trainer counts.
        weights: (n, k) float64.
        sums: (k,) what the weights sum to; exactly 1 where they were meant to.
        bases: for each target, the index of the source that integers, booleans and metadata are
            taken from: the newest at or before the target's step, else the oldest.
        tensors: in the order in which they lie in the outputs.
        ties: further names of tensors, by that further name.
        outputs: one per target.
        origins: (k,) the provenance that each output records.
        max_shard_bytes: the most bytes of tensors in a file of an output, if that is limited.
        solution: all weights and figures, as solved.
        method: the method that solved them.
        form: the outputs' format.
        jobs: workers.
        device: what averages: ``cpu``, ``cuda`` or ``cuda:N``.
        allow_nonfinite: whether sources may hold infinities and NaN.
        digest: whether the outputs record digests of what is read.
        tile_elements: elements of a tensor that a worker holds of every source at a time.
        read_bytes: bytes of tensor data read.
        write_bytes: bytes of all output files.
        peak_bytes: bytes of all workers' buffers.
        inputs: every file of every snapshot, used or not: none may be replaced.
    """

    sources: tuple[Snapshot, ...]
    targets: tuple[Profile, ...]
    step: float
    weights: Array
    sums: Array
    bases: tuple[int, ...]
    tensors: tuple[TensorPlan, ...]
    ties: Mapping[str, str]
    outputs: tuple[Output, ...]
    origins: tuple[str, ...]
    max_shard_bytes: int | None
    solution: Solution
    method: str
    form: str
    jobs: int
    device: str
    allow_nonfinite: bool
    digest: bool
    tile_elements: int
    read_bytes: int
    write_bytes: int
    peak_bytes: int
    inputs: tuple[Path, ...]

    def extent(self, source: int, name: str) -> Extent:
        """Where a source's tensor lies."""
        return self.sources[source].checkpoint.tensors[name]


def default_jobs() -> int:
    """Workers by default: one per processor, at most 8; ranks on one machine share them."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, len(os.sched_getaffinity(0)) // ranks))


def make_recipe(
    snapshots: Sequence[Snapshot],
    targets: Sequence[Profile],
    solution: Solution,
    paths: Sequence[Path],
    *,
    step: float,
    method: str,
    form: str = DEFAULT_FORMAT,
    dtype: DType | None = None,
    copy: Sequence[str] = (),
    max_shard_bytes: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    jobs: int | None = None,
    device: str = DEFAULT_DEVICE,
    allow_nonfinite: bool = False,
    origins: Sequence[str] | None = None,
) -> Recipe:
    """Decide a synthesis.

    Args:
        snapshots: oldest first, as a scan gives them; they fit together.
        targets: k profiles.
        solution: weights of the targets, rows in the order of ``snapshots``.
        paths: k outputs: a file each, or a directory where the path has no ending of the format.
        step: the targets' time as the trainer counts.
        method: the method that solved the weights, for the provenance.
        form: the outputs' format.
        dtype: element type of averaged tensors in the outputs; as stored by default.
        copy: globs of tensor names that are copied.
        max_shard_bytes: split outputs into shards of at most so many bytes of tensors.
        max_memory: bytes that phema may take above what torch itself takes.
        jobs: workers, one per processor by default.
        device: what averages: ``cpu``, ``cuda`` or ``cuda:N``.
        allow_nonfinite: whether sources may hold infinities and NaN.
        origins: (k,) what is recorded in the outputs, if that is not made of all this.

    Raises:
        InputError: a tensor's type can't be averaged and no glob has it copied.
    """
    used = [i for i in range(len(snapshots)) if np.any(solution.weights[i] != 0)]
    bases_all = [_base(snapshots, target) for target in targets]
    kept = sorted({*used, *bases_all})
    sources = tuple(snapshots[i] for i in kept)
    tensors, ties = plan_tensors(snapshots, dtype, copy)
    if origins is None:
        origins = [
            provenance(sources, weights, target, step, figures, method, copy, device)
            for weights, target, figures in zip(
                solution.weights[kept].T, targets, solution.figures, strict=True
            )
        ]
    workers = jobs or default_jobs()
    scattered = any(_scattered(e) for s in sources for e in s.checkpoint.tensors.values())
    tile, peak = tile_elements(
        averaged_kinds(tensors),
        len(used),
        len(targets),
        workers,
        max_memory,
        scattered=scattered,
        remote=any(is_remote(path) for s in sources for path in s.checkpoint.files),
        apart=device != DEFAULT_DEVICE,
    )
    averaged = sum(_bytes(t) for t in tensors if t.average)
    copied = sum(_bytes(t) for t in tensors if not t.average)
    sums = solution.weights.sum(axis=0)
    recipe = Recipe(
        sources=sources,
        targets=tuple(targets),
        step=step,
        weights=solution.weights[kept],
        sums=np.where(np.abs(sums - 1) < SUM_ROUNDING, 1.0, sums),
        bases=tuple(kept.index(b) for b in bases_all),
        tensors=tensors,
        ties=ties,
        outputs=(),
        origins=(),
        max_shard_bytes=max_shard_bytes,
        solution=solution,
        method=method,
        form=form,
        jobs=workers,
        device=device,
        allow_nonfinite=allow_nonfinite,
        digest=False,
        tile_elements=tile,
        read_bytes=averaged * len(used) + copied * len(targets),
        write_bytes=0,
        peak_bytes=peak,
        inputs=tuple(f for s in snapshots for f in (s.checkpoint.path, *s.checkpoint.files)),
    )
    return with_origins(recipe, origins, paths)


def with_origins(
    recipe: Recipe, origins: Sequence[str], paths: Sequence[Path] | None = None
) -> Recipe:
    """The recipe whose outputs record that they were made so.

    Args:
        recipe: what to do.
        origins: (k,) the provenance of each output.
        paths: (k,) the outputs, where the recipe has none yet.

    Raises:
        InputError: the format can't hold the tensors.
    """
    specs = {t.name: (t.out_dtype, t.shape) for t in recipe.tensors}
    outputs = []
    places = [o.path for o in recipe.outputs] if paths is None else paths
    for path, base, origin in zip(places, recipe.bases, origins, strict=True):
        carried = recipe.sources[base].checkpoint
        metadata = output_metadata(carried, origin)
        limit = recipe.max_shard_bytes
        outputs.append(lay_out(path, recipe.form, specs, recipe.ties, carried, metadata, limit))
    size = sum(o.size_bytes for o in outputs)
    return replace(recipe, outputs=tuple(outputs), origins=tuple(origins), write_bytes=size)


def _base(snapshots: Sequence[Snapshot], target: Profile) -> int:
    """The newest snapshot at or before the target's step, else the oldest."""
    before = [i for i, s in enumerate(snapshots) if s.tag.profile.end <= target.end]
    return before[-1] if before else 0


def _bytes(plan: TensorPlan) -> int:
    """Bytes of the tensor in one source."""
    return plan.dtype.size_bytes(plan.elements)


def plan_tensors(
    snapshots: Sequence[Snapshot], dtype: DType | None, copy: Sequence[str]
) -> tuple[tuple[TensorPlan, ...], dict[str, str]]:
    """Each tensor's treatment, wide types first so that all data are aligned, then as they lie.

    Returns:
        The plans, and further names of their tensors where these are tied in every snapshot.

    Raises:
        InputError: a type can't be averaged, or a name can't be written.
    """
    newest = snapshots[-1]
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
        chosen = _is_copied(name, copy)
        if extent.dtype.kind == "other" and not chosen:
            raise InputError(
                f"tensor {name}: {extent.dtype.label} values can't be averaged",
                where=newest.name,
                remedy=f"--copy '{name}' takes them from the newest snapshot",
            )
        average = extent.dtype.kind == "float" and not chosen
        out = dtype if dtype is not None and average else extent.dtype
        plans.append(TensorPlan(name, extent.shape, extent.dtype, out, average))
    return tuple(sorted(plans, key=lambda plan: -plan.out_dtype.bits)), ties


def _ties(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> dict[str, str]:
    """Names whose tensor lies under another name in every snapshot: that other name, by name."""
    checkpoint = snapshots[-1].checkpoint
    known = checkpoint.ties
    shared = {*known, *known.values()}
    # Further names become entries of the metadata in safetensors: not ones that are taken there.
    names = sorted((n for n in checkpoint.tensors if n in shared), key=lambda n: n not in RESERVED)
    first: dict[object, str] = {}
    ties: dict[str, str] = {}
    for name in names:
        places = [replace(s.checkpoint.tensors[name], name="") for s in snapshots]
        kept = first.setdefault((_is_copied(name, copy), *places), name)
        if kept != name and name not in RESERVED:
            ties[name] = kept
    return ties


def _is_copied(name: str, copy: Sequence[str]) -> bool:
    """Whether a glob has the tensor copied."""
    return any(fnmatchcase(name, glob) for glob in copy)


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


def _scattered(extent: Extent) -> bool:
    """Whether a range of the tensor's elements may lie in many places of the file."""
    return bool(extent.strides or extent.pieces)


def averaged_kinds(tensors: Sequence[TensorPlan]) -> list[Kind]:
    """Each kind of averaged tensors once."""
    return list(dict.fromkeys(t.kind for t in tensors if t.average))
