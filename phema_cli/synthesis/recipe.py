"""The recipe: all that a synthesis will do, decided before a tensor is read.

Pure: from snapshots, targets and weights to the tensors' treatment, the bytes of the output
headers and the place of each tensor in them. The engine executes it, ``--dry-run`` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phema_cli.estimate.evidence import TagCheck
from phema_cli.formats.base import DType, Extent
from phema_cli.formats.locations import is_remote
from phema_cli.profiles import Array, Profile
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.consistency import reference
from phema_cli.solver import Solution
from phema_cli.solver.weights import SUM_ROUNDING
from phema_cli.synthesis.layout import DEFAULT_FORMAT, Output, lay_out
from phema_cli.synthesis.provenance import output_metadata, provenance
from phema_cli.synthesis.ranks import number_of_ranks
from phema_cli.synthesis.tensors import TensorPlan, averaged_kinds, plan_tensors
from phema_cli.synthesis.tiling import tile_elements
from phema_cli.system.processes import processors

DEFAULT_MAX_MEMORY = 256 << 20
#: workers of one process: far more than help, few enough to be started and ended at once.
MOST_JOBS = 256


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
            taken from: the newest of the whole model at or before the target's step, else the
            oldest of it.
        spare: the index of the source that tensors are copied from which a base lacks.
        tensors: in the order in which they lie in the outputs.
        ties: further names of tensors, by that further name.
        outputs: one per target.
        solution: all weights and figures, as solved.
        method: the method that solved them.
        form: the outputs' format.
        jobs: workers.
        allow_nonfinite: whether sources may hold infinities and NaN.
        tile_elements: elements of a tensor that a worker holds of every source at a time.
        read_bytes: bytes of tensor data read.
        write_bytes: bytes of all output files.
        peak_bytes: bytes of all workers' buffers.
        inputs: every file of every snapshot, used or not: none may be replaced.
        tags: whether the snapshots bear their tags out.
    """

    sources: tuple[Snapshot, ...]
    targets: tuple[Profile, ...]
    step: float
    weights: Array
    sums: Array
    bases: tuple[int, ...]
    spare: int | None
    tensors: tuple[TensorPlan, ...]
    ties: Mapping[str, str]
    outputs: tuple[Output, ...]
    solution: Solution
    method: str
    form: str
    jobs: int
    allow_nonfinite: bool
    tile_elements: int
    read_bytes: int
    write_bytes: int
    peak_bytes: int
    inputs: tuple[Path, ...]
    tags: TagCheck = field(default_factory=TagCheck)

    def extent(self, source: int, name: str) -> Extent:
        """Where a source's tensor lies."""
        return self.sources[source].checkpoint.tensors[name]

    def giver(self, target: int, name: str) -> int:
        """The source that a target's copy of a tensor is taken from."""
        base = self.bases[target]
        has = name in self.sources[base].checkpoint.tensors
        return base if has or self.spare is None else self.spare


def default_jobs() -> int:
    """Workers by default: one per processor, at most 8; ranks on one machine share them."""
    return min(8, max(1, processors() // number_of_ranks("LOCAL_WORLD_SIZE")))


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
    drop: Sequence[str] = (),
    max_shard_bytes: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    jobs: int | None = None,
    allow_nonfinite: bool = False,
    origins: Sequence[str] | None = None,
    tags: TagCheck | None = None,
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
        drop: globs of tensor names that were left out.
        max_shard_bytes: split outputs into shards of at most so many bytes of tensors.
        max_memory: bytes that phema may take above what torch itself takes.
        jobs: workers, one per processor by default.
        allow_nonfinite: whether sources may hold infinities and NaN.
        origins: (k,) what is recorded in the outputs, if that is not made of all this.
        tags: whether the snapshots bear their tags out.

    Raises:
        InputError: a tensor's type can't be averaged and no glob has it copied, or the format
            can't hold the tensors.
    """
    used = [i for i in range(len(snapshots)) if np.any(solution.weights[i] != 0)]
    bases_all = [_base(snapshots, target) for target in targets]
    base = bases_all[0] if bases_all else None
    tensors, ties = plan_tensors(snapshots, dtype, copy, base=base, used=used)
    spare = _spare(snapshots, bases_all, tensors)
    kept = sorted({*used, *bases_all, *spare})
    sources = tuple(snapshots[i] for i in kept)
    if origins is None:
        origins = []
        for column, own, target, figures in zip(
            solution.weights.T, bases_all, targets, solution.figures, strict=True
        ):
            # What other targets are made of is no part of it.
            rows = [i for i in kept if column[i] or i == own or i in spare]
            of = [snapshots[i] for i in rows]
            origins.append(provenance(of, column[rows], target, step, figures, method, copy, drop))
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
    )
    averaged = sum(t.read_bytes(t.elements, len(used)) for t in tensors if t.average)
    copied = sum(t.read_bytes(t.elements, len(targets)) for t in tensors if not t.average)
    sums = solution.weights.sum(axis=0)
    bases = tuple(kept.index(b) for b in bases_all)
    outputs = _outputs(sources, tensors, ties, bases, origins, paths, form, max_shard_bytes)
    return Recipe(
        sources=sources,
        targets=tuple(targets),
        step=step,
        weights=solution.weights[kept],
        sums=np.where(np.abs(sums - 1) < SUM_ROUNDING, 1.0, sums),
        bases=bases,
        spare=kept.index(spare[0]) if spare else None,
        tensors=tensors,
        ties=ties,
        outputs=outputs,
        solution=solution,
        method=method,
        form=form,
        jobs=workers,
        allow_nonfinite=allow_nonfinite,
        tile_elements=tile,
        read_bytes=averaged + copied,
        write_bytes=sum(o.size_bytes for o in outputs),
        peak_bytes=peak,
        inputs=tuple(f for s in snapshots for f in (s.checkpoint.path, *s.checkpoint.files)),
        tags=tags or TagCheck(),
    )


def _outputs(
    sources: Sequence[Snapshot],
    tensors: Sequence[TensorPlan],
    ties: Mapping[str, str],
    bases: Sequence[int],
    origins: Sequence[str],
    paths: Sequence[Path],
    form: str,
    max_shard_bytes: int | None,
) -> tuple[Output, ...]:
    """The outputs, each with the metadata of its base and its own provenance."""
    specs = {t.name: (t.out_dtype, t.shape) for t in tensors}
    outputs = []
    for path, base, origin in zip(paths, bases, origins, strict=True):
        carried = sources[base].checkpoint
        metadata = output_metadata(carried, origin)
        outputs.append(lay_out(path, form, specs, ties, carried, metadata, max_shard_bytes))
    return tuple(outputs)


def _base(snapshots: Sequence[Snapshot], target: Profile) -> int:
    """The newest snapshot of the whole model at or before the target's step, else the oldest."""
    whole = [i for i, s in enumerate(snapshots) if not s.partial] or [0]
    before = [i for i in whole if snapshots[i].tag.profile.end <= target.end]
    return before[-1] if before else whole[0]


def _spare(
    snapshots: Sequence[Snapshot], bases: Sequence[int], tensors: Sequence[TensorPlan]
) -> list[int]:
    """The newest snapshot of the whole model, if a base lacks what is copied."""
    copied = [t.name for t in tensors if not t.average]
    if all(n in snapshots[b].checkpoint.tensors for b in set(bases) for n in copied):
        return []
    newest = reference(snapshots)
    return [next(i for i, s in enumerate(snapshots) if s is newest)]


def _scattered(extent: Extent) -> bool:
    """Whether a range of the tensor's elements may lie in many places of the file."""
    return bool(extent.strides or extent.pieces)
