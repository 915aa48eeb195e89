"""What is asked of a synthesis, and the recipe that it is decided to be."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phema_cli.errors import CheckFailedError, UsageError
from phema_cli.estimate.solve import (
    Measured,
    make_targets,
    measure,
    solve_snapshots,
    target_step,
)
from phema_cli.formats.base import DTYPES, DType
from phema_cli.profiles import Profile, ProfileSpec, parse_profile
from phema_cli.snapshots import Config, Snapshot, scan
from phema_cli.snapshots.scan import Scan
from phema_cli.solver import DEFAULT_METHOD, Solution
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.layout import (
    DEFAULT_FORMAT,
    DEFAULT_MAX_SHARD_BYTES,
    ENDING,
    is_complete,
    output_format,
    output_paths,
)
from phema_cli.synthesis.recipe import (
    DEFAULT_MAX_MEMORY,
    MOST_JOBS,
    Recipe,
    make_recipe,
)
from phema_cli.synthesis.tensors import plan_tensors


@dataclass(frozen=True, slots=True)
class Request:
    """What to synthesize and how; each field is the option of its name.

    Attributes:
        gammas: target exponents.
        sigma_rels: target relative standard deviations.
        profiles: targets of other profiles.
        step: target time; the last snapshot's by default.
        method: one of ``phema_cli.solver.METHODS``.
        sample: whether a sample of the tensors is read to learn how they move and round.
        output: a file, a directory or a template with ``{gamma} {sigma_rel} {profile} {step}``.
        form: the outputs' format; by the ending of ``output``, else safetensors.
        dtype: element type of averaged tensors, by its name in safetensors; as stored by default.
        max_shard_bytes: split outputs into shards of at most so many bytes of tensors; by default
            5 GB where ``output`` does not name a single file.
        max_error: refuse to write when ``expected_error`` is above this.
        max_memory: bytes phema may take above what torch takes.
        jobs: workers; one per processor by default.
        allow_nonfinite: whether sources may hold infinities and NaN, which averages then do too.
        skip_existing: leave out targets whose output exists.
    """

    gammas: tuple[float, ...] = ()
    sigma_rels: tuple[float, ...] = ()
    profiles: tuple[ProfileSpec, ...] = ()
    step: float | None = None
    method: str = DEFAULT_METHOD
    sample: bool = True
    output: str | None = None
    form: str | None = None
    dtype: DType | None = None
    max_shard_bytes: int | None = None
    max_error: float | None = None
    max_memory: int = DEFAULT_MAX_MEMORY
    jobs: int | None = None
    allow_nonfinite: bool = False
    skip_existing: bool = False


def plan(
    found: Scan, request: Request, measured: Measured | None = None
) -> tuple[Recipe | None, list[Path]]:
    """Decide a synthesis of what a scan found.

    Args:
        found: the snapshots.
        request: what to make of them.
        measured: what a sample of the snapshots shows, where that is known.

    Returns:
        The recipe, None where every output exists and is skipped, and all outputs' paths in the
        order of the targets.

    Raises:
        CheckFailedError: an ``expected_error`` is above ``request.max_error``.
        PhemaError: the scan, the targets or the output make no sense.
    """
    if request.jobs is not None and not 1 <= request.jobs <= MOST_JOBS:
        raise UsageError(f"{request.jobs} jobs are not from 1 to {MOST_JOBS}")
    snapshots = found.require()
    targets = make_targets(
        snapshots,
        gammas=request.gammas,
        sigma_rels=request.sigma_rels,
        profiles=request.profiles,
        step=request.step,
    )
    step = target_step(snapshots, request.step)
    form = output_format(request.output, request.form)
    limit = _shard_limit(request, form, snapshots, found.copy)
    paths = output_paths(request.output, targets, step, form, split=limit is not None)
    kept = [k for k, p in enumerate(paths) if not (request.skip_existing and is_complete(p))]
    if targets and not kept:
        return None, paths
    todo = [targets[k] for k in kept]
    if measured is None:
        measured = measured_for(found, request)
    solution = solve_snapshots(snapshots, todo, measured, method=request.method)
    if request.max_error is not None:
        _check_error(solution, todo, request.max_error)
    recipe = make_recipe(
        snapshots,
        todo,
        solution,
        [paths[k] for k in kept],
        step=step,
        form=form,
        method=request.method,
        dtype=request.dtype,
        copy=found.copy,
        drop=found.drop,
        max_shard_bytes=limit,
        max_memory=request.max_memory,
        jobs=request.jobs,
        allow_nonfinite=request.allow_nonfinite,
        tags=measured.tags,
    )
    return recipe, paths


def measured_for(found: Scan, request: Request) -> Measured:
    """What a sample of the snapshots shows, where the request has one.

    Raises:
        PhemaError: the sample can't be read, or the snapshots contradict their tags.
    """
    if not request.sample:
        return Measured()
    measured = measure(
        found.snapshots,
        copy=found.copy,
        allow_nonfinite=request.allow_nonfinite,
        trust_tags=found.trust_tags,
    )
    measured.tags.require()
    return measured


def _shard_limit(
    request: Request, form: str, snapshots: Sequence[Snapshot], copy: Sequence[str]
) -> int | None:
    """Bytes a shard may have, or None for a single file."""
    single = request.output is not None and request.output.endswith(ENDING)
    limit = request.max_shard_bytes
    if form != DEFAULT_FORMAT:
        if limit is not None:
            raise UsageError(
                f"an output of format {form} is one file", remedy="leave --max-shard-size out"
            )
        return None
    if limit is None:
        if single:
            return None
        limit = DEFAULT_MAX_SHARD_BYTES
    size = sum(
        t.out_dtype.size_bytes(math.prod(t.shape))
        for t in plan_tensors(snapshots, request.dtype, copy)[0]
    )
    return limit if size > limit else None


def _check_error(solution: Solution, targets: Sequence[Profile], most: float) -> None:
    """Raise where a target's expected error is above ``most``."""
    for figures, target in zip(solution.figures, targets, strict=True):
        if not target.square_integrable:
            raise UsageError(
                f"{target.label} has no expected_error: it is a fraction of what averaging moves",
                remedy="leave --max-error out for it",
            )
        if not figures.expected_error <= most:
            raise CheckFailedError(
                f"expected_error {figures.expected_error:.3g} of {target.label} is "
                f"above --max-error {most:g}",
                remedy="nothing was written; phema inspect shows which targets are in reach",
            )


def synthesize(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    gamma: float | Sequence[float] = (),
    sigma_rel: float | Sequence[float] = (),
    profile: str | Sequence[str] = (),
    step: float | None = None,
    output: str | os.PathLike[str] | None = None,
    format: str | None = None,  # noqa: A002 - the option's name
    dtype: str | None = None,
    method: str = DEFAULT_METHOD,
    max_shard_size: int | None = None,
    max_error: float | None = None,
    sample: bool = True,
    jobs: int | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    config: Config | None = None,
) -> list[Path]:
    """Write the checkpoints of the target gammas; what ``phema synthesize`` does, from Python.

    Args:
        paths: snapshots or directories of them.
        gamma: target exponents.
        sigma_rel: target relative standard deviations.
        profile: targets of other profiles, as ``--profile`` writes them but for ``csv``.
        step: target time; the last snapshot's by default.
        output: file, directory or template.
        format: the outputs' format; by the ending of ``output``, else safetensors.
        dtype: element type of averaged tensors, as safetensors or torch call it.
        method: how the weights are solved.
        max_shard_size: bytes of tensors in a shard.
        max_error: refuse to write when the expected error is above this.
        sample: whether a sample of the tensors is read to learn how they move and round.
        jobs: workers, which are threads.
        allow_nonfinite: whether sources may hold infinities and NaN.
        overwrite: whether existing outputs are replaced.
        config: how snapshots are found and read.

    Returns:
        The outputs' paths, one per target.

    Raises:
        PhemaError: what is wrong, where, and the remedy.
    """
    roots = [paths] if isinstance(paths, str | os.PathLike) else paths
    request = Request(
        gammas=tuple([gamma] if isinstance(gamma, int | float) else gamma),
        sigma_rels=tuple([sigma_rel] if isinstance(sigma_rel, int | float) else sigma_rel),
        profiles=tuple(
            parse_profile(p) for p in ([profile] if isinstance(profile, str) else profile)
        ),
        step=step,
        method=method,
        sample=sample,
        output=None if output is None else os.fspath(output),
        form=format,
        dtype=None if dtype is None else find_dtype(dtype),
        max_shard_bytes=max_shard_size,
        max_error=max_error,
        jobs=jobs,
        allow_nonfinite=allow_nonfinite,
    )
    recipe, outputs = plan(scan(roots, config), request)
    if recipe is not None:
        execute(recipe, overwrite=overwrite)
    return outputs


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
