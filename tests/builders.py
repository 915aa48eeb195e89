"""Builds what tests need: trajectories, snapshots on disk, and runs of the console script."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import phema_cli
from phema_cli.formats.base import Checkpoint
from phema_cli.profiles import PowerProfile
from phema_cli.request import Request
from phema_cli.snapshots import scan
from phema_cli.snapshots.base import Snapshot
from phema_cli.snapshots.files import Candidate
from phema_cli.snapshots.reading import open_checkpoint
from phema_cli.snapshots.scan import Scan
from phema_cli.solver import Figures, Solution
from phema_cli.solver.movement import nominal
from phema_cli.solver.system import evaluate
from phema_cli.synthesis.execute import execute as execute_recipe
from phema_cli.synthesis.names import Placed
from phema_cli.synthesis.recipe import Recipe, assemble
from tests import warm
from tests.inprocess import called
from tests.verified import verify_output, verify_run

PHEMA = warm.PHEMA


def read_index(path: Path, key: str | None = None) -> Checkpoint:
    """The one checkpoint that a file holds, whatever its format."""
    return open_checkpoint(Candidate.at(path, PurePosixPath(path.name), path.parent.name), key)


@dataclass(frozen=True)
class Run:
    """What a run of the console script gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def phema(
    *arguments: object,
    cwd: Path | None = None,
    verified: bool = True,
    process: bool = False,
    forked: bool = False,
    **environment: str,
) -> Run:
    """Run the console script as a user does, without a terminal.

    Args:
        arguments: the command line behind ``phema``.
        cwd: where it is called; here by default.
        verified: whether all that a synthesis writes is verified in full.
        process: in a process of its own, where its start is the point.
        forked: in one that is forked, with torch loaded.
        environment: variables that are set besides.
    """
    given = [str(a) for a in arguments]
    seen = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    # A test of several workers says how many.
    seen |= {"OMP_NUM_THREADS": "1", "PHEMA_JOBS": "1"} | environment
    call = _started if process else _forked if forked else called
    done = Run(*call(given, cwd, seen))
    if verified and done.code == 0:
        verify_run(given, done.out, cwd, environment)
    return done


def _started(
    arguments: Sequence[str], cwd: Path | None, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """What the console script gives in a process of its own."""
    done = subprocess.run(
        [str(PHEMA), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def _forked(
    arguments: Sequence[str], cwd: Path | None, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """What it gives in a process that is forked."""
    done = warm.run([PHEMA, *arguments], cwd=cwd, env=environment)
    return done.returncode, done.stdout, done.stderr


def run(*arguments: object, **options: Any) -> Run:
    """``phema``, which must end well."""
    done = phema(*arguments, **options)
    assert done.code == 0, done.err or done.out[-1000:]
    return done


def synthesize(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **options: Any
) -> list[Path]:
    """``phema_cli.synthesize``, and what it writes is verified in full."""
    outputs = phema_cli.synthesize(paths, **options)
    roots = [paths] if isinstance(paths, str | os.PathLike) else paths
    found = scan(roots, options.get("config"))
    for path in outputs:
        verify_output(path, found)
    return outputs


def execute(recipe: Recipe, **options: Any) -> None:
    """``phema_cli.synthesis.execute.execute``, and what it writes is verified in full."""
    execute_recipe(recipe, **options)
    for output in recipe.outputs:
        verify_output(output.path, Scan(recipe.sources, ()))


def recipe_of(snapshots: Sequence[Snapshot], weights: Any, paths: Any, **options: Any) -> Recipe:
    """A recipe with weights of the test's own, and options of a request."""
    weights = np.asarray(weights, dtype=float)
    figures = tuple(Figures(0.0, None, 0.0, 0.0, float(s), 1.0) for s in weights.sum(axis=0))
    targets = [PowerProfile(7.0 + k, snapshots[-1].tag.step) for k in range(weights.shape[1])]
    movement = nominal(evaluate([s.tag.profile for s in snapshots], targets), 0.0)
    solution = Solution(weights, figures, movement)
    request, found = Request(method="test", **options), Scan(tuple(snapshots), ())
    placed = Placed("safetensors", list(paths), [*range(len(targets))], None)
    return assemble(found, targets, solution, placed, request, step=len(snapshots))


def replacing(recipe: Recipe) -> Recipe:
    """The recipe with outputs that replace those that exist."""
    return replace(recipe, request=replace(recipe.request, overwrite=True))


def ema_weights(gamma: float, step: int, at: np.ndarray) -> np.ndarray:
    """Weights of the updates at the integer times ``at`` in the EMA of ``gamma`` at ``step``."""
    profile = PowerProfile(gamma, float(step))
    return profile.cdf(at.astype(float)) - profile.cdf(at - 1.0)


def write_run(
    directory: Path,
    *,
    gammas: tuple[float, ...] = (5.0, 10.0),
    steps: tuple[int, ...] = (25, 50, 75, 100),
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (4, 3),
    seed: int = 0,
) -> np.ndarray:
    """Write the exact EMAs of a random walk as snapshots; returns the walk, (last step, *shape).

    The tensors are ``w`` (averaged), ``twin`` (equal everywhere) and ``count`` (an integer, the
    step).
    """
    random = np.random.default_rng(seed)
    walk = random.standard_normal((steps[-1], *shape)).cumsum(axis=0) * 0.01 + 1
    at = np.arange(1, steps[-1] + 1)
    directory.mkdir(parents=True, exist_ok=True)
    for gamma in gammas:
        for step in steps:
            average = np.tensordot(ema_weights(gamma, step, at), walk, axes=1)
            tensors = {
                "w": torch.from_numpy(average).to(dtype),
                "twin": torch.linspace(-1, 1, 7).to(dtype),
                "count": torch.tensor(step),
            }
            name = f"ema-step{step:07d}-gamma{gamma:g}.safetensors"
            metadata = {"gamma": repr(gamma), "step": str(step), "format": "pt"}
            save_file(tensors, directory / name, metadata)
    return walk
