"""The search for tags that explain the snapshots better than those told."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from phema_cli.solver.evidence.alternatives import PRESETS, Span, mistakes, near, shifted
from phema_cli.solver.evidence.laws import Hypothesis, Law, Series, power, told
from phema_cli.solver.evidence.reduction import Reduced
from phema_cli.solver.evidence.scoring import Answers, Score, answers, possible, score

#: P up to which answers count as the same, and a tag_error up to which tags are confirmed.
LOOSE = 0.1
#: steps of the compass search, in the logarithms of scales and as fractions of the last time.
_STEPS = (0.2, 0.1, 0.05)
#: moves of one compass search at most: each is a step of at least 5 %.
_MOVES = 24
#: kinds of alternatives that are refined, and how far L of one may lie below the best, unrefined.
_KINDS, _REACH = 3, 30.0
#: relative distance up to which a scale is taken for a number in use, and what L that may cost.
_SNAP, _SNAP_GAIN = 0.08, 2.0
_NICE = tuple(m * 10.0**-k for k in range(1, 7) for m in (1.0, 2.0, 5.0))


class Search:
    """Hypotheses about the tags of a run, each scored once.

    Attributes:
        series: the n snapshots.
        reduced: their sample, in the order of the series.
        fixed: series, by number, whose laws are known and not to be changed.
        told: the score of the tags as told; None where it can't be computed.
    """

    def __init__(
        self, series: Sequence[Series], reduced: Reduced, fixed: frozenset[int] = frozenset()
    ) -> None:
        self.series = series
        self.reduced = reduced
        self.fixed = fixed
        self.span = Span(min(s.times[0] for s in series), max(s.times[-1] for s in series))
        self._tried: dict[Hypothesis, Score | None] = {}
        self._told = told(series)
        self.told = self._tried[self._told] = score(self._told, series, reduced)

    @property
    def size(self) -> int:
        """Number of snapshots."""
        return len(self.reduced.root)

    @property
    def tried(self) -> list[Score]:
        """All scores of alternatives, best first."""
        found = [s for h, s in self._tried.items() if s is not None and h != self._told]
        return sorted(found, key=lambda s: s.score)

    def gain(self, found: Score) -> float:
        """L: n times the mean by which a hypothesis' log score is better than that of the tags."""
        return math.inf if self.told is None else self.size * (self.told.score - found.score)

    def harm(self, found: Answers, own: Answers) -> float:
        """P: how far the answers differ, over the distance of the first; see :class:`Answers`."""
        return found.harm(own, self.reduced.root)

    def score(self, hypothesis: Hypothesis) -> Score | None:
        """The score of a hypothesis, computed when first asked for."""
        if hypothesis not in self._tried:
            fits = self._keeps(hypothesis) and possible(hypothesis, self.series)
            found = score(hypothesis, self.series, self.reduced) if fits else None
            self._tried[hypothesis] = found
        return self._tried[hypothesis]

    def _keeps(self, hypothesis: Hypothesis) -> bool:
        """Whether a hypothesis leaves known laws as they are."""
        return all(hypothesis.laws[k] == self._told.laws[k] for k in self.fixed)

    def best(self, hypotheses: Iterable[Hypothesis]) -> Score | None:
        """The best of some hypotheses."""
        scores = (self.score(h) for h in hypotheses)
        return min((s for s in scores if s is not None), key=lambda s: s.score, default=None)

    def explore(self) -> None:
        """Try what people do wrong, and look around the best, the tags as told included."""
        self.best(mistakes(self._told, self.span))
        self.best(shifted(self._told, self.span))
        found = self.best(self._tried)
        if found is not None:
            self.refine(found)

    def explain(self, *, offsets: bool = True) -> None:
        """Refine the best alternative of each kind, if wished also with an offset of the times."""
        for found in self.by_kind()[:_KINDS]:
            refined = self.refine(found)
            offset = None
            if offsets and not found.hypothesis.offset:
                offset = self.best(shifted(refined.hypothesis, self.span))
            if offset is not None and offset.score < refined.score:
                refined = self.refine(offset)
            self.best([self._rounded(refined.hypothesis)])

    def by_kind(self) -> list[Score]:
        """The best alternative of each kind that is not far from the best of all, best first."""
        kinds: dict[Hashable, Score] = {}
        tried = self.tried
        for found in tried:
            if self.size * (found.score - tried[0].score) <= _REACH:
                kinds.setdefault(found.hypothesis.kind, found)
        return list(kinds.values())

    def ranked(self) -> list[tuple[Score, Answers]]:
        """The best of each kind and what it gives, best first."""
        return [(found, answers(found, self.series)) for found in self.by_kind()]

    def lead(self, ranked: Sequence[tuple[Score, Answers]]) -> float:
        """L by which the first of these beats all whose answers differ from its own."""
        best, given = ranked[0]
        rivals = [found.score for found, other in ranked[1:] if self.harm(other, given) > LOOSE]
        return self.size * (min(rivals) - best.score) if rivals else math.inf

    def refine(self, start: Score) -> Score:
        """Compass search: from a hypothesis to its best neighbour until none is better."""
        best, moves = start, 0
        for step in _STEPS:
            while moves < _MOVES:
                found = self.best(self._around(best.hypothesis, step))
                if found is None or found.score >= best.score:
                    break
                best, moves = found, moves + 1
        return best

    def _around(self, h: Hypothesis, step: float) -> Iterable[Hypothesis]:
        """Neighbours of a hypothesis."""
        for factor in (math.exp(step), math.exp(-step)):
            yield from near(h, factor)
        if h.offset:
            for sign in (1, -1):
                yield replace(h, offset=h.offset + sign * step * (self.span.last + h.offset))

    def settle(self, found: Score) -> Score:
        """The same in numbers that people use, where these are as good."""
        rounded = self.score(self._rounded(found.hypothesis))
        if rounded is None or self.size * (rounded.score - found.score) > _SNAP_GAIN:
            return found
        return rounded

    def _rounded(self, h: Hypothesis) -> Hypothesis:
        """A hypothesis with its scales moved to numbers in use, where those are near."""
        laws = (law if k in self.fixed else _rounded(law) for k, law in enumerate(h.laws))
        return replace(h, laws=tuple(laws))


def _rounded(law: Law) -> Law:
    """The nearest law of a whole gamma, of EDM2, or of a decay that is written in few digits."""
    if law.kind == "power":
        whole = power(float(max(1, round(law.scale - 1))))
        numbers = [whole.scale, *(power(gamma).scale for gamma in PRESETS[1])]
    elif law.averages:
        numbers = [-math.log1p(-n) for n in _NICE]
    else:
        return law
    nearest = min(numbers, key=lambda n: abs(math.log(n / law.scale)))
    return replace(law, scale=nearest) if abs(nearest / law.scale - 1) < _SNAP else law
