"""Single snapshots that stand out: the same as others bit by bit, or foreign to all others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.laws import Series, as_tagged
from phema_cli.solver.evidence.reduction import Reduced, alternating_parts, reduce
from phema_cli.solver.evidence.scoring import error_ratios, score
from phema_cli.solver.movement import Movement

#: ratio ``l_i/v_i`` from which a snapshot is of another run, if others show the movement.
#: With right tags 8 to 64 times of 12 runs gave at most 65, of all but transformers that SGD trains
#: 5.5. Files of another run gave 280 to 6e9 beside another average or raw weights; the first two
#: of a single average of 8 or 16 gave 22 to 70, all later ones over 200.
FAR = 200.0
#: the same for a snapshot from before all those that show the movement: how much weights moved at
#: first is a guess. With right tags a larger run gave 182, files of another run 20 to 9e3.
FAR_AT_FIRST = 500.0
#: one in so many snapshots is blamed at most, and at least so many may be: of more foreign ones
#: some may agree with each other, and leaving out right ones explains as much.
_SHARE, _FEW = 10, 2
#: elements that are enough to see a file of another run.
_ELEMENTS = 1 << 13


@dataclass(frozen=True, slots=True)
class Findings:
    """What of the sampled elements is the same to the last bit.

    Attributes:
        still: series, by number, that hold the same values in all of their snapshots, two at least.
        copies: pairs of an average's series and a raw one that hold the same values at all times
            that they share, two at least, while these move.
        alike: groups of rows of the sample that are equal, the above apart: one file twice under
            two names, or weights that stood still.
        stalled: series, by number, of which many elements stand still as in averages that are kept
            in 16 bits.
    """

    still: tuple[int, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    alike: tuple[tuple[int, ...], ...] = ()
    stalled: tuple[int, ...] = ()

    @property
    def contradict(self) -> bool:
        """Whether they contradict any tags: an average that is not one."""
        return bool(self.still or self.copies or self.stalled)


def find_identical(series: Sequence[Series], sample: Sample) -> Findings:
    """Compare all snapshots bit by bit, in time linear in the sample."""
    rows = [row for s in series for row in s.rows]
    digests = {
        row: blake2b(np.ascontiguousarray(sample.values[row]).data, digest_size=16).digest()
        for row in rows
    }
    still = [
        k
        for k, s in enumerate(series)
        if len(s.rows) > 1 and len({digests[row] for row in s.rows}) == 1
    ]
    copies = _copies(series, digests, still)
    explained = {row for k in (*still, *(k for k, _ in copies)) for row in series[k].rows}
    groups: dict[bytes, list[int]] = {}
    for row in rows:
        if row not in explained:
            groups.setdefault(digests[row], []).append(row)
    alike = tuple(tuple(sorted(group)) for group in groups.values() if len(group) > 1)
    return Findings(tuple(still), tuple(copies), alike)


def _copies(
    series: Sequence[Series], digests: dict[int, bytes], still: Sequence[int]
) -> list[tuple[int, int]]:
    """Series of averages that equal a raw one."""
    found = []
    for raw, weights in enumerate(series):
        at = dict(zip(weights.times, weights.rows, strict=True))
        for k, other in enumerate(series):
            if weights.law.kind != "raw" or other.law.kind == "raw" or {raw, k} & set(still):
                continue
            shared = [
                (row, at[t]) for t, row in zip(other.times, other.rows, strict=True) if t in at
            ]
            moved = len({digests[row] for row, _ in shared}) > 1
            if moved and all(digests[a] == digests[b] for a, b in shared):
                found.append((k, raw))
    return found


def find_strays(series: Sequence[Series], sample: Sample) -> tuple[int, ...]:
    """The few snapshots that others do not predict at all: files of another run or another step.

    All snapshots are dealt in turns into parts. Each part shows how the weights moved to another
    one, so that a file of another run can't hide in what it has added to the fit itself. The
    farthest snapshot of a part is left out until none is far off.

    Returns:
        Their rows; none where many are, so that it is not they who are wrong.
    """
    most = max(_FEW, sum(len(s.rows) for s in series) // _SHARE)
    found: set[int] = set()
    rest = list(series)
    # Strays may have hidden others from each other.
    while more := _strays(rest, sample):
        found.update(more)
        rest = [s.without(found) for s in rest]
        if len(found) > most or not all(s.rows for s in rest):
            return ()
    return tuple(sorted(found))


def _strays(series: Sequence[Series], sample: Sample) -> list[int]:
    """The rows that the movement of other parts does not predict."""
    parts: list[_Part | None] = []
    for some in alternating_parts(series):
        rows = [row for s in some for row in s.rows]
        reduced = reduce(sample, rows, _ELEMENTS)
        parts.append(None if reduced is None else _Part(some, rows, reduced))
    found: list[int] = []
    for part, other in zip(parts, parts[1:] + parts[:1], strict=True):
        if part is not None and other is not None and (movement := other.movement()) is not None:
            found += part.strays(movement, min(t for s in other.series for t in s.times))
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the snapshots, their rows and their sample."""

    series: list[Series]
    rows: list[int]
    reduced: Reduced

    def movement(self, out: Sequence[int] = ()) -> Movement | None:
        """How the weights moved by these snapshots but for some; None where no fit exists."""
        series, reduced = self._without(out)
        scored = score(as_tagged(series), series, reduced)
        return None if scored is None else scored.movement

    def strays(self, movement: Movement, begin: float) -> list[int]:
        """The rows that neither the movement of others nor that of the rest predicts.

        ``begin`` is the first time of those that showed the movement.
        """
        far = [FAR_AT_FIRST if t < begin else FAR for s in self.series for t in s.times]
        out: list[int] = []
        while len(out) < len(self.rows) - 1:
            ratios = {i: r / far[i] for i, r in self._ratios(movement, out).items()}
            if max(ratios.values(), default=0.0) < 1:
                break
            out.append(max(ratios, key=ratios.__getitem__))
        rest = self.movement(out) or movement
        # A snapshot that only stood beside others that do not belong may belong itself.
        return [
            self.rows[i]
            for i in out
            if all(
                self._ratios(each, [j for j in out if j != i]).get(i, 0.0) >= far[i]
                for each in (movement, rest)
            )
        ]

    def _ratios(self, movement: Movement, out: Sequence[int]) -> dict[int, float]:
        """By number, ``l_i/v_i`` of all but those left out; empty where it has no solution."""
        series, reduced = self._without(out)
        ratios = error_ratios(movement, series, reduced)
        kept = [i for i in range(len(self.rows)) if i not in out]
        return {} if ratios is None else dict(zip(kept, ratios.tolist(), strict=True))

    def _without(self, out: Sequence[int]) -> tuple[list[Series], Reduced]:
        """The snapshots and their sample without some, by number; no series is left empty."""
        rest = [s.without({self.rows[i] for i in out}) for s in self.series]
        kept = [i for i in range(len(self.rows)) if i not in out]
        return [s for s in rest if s.rows], replace(self.reduced, root=self.reduced.root[kept])
