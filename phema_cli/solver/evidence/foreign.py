"""Which few snapshots do not belong to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.choosing import parts_of
from phema_cli.solver.evidence.laws import Series, as_told
from phema_cli.solver.evidence.reduction import Reduced, reduce, without
from phema_cli.solver.evidence.scoring import foretold_by, score
from phema_cli.solver.movement import Movement

#: ratio ``l_i/v_i`` from which a snapshot is of another run if the movement is known from others.
#: With right tags 8 to 64 times of 12 runs gave at most 65, of all but transformers that SGD trains
#: 5.5. Files of another run gave 280 to 6e9 beside another average or raw weights; the first two
#: of a single average of 8 or 16 gave 22 to 70, all later ones over 200.
FAR = 200.0
#: the same for a snapshot from before all those that the movement is known from: how much weights
#: moved at first is a guess. With right tags a larger run gave 182, files of another run 20 to 9e3.
FAR_AT_FIRST = 500.0
#: one in so many snapshots is blamed at most, and at least so many may be: of more foreign ones
#: some may agree with each other, and leaving out right ones explains as much.
_SHARE, _FEW = 10, 2
#: elements that are enough to see a file of another run.
_ELEMENTS = 1 << 13


def strays(series: Sequence[Series], sample: Sample) -> tuple[int, ...]:
    """The few snapshots that others do not foretell at all.

    Parts that take turns in time show how the weights moved, each to another: a file of another run
    can't hide in what itself has added to the fit. The farthest of a part is left out until none is
    far off.

    Args:
        series: all snapshots.
        sample: their elements.

    Returns:
        Their rows; none where many are, so that it is not they who are wrong.
    """
    few = max(_FEW, sum(len(s.rows) for s in series) // _SHARE)
    found: set[int] = set()
    rest = list(series)
    # Those that are found may have hidden others from each other.
    while more := _strays(rest, sample):
        found.update(more)
        rest = [s.without(found) for s in rest]
        if len(found) > few or not all(s.rows for s in rest):
            return ()
    return tuple(sorted(found))


def _strays(series: Sequence[Series], sample: Sample) -> list[int]:
    """The rows that the movement of other parts does not foretell."""
    parts = [_Part.of(part, sample) for part in parts_of(series)]
    movements = [part.movement() for part in parts]
    found: list[int] = []
    for k, part in enumerate(parts):
        other = (k + 1) % len(parts)
        movement = movements[other]
        if movement is not None:
            found += part.strays(movement, parts[other].begin)
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the snapshots.

    Attributes:
        series: the n snapshots.
        reduced: their sample; None where they are the same.
    """

    series: list[Series]
    reduced: Reduced | None

    @classmethod
    def of(cls, series: list[Series], sample: Sample) -> Self:
        """Snapshots with their sample."""
        return cls(series, reduce(sample, [row for s in series for row in s.rows], _ELEMENTS))

    @property
    def begin(self) -> float:
        """The first of their times."""
        return min(t for s in self.series for t in s.times)

    def movement(self, out: Sequence[int] = ()) -> Movement | None:
        """How the weights moved, as these tell but for some; None where they don't."""
        if self.reduced is None:
            return None
        series, reduced = without(self.series, self.reduced, out)
        found = score(as_told(series), series, reduced)
        return None if found is None else found.movement

    def strays(self, movement: Movement, begin: float) -> list[int]:
        """The rows of those that neither others' movement nor that of the rest foretells.

        Args:
            movement: of other snapshots.
            begin: the first of their times.
        """
        rows = [row for s in self.series for row in s.rows]
        far = [FAR_AT_FIRST if t < begin else FAR for s in self.series for t in s.times]
        out: list[int] = []
        while len(out) < len(rows) - 1:
            ratios = {i: r / far[i] for i, r in self._ratios(movement, out).items()}
            if max(ratios.values(), default=0.0) < 1:
                break
            out.append(max(ratios, key=ratios.__getitem__))
        rest = self.movement(out) or movement
        # What stood beside others that do not belong may do.
        return [
            rows[i]
            for i in out
            if all(
                self._ratios(each, [j for j in out if j != i]).get(i, 0.0) >= far[i]
                for each in (movement, rest)
            )
        ]

    def _ratios(self, movement: Movement, out: Sequence[int]) -> dict[int, float]:
        """By number, ``l_i/v_i`` of all but those left out; empty where it has no solution."""
        if self.reduced is None:
            return {}
        series, reduced = without(self.series, self.reduced, out)
        ratios = foretold_by(movement, series, reduced)
        kept = [i for i in range(len(self.reduced.root)) if i not in out]
        return {} if ratios is None else dict(zip(kept, ratios.tolist(), strict=True))
