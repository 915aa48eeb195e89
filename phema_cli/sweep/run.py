"""Sweeps: targets are made in batches and evaluated, and the best is searched for."""

import math
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from phema_cli.errors import UsageError
from phema_cli.formats.base import PARTIAL
from phema_cli.snapshots.scan import Scan
from phema_cli.solver.search import Limits, next_scales
from phema_cli.sweep.evaluation import Result, Workers
from phema_cli.sweep.outcome import Curve, Outcome, found
from phema_cli.sweep.request import SweepRequest
from phema_cli.sweep.results import Record, Results
from phema_cli.sweep.targets import Planner, Target
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.layout import is_complete, remove_checkpoint
from phema_cli.synthesis.recipe import Recipe
from phema_cli.system.files import free_bytes, writing
from phema_cli.system.pools import Progress

#: part of the free disk that outputs may take where nobody sets a limit.
_FREE_PART = 0.9


class Listener(Protocol):
    """Whom a sweep tells what it does."""

    def begun(self, planner: Planner, outcome: Outcome, left: int) -> None:
        """All is planned: what is known of an earlier run, and how many evaluations are left."""
        ...

    def synthesizing(self, recipe: Recipe) -> AbstractContextManager[Progress | None]:
        """Outputs are about to be made."""
        ...

    def waiting(self, running: Sequence[str], left: int) -> None:
        """Targets are being evaluated; so many evaluations are left, these too. Now and then."""
        ...

    def evaluated(self, record: Record, metric: float | None, outcome: Outcome, left: int) -> None:
        """An evaluation is finished and gave this; so many are left, those that run included."""
        ...


def sweep(scan: Scan, asked: SweepRequest, listener: Listener) -> Outcome:
    """Evaluate targets and search for the best; resume from the results of an earlier run.

    Without targets in the request a grid over the sigma_rel that the snapshots reach is evaluated.

    Raises:
        PhemaError: the snapshots, the targets or the options make no sense, or the disk failed. An
            evaluation that fails is a result, not an error.
    """
    planner = Planner(scan, asked)
    # What can't be planned is not begun.
    targets = planner.targets()
    planner.check_room(targets)
    folder = planner.folder
    with (
        closing(Results(folder, planner.identity(), overwrite=asked.overwrite)) as results,
        Workers[Job](planner.evaluator, asked.parallel) as workers,
    ):
        # Outputs of results that are forgotten go too.
        for name in results.stale:
            remove_checkpoint(folder / name, planner.beside)
            shutil.rmtree(folder / (name + PARTIAL), ignore_errors=True)
        return _Run(planner, results, listener, workers).search(targets)


#: a target, and which of its evaluations.
Job = tuple[Target, int]


class _Run:
    """A sweep from the results so far to the last one."""

    def __init__(
        self, planner: Planner, results: Results, listener: Listener, workers: Workers[Job]
    ) -> None:
        self._planner = planner
        self._asked = planner.asked
        self._results = results
        self._listener = listener
        self._workers = workers
        self._waiting: list[Target] = []

    def search(self, targets: Sequence[Target]) -> Outcome:
        """Evaluate what is not known yet, and further points around the best."""
        records = self._results.records
        for target in targets:
            if target.name in records:
                # An earlier run may not have known it.
                records[target.name] = replace(records[target.name], baseline=target.baseline)
        given = {t.name for t in targets}
        begun = [r for r in records.values() if r.refined and r.target not in given]
        self._waiting = [t for t in targets if self._missing(t.name)]
        self._waiting += self._planner.again([r for r in begun if self._missing(r.target)])
        for target in self._waiting:
            if target.name in records:
                records[target.name] = records[target.name].tried_again()
        self._listener.begun(self._planner, self._found(), self._left())
        self._evaluate()
        while self._to_refine() > 0:
            self._waiting = self._chosen()
            if not self._waiting:
                break
            self._evaluate()
        return self._outcome(targets)

    def _to_refine(self) -> int:
        """How many further points there may be."""
        refined = sum(r.refined for r in self._results.records.values())
        return max(0, self._planner.refine - refined)

    def _left(self) -> int:
        """How many evaluations are left, at most."""
        records = self._results.records
        chosen = sum(t.refined and t.name not in records for t in self._waiting)
        beyond = max(0, self._to_refine() - chosen) * self._asked.repeat
        return sum(len(self._missing(t.name)) for t in self._waiting) + beyond

    def _missing(self, name: str) -> Sequence[int]:
        """Which evaluations of a target are left."""
        record = self._results.records.get(name)
        if record is None:
            return range(self._asked.repeat)
        if record.failure is not None and not self._asked.retry_failed:
            return ()
        return record.missing(self._asked.repeat)

    def _found(self) -> Outcome:
        """What is known by now."""
        records = self._results.records.values()
        return found(records, self._planner.end, maximize=self._asked.maximize)

    def _chosen(self) -> list[Target]:
        """The points that tell most about the best, as many as can be evaluated at a time."""
        for curve in self._found().curves:
            limits = self._limits(curve)
            if limits is None:
                continue
            scales = next_scales(
                curve.points,
                limits,
                left=self._to_refine(),
                count=self._asked.parallel,
                maximize=self._asked.maximize,
            )
            targets = self._planner.of_lengths(curve.family, scales)
            new = [t for t in targets if t.name not in self._results.records]
            if new:
                return new
        return []

    def _limits(self, curve: Curve) -> Limits | None:
        """The lengths that the snapshots allow, and those that were evaluated nevertheless."""
        scales = [p.scale for p in curve.points if p.metric is not None]
        if len(scales) < 2:  # noqa: PLR2004 - one length says nothing of where others are better
            return None
        allowed = self._planner.reach(curve.family).limits
        if allowed is not None:
            scales += [allowed.low, allowed.high]
        return curve.family.limits(scales)

    def _evaluate(self) -> None:
        """Make and evaluate the targets that wait, batch by batch."""
        self._tidy()
        while self._waiting:
            batch = self._batch(self._waiting)
            self._make(batch)
            # All targets once, then all of them again: the first results come early.
            jobs = [(target, k) for target in batch for k in self._missing(target.name)]
            jobs.sort(key=lambda job: job[1])
            while jobs or self._workers.jobs:
                while jobs and not self._workers.is_full:
                    self._start(*jobs.pop(0))
                for (target, repeat), result in self._workers.ended(self._wait):
                    self._add(target, repeat, result)
                    if result.failure is not None:
                        jobs = [job for job in jobs if job[0].name != target.name]
                    busy = [job[0].name for job in (*jobs, *self._workers.jobs)]
                    self._waiting = [
                        t for t in self._waiting if t.name != target.name or t.name in busy
                    ]
                    self._tidy()

    def _start(self, target: Target, repeat: int) -> None:
        """Start an evaluation on a worker that is free, with what the placeholders stand for."""
        power = target.power
        values = {
            "path": str(target.path),
            "gamma": "nan" if power is None else f"{power.gamma:.12g}",
            "sigma_rel": "nan" if power is None else f"{power.sigma_rel:.12g}",
            "step": f"{self._planner.step:.12g}",
            "target": target.profile.label,
            "repeat": str(repeat),
        }
        self._workers.start((target, repeat), values)

    def _wait(self) -> None:
        """Tell what runs."""
        running = [target.profile.label for target, _ in self._workers.jobs]
        self._listener.waiting(running, self._left())

    def _add(self, target: Target, repeat: int, result: Result) -> None:
        """Record an evaluation: on the disk before the output goes, so a kill loses nothing."""
        before = self._results.records.get(target.name) or _empty(target)
        self._results.add(before.added(repeat, result))
        record = self._results.records[target.name]
        self._listener.evaluated(record, result.metric, self._found(), self._left())

    def _batch(self, left: Sequence[Target]) -> list[Target]:
        """The next targets that are made in one pass.

        A batch that a kill has interrupted is that again, so that the pass goes on; outputs that
        are there but not evaluated come next.
        """
        begun = [t for t in left if t.path.name in self._results.batch]
        if _is_begun(begun):
            return begun
        ready = [t for t in left if t.path.name in self._known() and is_complete(t.path)]
        return ready or list(left[: self._room(max(t.size_bytes for t in left))])

    def _room(self, size_bytes: int) -> int:
        """How many outputs of that size there is room for."""
        folder, limit = self._planner.folder, self._asked.max_disk
        if limit is None:
            with writing(folder):
                free = free_bytes(folder)
            # A file system that does not say what is free is taken to have room for all.
            return sys.maxsize if free is None else max(1, int(_FREE_PART * free) // size_bytes)
        kept = sum(is_complete(folder / name) for name in self._known())
        return max(1, limit // size_bytes - kept)

    def _make(self, batch: Sequence[Target]) -> None:
        """Synthesize what is not there yet, in one pass."""
        known = self._known()
        there = [t for t in batch if is_complete(t.path)]
        foreign = [t.path for t in batch if t.path.exists() and t.path.name not in known]
        if foreign and not self._asked.overwrite:
            raise UsageError(
                "exists already", where=foreign[0], remedy="choose another -o or pass --overwrite"
            )
        if len(there) == len(batch) and not foreign and not _is_begun(batch):
            return
        recipe = self._planner.recipe(batch)
        self._results.begin([t.path.name for t in batch])
        with self._listener.synthesizing(recipe) as progress:
            execute(recipe, progress=progress, processes=True)

    def _known(self) -> set[str]:
        """Names of the outputs that are, or were, this sweep's."""
        return {*self._results.batch, *(r.file for r in self._results.records.values())}

    def _tidy(self) -> None:
        """Remove outputs that were evaluated and are not to stay."""
        if self._asked.keep == "all":
            return
        staying = {t.path.name for t in self._waiting}
        best = self._found().best if self._asked.keep == "best" else None
        if best is not None:
            staying.add(best.file)
        for record in self._results.records.values():
            if record.file not in staying:
                remove_checkpoint(self._planner.folder / record.file, self._planner.beside)

    def _made_again(self, best: Record, targets: Sequence[Target]) -> Path | None:
        """The output of an evaluation whose own is gone; None where its profile is not known."""
        lost = [t for t in targets if t.name == best.target] or self._planner.again([best])
        if not lost:
            return None
        self._make(lost)
        self._tidy()
        return lost[0].path

    def _outcome(self, targets: Sequence[Target]) -> Outcome:
        """What was found; the best one's output is made again where it is gone."""
        outcome = self._found()
        best, curve = outcome.best, outcome.curve
        path = None
        if best is not None and self._asked.keep != "none":
            path = self._planner.folder / best.file
            if not is_complete(path):
                path = self._made_again(best, targets)
        limits = None if curve is None else self._planner.reach(curve.family).limits
        return replace(outcome, path=path, limits=limits)


def _is_begun(targets: Sequence[Target]) -> bool:
    """Whether a pass that makes these was interrupted."""
    return any(t.path.with_name(t.path.name + PARTIAL).exists() for t in targets)


def _empty(target: Target) -> Record:
    """The record of a target that was not evaluated yet."""
    figures, power = target.figures, target.power
    return Record(
        target=target.name,
        profile=target.profile.label,
        gamma=None if power is None else power.gamma,
        # Without the noise of its way through gamma: searches compare and people read it.
        sigma_rel=None if power is None else float(f"{power.sigma_rel:.12g}"),
        metric=None,
        failure=None,
        seconds=0.0,
        refined=target.refined,
        file=target.path.name,
        verdict=figures.verdict,
        expected_error=_finite(figures.expected_error),
        sigma_error=_finite(figures.sigma_error),
        baseline=target.baseline,
    )


def _finite(value: float | None) -> float | None:
    """A number that JSON has."""
    return value if value is not None and math.isfinite(value) else None
