"""The search for tags that explain the snapshots better than those told."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import product

from phema_cli.solver.evidence.alternatives import PRESETS, Span, mistakes, near, shifted
from phema_cli.solver.evidence.laws import Hypothesis, Law, Series, as_told, power
from phema_cli.solver.evidence.reduction import Reduced
from phema_cli.solver.evidence.scoring import Answers, Score, answers, possible, score

#: P up to which answers count as the same, and a tag_error up to which tags are confirmed.
LOOSE = 0.1
#: steps of the compass search, in the logarithms of scales and as fractions of the last time.
_STEPS = (0.2, 0.1, 0.05)
#: the last step where numbers are to be told to people.
_FINE = 0.02
#: hypotheses that are scored at most, which keeps the whole search at a second or two, and moves of
#: one compass search.
_MOST, _MOVES = 180, 24
#: kinds of alternatives that are refined, and how far L may lie below the best before that.
_KINDS, _REACH = 4, 30.0
#: relative distance up to which a number in use is tried for a scale.
_SNAP = 0.16
#: gamma + 1, and ``-ln beta``, of numbers that people use.
_POWERS = tuple(power(gamma).scale for gamma in (*range(1, 21), *PRESETS[1]))
_RATES = tuple(-math.log1p(-m * 10.0**-k) for k in range(1, 7) for m in (1, 2, 4, 5))


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
        self._told = as_told(series)
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

    def worth(self, found: Score) -> float:
        """L less Schwarz's ln n for each number that is neither told nor one that people use.

        Tags are numbers that somebody chose: one that is found by turning until it fits best has to
        fit better by as much.
        """
        h = found.hypothesis
        known = [law.scale for law in self._told.laws]
        free = sum(
            not any(math.isclose(law.scale, n) for n in (*known, *_numbers(law))) for law in h.laws
        )
        return self.gain(found) - math.log(self.size) * (free + (h.offset != 0))

    def harm(self, found: Answers, own: Answers) -> float:
        """P: how far the answers differ, over the distance of the first; see :class:`Answers`."""
        return found.harm(own, self.reduced.root)

    def score(self, hypothesis: Hypothesis) -> Score | None:
        """The score of a hypothesis, computed when first asked for."""
        if hypothesis not in self._tried:
            if len(self._tried) >= _MOST:
                return None
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

    def explain(self, fits: Callable[[Score], bool], *, offsets: bool = True) -> None:
        """Refine the best alternatives, those of other kinds only where they may still be better.

        Args:
            fits: whether an alternative explains the snapshots by itself.
            offsets: whether times may be off.
        """
        if offsets:
            self._slide()
        for k, found in enumerate(self.by_kind(lambda s: -s.score)[:_KINDS]):
            best = self.tried[0]
            if k and fits(best) and self.size * (found.score - best.score) > _REACH:
                continue
            refined = self.refine(found, fine=True)
            self.best(self._rounded(refined.hypothesis))
            if offsets and not (fits(refined) or found.hypothesis.offset):
                self._improve(shifted(refined.hypothesis, self.span), refined)

    def _improve(self, hypotheses: Iterable[Hypothesis], start: Score) -> None:
        """Refine the best of some hypotheses if it is better than where they came from."""
        found = self.best(hypotheses)
        if found is not None and found.score < start.score:
            self.refine(found, fine=True)

    def _slide(self) -> None:
        """Search for an offset of the times under the tags as told: its optimum is narrow."""
        best = self.best(shifted(self._told, self.span))
        if best is not None:
            self._descend(best, self._moved, (*_STEPS, _FINE, _FINE / 2))

    def by_kind(self, worth: Callable[[Score], float]) -> list[Score]:
        """The alternative of each kind that is worth most, the best kind first."""
        kinds: dict[Hashable, Score] = {}
        for found in sorted(self.tried, key=worth, reverse=True):
            kinds.setdefault(found.hypothesis.kind, found)
        return list(kinds.values())

    def ranked(self) -> list[tuple[Score, Answers]]:
        """The alternative of each kind that is worth most, and what it gives, the best first."""
        found = self.by_kind(self.worth)[:_KINDS]
        return [(s, answers(s, self.series)) for s in found]

    def lead(self, ranked: Sequence[tuple[Score, Answers]]) -> float:
        """L by which the first of these beats all whose answers differ from its own."""
        best, given = ranked[0]
        rivals = [found.score for found, other in ranked[1:] if self.harm(other, given) > LOOSE]
        return self.size * (min(rivals) - best.score) if rivals else math.inf

    def refine(self, start: Score, *, fine: bool = False) -> Score:
        """Compass search: from a hypothesis to its best neighbour until none is better."""
        return self._descend(start, self._around, (*_STEPS, _FINE) if fine else _STEPS)

    def _descend(
        self,
        start: Score,
        around: Callable[[Hypothesis, float], Iterable[Hypothesis]],
        steps: Sequence[float],
    ) -> Score:
        """From a hypothesis to its best neighbour, in ever smaller steps."""
        best, moves = start, 0
        for step in steps:
            while moves < _MOVES:
                found = self.best(around(best.hypothesis, step))
                if found is None or found.score >= best.score:
                    break
                best, moves = found, moves + 1
        return best

    def _around(self, h: Hypothesis, step: float) -> Iterable[Hypothesis]:
        """Neighbours of a hypothesis."""
        for factor in (math.exp(step), math.exp(-step)):
            yield from near(h, factor)
        if h.offset:
            yield from self._moved(h, step)

    def _moved(self, h: Hypothesis, step: float) -> Iterable[Hypothesis]:
        """A hypothesis with its offset moved either way."""
        for sign in (1, -1):
            yield replace(h, offset=h.offset + sign * step * (self.span.last + h.offset))

    def _rounded(self, h: Hypothesis) -> Iterable[Hypothesis]:
        """A hypothesis with its scales moved to numbers that people use, where those are near."""
        choices = [[law] if k in self.fixed else _rounded(law) for k, law in enumerate(h.laws)]
        return (replace(h, laws=laws) for laws in product(*choices))


def _numbers(law: Law) -> Sequence[float]:
    """Scales that people use: whole gammas, EDM2's, decays written in few digits; 0 of raw."""
    if law.kind == "power":
        return _POWERS
    return _RATES if law.averages else (law.scale,)


def _rounded(law: Law) -> list[Law]:
    """The law, and those of the numbers that people use next to it."""
    if not law.averages:
        return [law]
    near = [n for n in _numbers(law) if abs(n / law.scale - 1) < _SNAP]
    near.sort(key=lambda n: abs(math.log(n / law.scale)))
    return [law, *(replace(law, scale=n) for n in near[:2])]
