"""Other tags that may explain the snapshots better: which are tried, and the search among them."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from phema_cli.profiles import Array
from phema_cli.solver.evidence.laws import RATIO, RAW, Hypothesis, Law, Series, as_tagged
from phema_cli.solver.evidence.reduction import Reduced
from phema_cli.solver.evidence.scoring import Score, answers, possible, score

#: pairs of gammas in wide use: phema's and the tutorial's, EDM2's sigma_rel 0.05 and 0.10.
PRESETS = ((5.0, 10.0), (6.937196, 16.972163))
#: caps of warm-ups in wide use, as rates per update.
CAPS = (-math.log(0.999), -math.log(0.9999))
#: factors of all scales, of each, and along the valley.
_FACTORS = (0.5, 0.8, 1.25, 2.0)
#: steps between updates where not each one updates: ema-pytorch's default, and a usual number.
EVERY = (10, 100)
#: rates of constant decays that stand for a power function, and the other way round, as
#: multiples of its retention at the last snapshot.
_RETENTIONS = (1.0, 2.0, 4.0)
#: offsets of the counter of steps: as fractions of the first snapshot's time, and of the last's.
_FIRST_OFFSETS, _LAST_OFFSETS = (-0.4,), (-0.5, -0.2, 0.2, 0.5, 1.0, 2.0)
#: growth of the decay of a warm-up ``(1 + n)/(10 + n)``, as the exponent of a power function.
_RATIO_SCALE = 9.0
#: P up to which answers count as the same, and a tag_error up to which tags are confirmed.
LOOSE = 0.1
#: steps of the compass search, in the logarithms of scales and as fractions of the last time.
_STEPS = (0.2, 0.1, 0.05)
#: the last step where people will read the numbers.
_FINE = 0.02
#: hypotheses that are scored at most, which keeps the whole search at a second or two, and moves of
#: one compass search.
_MOST, _MOVES = 180, 24
#: kinds of alternatives that are refined, and how far L may lie below the best before that.
_KINDS, _REACH = 4, 30.0
#: relative distance up to which a number in use is tried for a scale.
_SNAP = 0.16
#: gamma + 1, and ``-ln beta``, of numbers that people use.
_POWERS = tuple(gamma + 1 for gamma in (*range(1, 21), *PRESETS[1]))
_RATES = tuple(-math.log1p(-m * 10.0**-k) for k in range(1, 7) for m in (1, 2, 4, 5))


def _changed(h: Hypothesis, changes: dict[int, Law]) -> Hypothesis:
    """A hypothesis with the laws of some series changed."""
    return replace(h, laws=tuple(changes.get(i, law) for i, law in enumerate(h.laws)))


def _mapped(h: Hypothesis, change: Callable[..., Law], *numbers: float) -> Hypothesis:
    """A hypothesis with the laws of all averages changed by some numbers."""
    return replace(h, laws=tuple(change(law, *numbers) if law.averages else law for law in h.laws))


def nearby(h: Hypothesis, factor: float) -> Iterator[Hypothesis]:
    """All scales times a factor, each one, and the first along the valley.

    If all weights glide as t^p, an average of scale A lags by ``A/(A + p)``, and two of them fix
    one number only, nearly ``1/A - 1/B``: along that the data say least.
    """
    yield _mapped(h, Law.scaled, factor)
    for i in h.averages:
        yield _changed(h, {i: h.laws[i].scaled(factor)})
    match h.averages:
        case [i, j] if h.laws[i].kind == h.laws[j].kind:
            a, b = h.laws[i], h.laws[j]
            inverse = 1 / (factor * a.scale) - 1 / a.scale + 1 / b.scale
            if inverse > 0:
                yield _changed(h, {i: a.scaled(factor), j: replace(b, scale=1 / inverse)})


def mistakes(h: Hypothesis, last: float) -> Iterator[Hypothesis]:
    """What the truth may be if the tags are a mistake, apart from the counter of steps.

    ``last`` is the last time, in steps.
    """
    for every in EVERY:
        yield _mapped(h, Law.slowed, every)
        yield from (_changed(h, {i: h.laws[i].slowed(every)}) for i in h.averages)
    for factor in _FACTORS:
        yield from nearby(h, factor)
    for i, j in combinations(range(len(h.laws)), 2):
        yield _changed(h, {i: h.laws[j], j: h.laws[i]})
    yield from _other_kinds(h, last)
    yield from _presets(h)


def _other_kinds(h: Hypothesis, last: float) -> Iterator[Hypothesis]:
    """Constant decays for power functions and back, warm-ups, raw weights."""
    for retention in _RETENTIONS:
        yield _mapped(h, _constant, retention, last)
        yield _mapped(h, _power, retention, last)
    yield _mapped(h, lambda law: law if law.kind == "power" else _warm(law.scale))
    for i, law in enumerate(h.laws):
        if law.averages:
            yield _changed(h, {i: RAW})
            yield from (_changed(h, {i: _warm(cap)}) for cap in CAPS)
        elif law.kind == "raw":
            yield from (_changed(h, {i: Law("power", gamma + 1)}) for gamma in PRESETS[0])
            yield _changed(h, {i: Law("exponential", 20 / last)})


def _constant(law: Law, retention: float, last: float) -> Law:
    """The constant decay in place of a power function or a warm-up."""
    if law.kind == "power":
        return Law("exponential", retention * law.scale / last)
    return Law("exponential", law.scale) if law.kind == "warmup" else law


def _power(law: Law, retention: float, last: float) -> Law:
    """The power function in place of a constant decay or a warm-up."""
    if law.kind == "exponential":
        return Law("power", law.scale * last / retention)
    return Law("power", _RATIO_SCALE) if law.kind == "warmup" else law


def _warm(rate: float) -> Law:
    """``min(exp(-rate), (1 + n)/(10 + n))``."""
    return Law("warmup", rate, RATIO)


def _presets(h: Hypothesis) -> Iterator[Hypothesis]:
    """Gammas in wide use, both ways round, or of a single average; two warm-ups in wide use."""
    match h.averages:
        case [i]:
            yield from (
                _changed(h, {i: Law("power", gamma + 1)}) for preset in PRESETS for gamma in preset
            )
        case [i, j]:
            pairs = [(Law("power", a + 1), Law("power", b + 1)) for a, b in PRESETS]
            for a, b in [*pairs, (_warm(CAPS[0]), _warm(CAPS[1]))]:
                yield _changed(h, {i: a, j: b})
                yield _changed(h, {i: b, j: a})
        case _:
            pass


class Search:
    """Hypotheses about the tags of a run, each scored once.

    Attributes:
        series: the n snapshots.
        reduced: their sample, in the order of the series.
        fixed: series, by number, whose laws are known and not to be changed.
        size: number of snapshots.
        tagged: the score of the tags; None where it can't be computed.
    """

    def __init__(
        self, series: Sequence[Series], reduced: Reduced, fixed: frozenset[int] = frozenset()
    ) -> None:
        self.series = series
        self.reduced = reduced
        self.fixed = fixed
        self.size = len(reduced.root)
        self._first = min(s.times[0] for s in series)
        self._last = max(s.times[-1] for s in series)
        self._tried: dict[Hypothesis, Score | None] = {}
        self._answered: dict[Hypothesis, tuple[Array, Array]] = {}
        self._tags = as_tagged(series)
        self.tagged = self._tried[self._tags] = score(self._tags, series, reduced)

    @property
    def tried(self) -> list[Score]:
        """All scores of alternatives, best first."""
        found = [s for h, s in self._tried.items() if s is not None and h != self._tags]
        return sorted(found, key=lambda s: s.score)

    def gain(self, found: Score) -> float:
        """L: n times the mean by which a hypothesis' log score is better than that of the tags."""
        return math.inf if self.tagged is None else self.size * (self.tagged.score - found.score)

    def worth(self, found: Score) -> float:
        """L less Schwarz's ln n for each number that is neither a tag's nor one that people use.

        Tags are numbers that somebody chose: a number that comes from a search has to fit better by
        as much.
        """
        h = found.hypothesis
        tags = [law.scale for law in self._tags.laws]
        free = sum(
            not any(math.isclose(law.scale, n) for n in (*tags, *_numbers(law))) for law in h.laws
        )
        return self.gain(found) - math.log(self.size) * (free + (h.offset != 0))

    def score(self, hypothesis: Hypothesis) -> Score | None:
        """The score of a hypothesis, computed when first asked for."""
        if hypothesis not in self._tried:
            if len(self._tried) >= _MOST:
                return None
            keeps = all(hypothesis.laws[k] == self._tags.laws[k] for k in self.fixed)
            self._tried[hypothesis] = (
                score(hypothesis, self.series, self.reduced)
                if keeps and possible(hypothesis, self.series)
                else None
            )
        return self._tried[hypothesis]

    def best(self, hypotheses: Iterable[Hypothesis]) -> Score | None:
        """The best of some hypotheses."""
        scores = (self.score(h) for h in hypotheses)
        return min((s for s in scores if s is not None), key=lambda s: s.score, default=None)

    def _best_offset(self, h: Hypothesis) -> Score | None:
        """The best if the counter of steps is off by fractions of the first or the last time."""
        offsets = [f * self._first for f in _FIRST_OFFSETS]
        offsets += [f * self._last for f in _LAST_OFFSETS]
        return self.best(replace(h, offset=offset) for offset in offsets)

    def explore(self) -> None:
        """Try usual mistakes, and search around the best of them and the tags."""
        self.best(mistakes(self._tags, self._last))
        self._best_offset(self._tags)
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
            # The optimum of an offset under the tags is narrow.
            best_offset = self._best_offset(self._tags)
            if best_offset is not None:
                self._descend(best_offset, self._moved, (*_STEPS, _FINE, _FINE / 2))
        for k, found in enumerate(self.ranked(lambda s: -s.score)):
            best = self.tried[0]
            if k and fits(best) and self.size * (found.score - best.score) > _REACH:
                continue
            refined = self.refine(found, fine=True)
            self.best(self._usual(refined.hypothesis))
            if offsets and not (fits(refined) or found.hypothesis.offset):
                moved = self._best_offset(refined.hypothesis)
                if moved is not None and moved.score < refined.score:
                    self.refine(moved, fine=True)

    def ranked(self, worth: Callable[[Score], float] | None = None) -> list[Score]:
        """The alternative of each kind that is worth most, the best first."""
        kinds: dict[Hashable, Score] = {}
        for found in sorted(self.tried, key=worth or self.worth, reverse=True):
            kinds.setdefault(found.hypothesis.kind, found)
        return list(kinds.values())[:_KINDS]

    def lead(self, ranked: Sequence[Score]) -> float:
        """L by which the first of these beats all whose answers differ from its own."""
        best, *others = ranked
        rivals = [found.score for found in others if self.harm(best, found) > LOOSE]
        return self.size * (min(rivals) - best.score) if rivals else math.inf

    def harm(self, told: Score, true: Score) -> float:
        """P: how far the answers of one hypothesis are off if another is true, over the distance.

        ``max_k |(x_told - x_k)' theta| / distance_k``, from the triangle; no file is read.
        """
        (given, _), (right, distance) = self._answers(told), self._answers(true)
        off = np.sqrt((((given - right).T @ self.reduced.root) ** 2).mean(axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(off > 0, off / distance, 0.0)
        return float(shares.max())

    def _answers(self, found: Score) -> tuple[Array, Array]:
        """The answers of a hypothesis, computed when first asked for."""
        if found.hypothesis not in self._answered:
            self._answered[found.hypothesis] = answers(found, self.series)
        return self._answered[found.hypothesis]

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
            yield from nearby(h, factor)
        if h.offset:
            yield from self._moved(h, step)

    def _moved(self, h: Hypothesis, step: float) -> Iterable[Hypothesis]:
        """A hypothesis with its offset moved either way."""
        for sign in (1, -1):
            yield replace(h, offset=h.offset + sign * step * (self._last + h.offset))

    def _usual(self, h: Hypothesis) -> Iterable[Hypothesis]:
        """A hypothesis with its scales moved to numbers that people use, where those are near."""
        choices = [[law] if k in self.fixed else _usual_laws(law) for k, law in enumerate(h.laws)]
        return (replace(h, laws=laws) for laws in product(*choices))


def _numbers(law: Law) -> Sequence[float]:
    """Scales that people use: whole gammas, EDM2's, decays written in few digits; 0 of raw."""
    if law.kind == "power":
        return _POWERS
    return _RATES if law.averages else (law.scale,)


def _usual_laws(law: Law) -> list[Law]:
    """The law, and those of the numbers that people use next to it."""
    if not (law.averages and law.scale):
        return [law]
    near = [n for n in _numbers(law) if abs(n / law.scale - 1) < _SNAP]
    near.sort(key=lambda n: abs(math.log(n / law.scale)))
    return [law, *(replace(law, scale=n) for n in near[:2])]
