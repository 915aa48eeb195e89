"""What a sweep has found so far: the best evaluation, and what the curves through them say."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phema_cli.solver.search import Limits, Optimum, Point, Position, optimum
from phema_cli.sweep.families import SIGMA_REL, Family, in_unit_of, parse
from phema_cli.sweep.results import Record

#: standard errors up to which a metric is as good as the best.
_ERRORS = 2.0


@dataclass(frozen=True, slots=True)
class Curve:
    """The evaluations of one family, by their length.

    Attributes:
        family: the family.
        scales: (n,) lengths, ascending; n is at least 1.
        records: (n,) evaluations, those that failed too.
        points: (n,) what the search knows of them.
        optimum: the best length; None where all failed.
    """

    family: Family
    scales: tuple[float, ...]
    records: tuple[Record, ...]
    points: tuple[Point, ...]
    optimum: Optimum | None

    @property
    def best(self) -> Record | None:
        """The evaluation to take."""
        return None if self.optimum is None else self.records[self.optimum.best]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep has found.

    Attributes:
        records: all evaluations, by sigma_rel, those of other profiles last, by their length.
        curves: a curve for each family, that of the best first.
        best: the evaluation to take: of metrics with noise that with the best fitted metric, else
            the one with the best metric; None where all failed.
        as_good: names of the targets whose metric can't be told from that of the best.
        noise: standard deviation of an evaluation, where something shows it.
        path: the best one's output, None where it was not kept.
        limits: lengths that the snapshots allow, of the first curve's family, where they are known.
    """

    records: tuple[Record, ...]
    curves: tuple[Curve, ...]
    best: Record | None
    as_good: frozenset[str]
    noise: float | None
    path: Path | None = None
    limits: Limits | None = None

    @property
    def curve(self) -> Curve | None:
        """The curve that the best lies on, or the first one."""
        return self.curves[0] if self.curves else None

    @property
    def position(self) -> Position:
        """Where the best stands among those of its family."""
        best = None if self.curve is None else self.curve.optimum
        return "alone" if best is None else best.position


def found(records: Iterable[Record], end: float, *, maximize: bool) -> Outcome:
    """What evaluations say.

    Args:
        records: the evaluations.
        end: time of the targets, which half-lives and windows in steps depend on.
        maximize: whether the highest metric is the best.
    """
    ordered = sorted(records, key=lambda record: _order(record, end))
    sign = -1.0 if maximize else 1.0
    curves = _curves(ordered, end, maximize=maximize)
    heights = _heights(ordered, curves)
    measured = [r for r in ordered if r.target in heights]
    best = min(measured, key=lambda r: sign * heights[r.target], default=None)
    # One length alone has no curve.
    curves.sort(key=lambda curve: best not in curve.records or len(curve.records) == 1)
    # One way of evaluating has one noise; the curve with the most points knows it best.
    known = [
        (len(c.records), c.optimum.noise)
        for c in curves
        if c.optimum is not None and c.optimum.noise is not None
    ]
    noise = max(known, key=lambda one: one[0])[1] if known else _repeated(ordered)
    as_good = _as_good(ordered, heights, curves, best, noise, sign)
    return Outcome(tuple(ordered), tuple(curves), best, as_good, noise)


def _order(record: Record, end: float) -> tuple[float, str, float, str]:
    """What evaluations are sorted by: sigma_rel, then the family and the length in it."""
    one = length(record, end)
    family, scale = ("", 0.0) if one is None else (one[0].name, one[1])
    sigma_rel = math.inf if record.sigma_rel is None else record.sigma_rel
    return sigma_rel, family, scale, record.profile


def _curves(records: Sequence[Record], end: float, *, maximize: bool) -> list[Curve]:
    """The curve of each family, in the order of their names."""
    groups: dict[str, list[tuple[Family, float, Record]]] = {}
    for record in records:
        one = length(record, end)
        if one is not None:
            groups.setdefault(one[0].name, []).append((*one, record))
    curves = []
    for name in sorted(groups, key=lambda name: (name != SIGMA_REL, name)):
        # Windows are counted in steps only where all of them are.
        steps = all(family.steps for family, _, _ in groups[name])
        family = Family(name, end, steps)
        rows = [(in_unit_of(family, own, scale), record) for own, scale, record in groups[name]]
        rows.sort(key=lambda row: row[0])
        scales, members = tuple(s for s, _ in rows), tuple(r for _, r in rows)
        points = tuple(Point(s, r.metric, r.count, r.variance) for s, r in rows)
        best = optimum(points, maximize=maximize)
        curves.append(Curve(family, scales, members, points, best))
    return curves


def length(record: Record, end: float) -> tuple[Family, float] | None:
    """The family and length of an evaluation; None of one without."""
    if record.sigma_rel is not None:
        return Family(SIGMA_REL, end), record.sigma_rel
    return parse(record.profile, end)


def _heights(records: Sequence[Record], curves: Sequence[Curve]) -> dict[str, float]:
    """What counts of each evaluation: its metric, or where a curve is fitted, its height there."""
    heights = {r.target: r.metric for r in records if r.metric is not None}
    for curve in curves:
        if curve.optimum is not None and curve.optimum.fitted:
            targets = [r.target for r in curve.records if r.metric is not None]
            heights |= dict(zip(targets, curve.optimum.heights, strict=True))
    return heights


def _repeated(records: Sequence[Record]) -> float | None:
    """Standard deviation of an evaluation by repetitions alone; None where there are none."""
    pairs = [(r.variance, r.count - 1) for r in records if r.metric is not None and r.count > 1]
    freedom = sum(count for _, count in pairs)
    squares = sum((variance or 0.0) * count for variance, count in pairs)
    return math.sqrt(squares / freedom) if freedom and squares > 0 else None


def _as_good(
    records: Sequence[Record],
    heights: dict[str, float],
    curves: Sequence[Curve],
    best: Record | None,
    noise: float | None,
    sign: float,
) -> frozenset[str]:
    """The targets that can't be told from the best one: by its curve, or by their noise."""
    if best is None:
        return frozenset()
    good, judged = {best.target}, set()
    for curve in curves:
        if best in curve.records and curve.optimum is not None:
            judged = {r.target for r in curve.records}
            pairs = zip(curve.records, curve.optimum.as_good, strict=True)
            good |= {r.target for r, as_good in pairs if as_good}
    for record in records:
        if record.target in heights and record.target not in judged:
            above = sign * (heights[record.target] - heights[best.target])
            error = (noise or 0.0) * math.sqrt(1 / record.count + 1 / best.count)
            if above <= _ERRORS * error:
                good.add(record.target)
    return frozenset(good)
