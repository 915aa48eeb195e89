"""The recipe: all that a synthesis will do, decided before a tensor is read.

Pure: from snapshots, targets and weights to the tensors' treatment, the bytes of the output
headers and the place of each tensor in them. The engine executes it, ``--dry-run`` prints it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from phema_cli.estimate.evidence import TagCheck
from phema_cli.estimate.solve import Measured, check_error, measure, solve_snapshots
from phema_cli.estimate.targets import hints, make_targets, target_step
from phema_cli.formats.base import Extent
from phema_cli.formats.image import PROVENANCE_KEY, FileImage
from phema_cli.formats.remote import is_remote
from phema_cli.formats.strided import is_strided
from phema_cli.profiles import Array, Profile
from phema_cli.request import Request
from phema_cli.snapshots import Finding, Scan, Snapshot
from phema_cli.snapshots.base import distinct, notice
from phema_cli.snapshots.tensors import statistics
from phema_cli.solver import Figures, Solution
from phema_cli.solver.weights import SUM_ROUNDING
from phema_cli.synthesis.layout import CARD, Output, OutputFile, lay_out
from phema_cli.synthesis.memory import tile_elements
from phema_cli.synthesis.names import Placed, place_outputs
from phema_cli.synthesis.packed import Terms, terms_of
from phema_cli.synthesis.provenance import Origin
from phema_cli.synthesis.tensors import (
    TensorPlan,
    averaged_kinds,
    base_of,
    float_type,
    plan_tensors,
    spare_of,
)
from phema_cli.system.ranks import default_jobs
from phema_cli.trainers.side_files import SideFile, side_files

_UNTESTED = TagCheck()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A synthesis, decided.

    Attributes:
        sources: n snapshots that are read, oldest first.
        targets: k profiles.
        step: their time as the trainer counts.
        weights: (n, k) float64.
        used: indices of the sources that weigh, newest first: differences are taken from that one.
        sums: (k,) what the weights sum to; exactly 1 where they were meant to.
        bases: for each target, the index of the source that integers, booleans and metadata are
            taken from: the newest of the whole model at or before the target's step, else the
            oldest of it.
        spare: the index of the source that tensors are copied from which a base lacks.
        tensors: in the order in which they lie in the outputs.
        ties: further names of tensors, by that further name.
        outputs: one per target.
        format: theirs.
        terms: what packed sources are sums of, if any are packed.
        figures: how good each target is.
        request: what was asked for.
        jobs: workers.
        tile_elements: elements of a tensor that a worker holds of every source at a time.
        peak_bytes: bytes of all workers' buffers.
        inputs: every file of every snapshot, used or not: none may be replaced.
        tags: whether the snapshots bear their tags out.
        findings: what the user should know of the targets and the outputs.
    """

    sources: tuple[Snapshot, ...]
    targets: tuple[Profile, ...]
    step: float
    weights: Array
    used: list[int]
    sums: Array
    bases: tuple[int, ...]
    spare: int | None
    tensors: tuple[TensorPlan, ...]
    ties: Mapping[str, str]
    outputs: tuple[Output, ...]
    format: str
    terms: Terms | None
    figures: tuple[Figures, ...]
    request: Request
    jobs: int
    tile_elements: int
    peak_bytes: int
    inputs: tuple[Path, ...]
    tags: TagCheck
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        """``<Recipe of 40 sources: gamma 7 at step 2000; 10 tensors>``."""
        many = len(self.targets) != 1
        targets = f"{len(self.targets)} targets" if many else self.targets[0].label
        return (
            f"<Recipe of {len(self.sources)} sources: {targets} at step {self.step:.10g}; "
            f"{len(self.tensors)} tensors>"
        )

    @property
    def read_bytes(self) -> int:
        """Bytes of tensor data that are read."""
        used, targets = len(self.used), len(self.targets)
        return sum(t.bytes_read(self.terms, used, targets) for t in self.tensors)

    @property
    def write_bytes(self) -> int:
        """Bytes of all output files."""
        return sum(output.size_bytes for output in self.outputs)

    def extent(self, source: int, name: str) -> Extent:
        """Where a source's tensor lies."""
        return self.sources[source].checkpoint.tensors[name]

    def giver(self, target: int, name: str) -> int:
        """The source that a target's copy of a tensor is taken from."""
        base = self.bases[target]
        has = name in self.sources[base].checkpoint.tensors
        return base if has or self.spare is None else self.spare


def make_recipe(
    scan: Scan, request: Request, measured: Measured | None = None
) -> tuple[Recipe | None, list[Path]]:
    """Decide a synthesis; ``measured`` is what a sample of the snapshots shows, where it is known.

    Returns:
        The recipe, None where every output exists and is skipped, and all outputs' paths in the
        order of the targets.

    Raises:
        CheckFailedError: an ``expected_error`` is above ``request.max_error``.
        PhemaError: the scan, the targets or the output make no sense.
    """
    snapshots = scan.require()
    targets = make_targets(snapshots, request)
    step = target_step(snapshots, request.step)
    placed = place_outputs(request, targets, step, scan)
    if targets and not placed.kept:
        return None, placed.paths
    open_targets = [targets[k] for k in placed.kept]
    if measured is None:
        measured = measure(scan, request)
        measured.tags.require()
    solution = solve_snapshots(snapshots, open_targets, measured, method=request.method)
    if request.max_error is not None:
        check_error(solution, open_targets, request.max_error)
    recipe = assemble(
        scan,
        open_targets,
        solution,
        placed,
        request,
        step=step,
        tags=measured.tags,
    )
    return recipe, placed.paths


def assemble(
    scan: Scan,
    targets: Sequence[Profile],
    solution: Solution,
    placed: Placed,
    request: Request,
    *,
    step: float,
    tags: TagCheck = _UNTESTED,
    record: str | None = None,
) -> Recipe:
    """A recipe of weights that are known.

    Args:
        scan: the snapshots; they fit together.
        targets: k profiles.
        solution: weights of the targets, rows in the order of the snapshots.
        placed: where the k outputs go.
        request: what was asked for.
        step: the targets' time as the trainer counts.
        tags: whether the snapshots bear their tags out.
        record: what is recorded in the outputs; made of all this by default.

    Raises:
        InputError: a tensor's type can't be averaged and no glob has it copied, or the format
            can't hold the tensors.
    """
    snapshots = scan.snapshots
    used = [i for i in range(len(snapshots)) if np.any(solution.weights[i] != 0)]
    bases_all = [base_of(snapshots, target) for target in targets]
    tensors, ties = plan_tensors(snapshots, float_type(request), scan.copy, bases_all[0], used)
    spare = spare_of(snapshots, bases_all, tensors)
    kept = sorted({*used, *bases_all, *spare})
    sources = tuple(snapshots[i] for i in kept)
    weights, bases = solution.weights[kept], tuple(kept.index(b) for b in bases_all)
    sums = solution.weights.sum(axis=0)

    def origin(k: int) -> Origin:
        # What other targets are made of is no part of this one's record.
        copied = [bases[k], *map(kept.index, spare)]
        rows = sorted({*np.flatnonzero(weights[:, k]).tolist(), *copied})
        made, base = [sources[i] for i in rows], sources[bases[k]]
        target, figures = targets[k], solution.figures[k]
        return Origin(made, weights[rows, k], base, target, step, figures, request, scan)

    origins = [origin(k) for k in range(len(targets))]
    outputs, notices = _outputs(placed, origins, tensors, ties, record)
    packed, jobs = terms_of(sources, weights), request.jobs or default_jobs()
    tile, peak = _tile(sources, tensors, packed, len(used), len(targets), jobs, request.max_memory)
    said = [*tags.findings, *hints(snapshots, targets), *_statistics(sources, weights, tensors)]
    return Recipe(
        sources=sources,
        targets=tuple(targets),
        step=step,
        weights=weights,
        used=[kept.index(i) for i in reversed(used)],
        sums=np.where(np.abs(sums - 1) < SUM_ROUNDING, 1.0, sums),
        bases=bases,
        spare=kept.index(spare[0]) if spare else None,
        tensors=tensors,
        ties=ties,
        outputs=outputs,
        format=placed.form,
        terms=packed,
        figures=solution.figures,
        # Targets as they were written can't be sent to other ranks.
        request=replace(request, profile=(), weights=None, output=None),
        jobs=jobs,
        tile_elements=tile,
        peak_bytes=peak,
        inputs=_inputs(snapshots, kept),
        tags=tags,
        findings=(*said, *notices),
    )


def _outputs(
    placed: Placed,
    origins: Sequence[Origin],
    tensors: Sequence[TensorPlan],
    ties: Mapping[str, str],
    record: str | None,
) -> tuple[tuple[Output, ...], list[Finding]]:
    """The outputs, and notices of what is beside their weights."""
    specs = {t.name: (t.kind.out, t.shape) for t in tensors}
    outputs: list[Output] = []
    notices: dict[str, Finding] = {}
    listed = cache(side_files)  # several outputs may continue one snapshot, which may be remote
    for k, origin in zip(placed.kept, origins, strict=True):
        path, limit = placed.paths[k], placed.max_shard_bytes
        said, carried = record or origin.record(), origin.base.checkpoint
        output = lay_out(path, placed.form, specs, ties, carried, said, limit)
        if output.is_folder and origin.request.side_files:
            output, about = _with_files_beside(output, origin, listed)
            notices |= {str(found.error): found for found in about}
        outputs.append(output)
    return tuple(outputs), list(notices.values())


def _with_files_beside(
    output: Output, origin: Origin, listed: Callable[[Path], tuple[list[SideFile], list[str]]]
) -> tuple[Output, list[Finding]]:
    """A directory with what belongs beside its weights, and notices of that."""
    base, card = origin.base, origin.card()
    files, refused = ([], []) if base.folder is None else listed(base.folder)
    copies = [
        OutputFile(output.path / f.path.name, FileImage((), {}, f.size_bytes), f.path)
        for f in files
    ]
    beside = (*copies, OutputFile.of(output.path / CARD, card))
    names = ", ".join(f.path.name for f in files)
    said = [f"copied with the weights: {names}"] if files else []
    said += [f"not copied: {what}" for what in refused]
    return replace(output, beside=beside), [notice(what, base.name) for what in said]


def _statistics(
    sources: Sequence[Snapshot], weights: Array, tensors: Sequence[TensorPlan]
) -> list[Finding]:
    """A notice of running statistics, unless every target is one state of the weights."""
    raw = [s.tag.label == "raw" for s in sources]
    if all((column[raw] == 1).any() for column in weights.T):
        return []
    return statistics(t.name for t in tensors)


def _tile(
    sources: Sequence[Snapshot],
    tensors: Sequence[TensorPlan],
    packed: Terms | None,
    used: int,
    targets: int,
    jobs: int,
    max_memory: int,
) -> tuple[int, int]:
    """Elements of a tile, and the bytes of all workers' buffers."""
    stored = chain(*(s.checkpoint.tensors.values() for s in distinct(sources)))
    # Few extents are either; looking at them twice would take longer.
    extents = [e for e in stored if e.pieces or is_strided(e)]
    return tile_elements(
        averaged_kinds(tensors),
        used,
        targets,
        jobs,
        max_memory,
        scattered=any(e.pieces for e in extents),
        strided=any(map(is_strided, extents)),
        remote=any(is_remote(path) for s in sources for path in s.checkpoint.files),
        packed=packed,
    )


def _inputs(snapshots: Sequence[Snapshot], kept: Sequence[int]) -> tuple[Path, ...]:
    """All files that outputs must not replace; outputs of before only where they weigh."""
    named = (
        (s.checkpoint.path, *s.checkpoint.files)
        for i, s in enumerate(snapshots)
        if i in kept or PROVENANCE_KEY not in s.checkpoint.metadata
    )
    return tuple(chain(*named))
