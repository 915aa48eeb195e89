"""Sweeps: targets are made in batches, evaluated one by one, and the best is searched for."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phema_cli.errors import StorageError, UsageError
from phema_cli.formats.base import PARTIAL
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.snapshots.scan import Scan
from phema_cli.solver.search import Point, Position, next_sigma_rel, position
from phema_cli.sweep.evaluation import Result
from phema_cli.sweep.request import SweepRequest
from phema_cli.sweep.results import Record, Results
from phema_cli.sweep.targets import Planner, Target
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.layout import is_complete, remove_checkpoint
from phema_cli.synthesis.recipe import Recipe
from phema_cli.system.pools import Progress

#: part of the free disk that outputs may take where nobody sets a limit.
_FREE_PART = 0.9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep has found.

    Attributes:
        records: all evaluations, by sigma_rel, those of other profiles last.
        best: the one with the best metric, None where all failed.
        position: where the best stands among the power functions.
        path: the best one's output, None where it was not kept.
    """

    records: tuple[Record, ...]
    best: Record | None
    position: Position
    path: Path | None


class Listener(Protocol):
    """Whom a sweep tells what it does."""

    def synthesizing(self, recipe: Recipe) -> AbstractContextManager[Progress | None]:
        """Outputs are about to be made."""
        ...

    def evaluated(self, record: Record) -> None:
        """An evaluation is finished."""
        ...


def sweep(scan: Scan, asked: SweepRequest, listener: Listener) -> Outcome:
    """Evaluate targets and search for the best; go on from the results of an earlier run.

    Without targets in the request a grid over the sigma_rel that the snapshots reach is evaluated.
    Power functions alone take part in the search.

    Raises:
        PhemaError: the snapshots, the targets or the options make no sense, or the disk failed. An
            evaluation that fails is a result, not an error.
    """
    planner = Planner(scan, asked)
    # What can't be planned is not begun.
    targets = planner.targets()
    planner.check_room(targets)
    with _opened(planner) as results:
        return _Run(planner, results, listener).search(targets)


@contextmanager
def _opened(planner: Planner) -> Iterator[Results]:
    """The results' file; outputs of results that are forgotten go too."""
    folder = planner.folder
    results = Results(folder, planner.identity(), overwrite=planner.asked.overwrite)
    try:
        for name in results.stale:
            remove_checkpoint(folder / name, planner.beside)
            shutil.rmtree(folder / (name + PARTIAL), ignore_errors=True)
        yield results
    finally:
        results.close()


class _Run:
    """A sweep from the results so far to the last one.

    Args:
        planner: plans the outputs.
        results: what is known, and where what is found goes.
        listener: whom to tell.
    """

    def __init__(self, planner: Planner, results: Results, listener: Listener) -> None:
        self._planner = planner
        self._asked = planner.asked
        self._results = results
        self._listener = listener

    def search(self, targets: Sequence[Target]) -> Outcome:
        """Evaluate what is not known yet, and further points around the best."""
        records = self._results.records
        waiting = [t for t in targets if self._is_open(t.name)]
        if self._asked.retry_failed:
            failed = [r for r in records.values() if r.refined and r.failure is not None]
            given = {t.name for t in targets}
            waiting += self._planner.powers(
                [r.gamma for r in failed if r.gamma is not None and r.target not in given]
            )
        self._evaluate(waiting)
        while sum(r.refined for r in records.values()) < self._planner.refine:
            sigma_rel = next_sigma_rel(self._points(), maximize=self._asked.maximize)
            if sigma_rel is None:
                break
            self._evaluate(self._planner.powers([gamma_from_sigma_rel(sigma_rel)]))
        return self._outcome(targets)

    def _is_open(self, name: str) -> bool:
        """Whether a target is to be evaluated."""
        record = self._results.records.get(name)
        return record is None or (self._asked.retry_failed and record.failure is not None)

    def _points(self) -> list[Point]:
        """What the search knows."""
        records = self._results.records.values()
        return [Point(r.sigma_rel, r.metric) for r in records if r.sigma_rel is not None]

    def _evaluate(self, waiting: Sequence[Target]) -> None:
        """Make and evaluate targets, batch by batch."""
        left = list(waiting)
        self._tidy(left)
        while left:
            batch = self._batch(left)
            self._make(batch)
            for target in batch:
                result = self._planner.evaluator.run(self._values(target), self._asked.log)
                # On the disk before the output goes: a kill in between loses nothing.
                self._results.add(_record(target, result))
                self._listener.evaluated(self._results.records[target.name])
                left.remove(target)
                self._tidy(left)

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
            try:
                free = shutil.disk_usage(folder).free
            except OSError as error:
                raise StorageError.wrap(error, folder, "write") from error
            return max(1, int(_FREE_PART * free) // size_bytes)
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

    def _values(self, target: Target) -> dict[str, str]:
        """What the placeholders stand for."""
        power = target.profile if isinstance(target.profile, PowerProfile) else None
        return {
            "path": str(target.path),
            "gamma": "nan" if power is None else f"{power.gamma:.12g}",
            "sigma_rel": "nan" if power is None else f"{power.sigma_rel:.12g}",
            "step": f"{self._planner.step:.12g}",
            "target": target.profile.label,
        }

    def _tidy(self, left: Sequence[Target]) -> None:
        """Remove outputs that were evaluated and are not to stay."""
        if self._asked.keep == "all":
            return
        staying = {t.path.name for t in left}
        best = self._best()
        if self._asked.keep == "best" and best is not None:
            staying.add(best.file)
        for record in self._results.records.values():
            if record.file not in staying:
                remove_checkpoint(self._planner.folder / record.file, self._planner.beside)

    def _best(self) -> Record | None:
        """The evaluation with the best metric; of several, the one of the least sigma_rel."""
        sign = -1.0 if self._asked.maximize else 1.0
        metrics = [
            (sign * r.metric, *_order(r), r)
            for r in self._results.records.values()
            if r.metric is not None
        ]
        return min(metrics, key=lambda entry: entry[:-1])[-1] if metrics else None

    def _made_again(self, best: Record, targets: Sequence[Target]) -> Path | None:
        """The output of an evaluation whose own is gone; None where its profile is not known."""
        gammas = [] if best.gamma is None else [best.gamma]
        lost = [t for t in targets if t.name == best.target] or self._planner.powers(gammas)
        if not lost:
            return None
        self._make(lost)
        return lost[0].path

    def _outcome(self, targets: Sequence[Target]) -> Outcome:
        """What was found; the best one's output is made again where it is gone."""
        best = self._best()
        path = None
        if best is not None and self._asked.keep != "none":
            path = self._planner.folder / best.file
            if not is_complete(path):
                path = self._made_again(best, targets)
        records = sorted(self._results.records.values(), key=_order)
        standing = position(self._points(), maximize=self._asked.maximize)
        return Outcome(tuple(records), best, standing, path)


def _order(record: Record) -> tuple[float, str]:
    """What evaluations are sorted by."""
    return math.inf if record.sigma_rel is None else record.sigma_rel, record.profile


def _is_begun(targets: Sequence[Target]) -> bool:
    """Whether a pass that makes these was interrupted."""
    return any(t.path.with_name(t.path.name + PARTIAL).exists() for t in targets)


def _record(target: Target, result: Result) -> Record:
    """The result of a target's evaluation."""
    figures = target.figures
    power = target.profile if isinstance(target.profile, PowerProfile) else None
    return Record(
        target=target.name,
        profile=target.profile.label,
        gamma=None if power is None else power.gamma,
        # Without the noise of its way through gamma: searches compare and people read it.
        sigma_rel=None if power is None else float(f"{power.sigma_rel:.12g}"),
        metric=result.metric,
        failure=result.failure,
        seconds=result.seconds,
        refined=target.refined,
        file=target.path.name,
        verdict=figures.verdict,
        expected_error=_finite(figures.expected_error),
        sigma_error=_finite(figures.sigma_error),
    )


def _finite(value: float | None) -> float | None:
    """A number that JSON has."""
    return value if value is not None and math.isfinite(value) else None
