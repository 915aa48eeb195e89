"""Evidence: do the snapshots bear their tags out, and if not, which tags would they?

Two averages of one trajectory give back the same weights within each stretch between snapshots,
whatever these did, if the averages are what they are told to be. Wrong tags put movement into
contrasts of snapshots that hold next to none. How that is measured and where the limits come from:
docs/evidence.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from phema_cli.profiles import Profile
from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.findings import Findings, look
from phema_cli.solver.evidence.laws import Hypothesis, Law, Series, series_of
from phema_cli.solver.evidence.reduction import reduce, thinned
from phema_cli.solver.evidence.scoring import Answers, Score, answers, rank
from phema_cli.solver.evidence.search import LOOSE, Search

State = Literal["confirmed", "plausible", "unchecked", "doubtful", "contradicted"]

#: distinct times that the test looks at, and that it needs.
MOST_TIMES, LEAST_TIMES = 16, 3
#: series that it looks at.
_MOST_SERIES = 4
#: P from which wrong tags matter.
HARM = 0.05
#: L above which an alternative explains the snapshots as well as the tags do, and how far below the
#: best one of another kind is still named.
_AS_WELL, _NAMED = -2.0, 3.0
#: L by which an alternative must beat all of other kinds for its numbers to be trusted.
SURE = 6.0
#: numbers of steps between updates that are in use, and the relative distance of scales from it.
_EVERY, _WHOLE = (2, 3, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 500, 1000), 0.1
#: times from which on one or two snapshots are blamed: without them, few others always fit.
_BLAME = 6
#: logarithm of the largest ratio that is told.
_LARGEST = 700.0
#: how much limits of L rise at most where elements move in few ways.
_MOST_RISE = 4.0
#: share of the times that the second largest series must have for the full sharpness of L.
_EVEN = 0.75
#: snapshots that are named as fitting worst.
_SUSPECTS = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What makes an alarm, and a doubt, at so many times.

    Attributes:
        times: from how many distinct times on.
        alarm: L, if P is at least ``HARM``.
        jitter: J.
        worst: C.
        doubt: L, if P is at least ``HARM``.
        rank: r in how many ways elements have to move for these limits of L: with fewer, the alarm
            rises by ``(rank/r)^2``, up to four times, and the doubt by its root.
    """

    times: int
    alarm: float
    jitter: float
    worst: float
    doubt: float
    rank: float


#: From a study of 44 training runs of 2,048 to 4,096 steps (small MLPs, convolutional flows and
#: transformers; Adam, AdamW and SGD; constant, cosine, wsd and rsqrt schedules; batches of 4 to
#: 1,024; float32, float16, bfloat16) and six that restart, thaw or change their data. With right
#: tags L reached 4.9, 4.5 and 2.4 in ordinary runs of so many times (15.7 and 13.3 in the odd ones
#: of less than 12), J 0.30, 0.60 and 0.97, C 4.1, 4.3 and 9.5, in 1,862 and 5,292 cases.
#: The ranks are from 12 further runs, 8 with SGD, 7 with batches of 4 to 16: L was above 6 in
#: transformers that SGD trained under an rsqrt schedule only: at 16 times 14.8, 14.4, 14.2 and 10.9
#: where r was 9, 7, 11 and 14, at 8 times 9.9 where it was 10. r is that of the better fit: where
#: tags are wrong, what they leave unexplained makes it small.
LIMITS = (
    Limits(times=3, alarm=18.0, jitter=0.4, worst=12.0, doubt=6.0, rank=0.0),
    Limits(times=6, alarm=15.0, jitter=0.75, worst=12.0, doubt=4.0, rank=10.0),
    Limits(times=12, alarm=5.0, jitter=1.2, worst=12.0, doubt=4.0, rank=24.0),
)


def limits_of(times: int) -> Limits:
    """The limits for a number of distinct times, ``LEAST_TIMES`` or more."""
    return [limits for limits in LIMITS if limits.times <= times][-1]


@dataclass(frozen=True, slots=True)
class Alternative:
    """Other tags that explain the snapshots.

    Attributes:
        laws: one of each series, in their order.
        offset: steps to be added to all times; by so many the counter began too late.
        gain: L, twice the log likelihood ratio of one element, against the tags as told.
        times_better: by what factor the snapshots foretell each other better than as told.
        harm: P, how far the tags as told change an answer if these are true, over the distance by
            which averaging moves the weights.
        fits: whether its own J and C are within the limits.
        every: where it is the tags as told with each average updated every N-th step only, N.
        sure: whether it fits and beats all of other kinds by an L of ``SURE``: its numbers can be
            relied on.
    """

    laws: tuple[Law, ...]
    offset: float
    gain: float
    times_better: float
    harm: float
    fits: bool
    every: int | None
    sure: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """Whether the sample of the snapshots bears their tags out.

    Attributes:
        state: ``confirmed`` and ``plausible`` were tested with nothing against them,
            ``unchecked`` could not be, ``doubtful`` is a notice and ``contradicted`` an error.
        series: the snapshots as they were grouped.
        times: distinct times that were looked at.
        gain: L of the best alternative, negative if the tags as told are better than all; None
            where none was looked for.
        jitter: J, the largest jitter over the median time between snapshots.
        worst: C, the largest ratio of a snapshot's observed error to the foretold one when it is
            held back.
        harm: P of the best alternative.
        tag_error: how far an answer would change under other tags that explain the snapshots as
            well (from 12 times on, other tags that people use), over the distance by which
            averaging moves the weights; None if not known.
        alternatives: where the tags are doubtful or contradicted, the best other ones of each kind,
            best first; where they are plausible, the one that ``tag_error`` is of.
        suspects: rows of the sample and their ratios, the worst first.
        foreign: rows without which all others bear their tags out, if one snapshot or two are what
            contradicts them: files of another run, or of another step.
        findings: what is the same bit by bit.
    """

    state: State
    series: tuple[Series, ...]
    times: int = 0
    gain: float | None = None
    jitter: float | None = None
    worst: float | None = None
    harm: float | None = None
    tag_error: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    suspects: tuple[tuple[int, float], ...] = ()
    foreign: tuple[int, ...] = ()
    findings: Findings = field(default_factory=Findings)


def weigh(
    profiles: Sequence[Profile], sample: Sample, groups: Sequence[Hashable] | None = None
) -> Evidence:
    """Test the tags of snapshots on a sample of their elements.

    Args:
        profiles: of the n snapshots, as their tags say.
        sample: their elements in the same order.
        groups: (n,) which snapshots are of one series; without it, those of one law.

    Returns:
        The outcome; it says also what could not be tested.
    """
    series = series_of(profiles, groups)
    findings = look(series, sample)
    if findings.contradict:
        return Evidence("contradicted", series, findings=findings)
    chosen = chosen_of(series)
    times = len({t for s in chosen for t in s.times})
    rows = [row for s in chosen for row in s.rows]
    unchecked = Evidence("unchecked", series, times, findings=findings)
    reduced = reduce(sample, rows) if times >= LEAST_TIMES and sample.values.size else None
    if reduced is None:
        return unchecked
    search = Search(chosen, reduced)
    told = search.told
    if told is None:
        return unchecked
    ranked = sorted(zip(rows, told.ratios.tolist(), strict=True), key=lambda r: -r[1])
    tested = replace(
        unchecked, jitter=told.jitter, worst=told.worst, suspects=tuple(ranked[:_SUSPECTS])
    )
    if _second(chosen) < LEAST_TIMES:
        return tested if fits_of(told, times) else replace(tested, state="contradicted")
    many = times >= _BLAME and not fits_of(told, times)
    if many and (odd := _foreign(search, told, times)):
        # A file that does not belong is a simpler explanation than other laws.
        foreign = tuple(rows[i] for i in odd)
        return replace(tested, state="contradicted", foreign=foreign)
    return _compared(tested, search, told)


def _second(series: Sequence[Series]) -> int:
    """Snapshots of the second largest series: only what is compared can tell laws apart."""
    return sorted([0, *(len(s.rows) for s in series)])[-2]


def _foreign(search: Search, told: Score, times: int) -> tuple[int, ...]:
    """Which one or two of the n snapshots, or all of one time, are to blame alone, if so."""
    ends = [t for s in search.series for t in s.times]
    first, second, *_ = (int(i) for i in np.argsort(-told.ratios))
    together = tuple(i for i, t in enumerate(ends) if t == ends[first])
    for odd in dict.fromkeys([(first,), (second,), together, (first, second)]):
        rest = search.without(odd)
        if rest is None or rest.told is None or _second(rest.series) < LEAST_TIMES:
            continue
        if not fits_of(rest.told, times):
            continue
        rest.explore()
        rival = rest.tried[0] if rest.tried else rest.told
        if rest.gain(rival) < _limits(rest, rival, times)[1]:
            return odd
    return ()


def chosen_of(series: Sequence[Series]) -> list[Series]:
    """The snapshots that are looked at: few times, above all those that several series share.

    With more than ``_MOST_SERIES`` series, the raw weights and the averages of most snapshots.
    """
    ranked = sorted(range(len(series)), key=lambda k: (-len(series[k].rows), k))
    ranked.sort(key=lambda k: series[k].law.kind != "raw")
    used = [series[k] for k in sorted(ranked[:_MOST_SERIES])]
    count = Counter(t for s in used for t in s.times)
    shared = sorted(t for t, k in count.items() if k > 1)
    kept = thinned(shared, MOST_TIMES)
    room = MOST_TIMES - len(kept)
    alone = sorted(t for t, k in count.items() if k == 1)
    kept += thinned(alone, room) if room else []
    newest = max(count)
    if newest not in kept:
        kept = [*sorted(kept)[1:], newest]
    chosen = (s.chosen(frozenset(kept)) for s in used)
    return [s for s in chosen if s.rows]


def fits_of(found: Score, times: int) -> bool:
    """Whether a hypothesis' own J and C are within the limits."""
    limits = limits_of(times)
    return found.jitter <= limits.jitter and found.worst <= limits.worst


def _limits(search: Search, best: Score, times: int) -> tuple[float, float]:
    """L from which an alarm is raised, and a doubt.

    Where one series has far more snapshots than the others, alternatives explain what it does by
    itself, and L is large with right tags too: what counts is the second largest series. So it is
    where elements move in few ways: the better of both fits says in how many.
    """
    second = _second(search.series)
    limits = limits_of(second)
    either = [best] if search.told is None else [best, search.told]
    ways = max(rank(found, search.series, search.reduced) for found in either)
    rise = min(_MOST_RISE, max(1.0, (limits.rank / ways) ** 2))
    doubt = limits.doubt if second >= _EVEN * times else limits.alarm
    return rise * limits.alarm, math.sqrt(rise) * doubt


def _compared(tested: Evidence, search: Search, told: Score) -> Evidence:
    """The outcome where there are series to compare."""
    search.explore()
    best = search.tried[0] if search.tried else told
    own = answers(told, search.series)
    gain, harm = search.gain(best), search.harm(answers(best, search.series), own)
    alarm, doubt = _limits(search, best, tested.times)
    state: State = "confirmed"
    if not fits_of(told, tested.times) or (gain >= alarm and harm >= HARM):
        state = "contradicted"
    elif gain >= doubt and harm >= HARM:
        state = "doubtful"
    outcome = replace(tested, state=state, gain=gain, harm=harm)
    if state == "confirmed":
        return _loose(outcome, search, own)
    search.explain(lambda other: fits_of(other, tested.times))
    return replace(outcome, alternatives=_alternatives(search, own, tested.times))


def _loose(outcome: Evidence, search: Search, own: Answers) -> Evidence:
    """What other tags would change that explain the snapshots as well.

    Offsets of the times are left out: they move the target's own time along. Where there are many
    times, numbers that nobody uses have to earn their place: some that differ by a few per cent
    always fit as well.
    """
    error, widest = 0.0, None
    worth = search.worth if outcome.times >= LIMITS[-1].times else search.gain
    for found in search.tried:
        if search.gain(found) <= _AS_WELL:
            break
        if not found.hypothesis.offset and worth(found) > _AS_WELL:
            harm = search.harm(answers(found, search.series), own)
            if harm > error:
                error, widest = harm, found
    if widest is None or error <= LOOSE:
        return replace(outcome, tag_error=error)
    named = _alternative(search, widest, error, outcome.times, sure=False)
    return replace(outcome, state="plausible", tag_error=error, alternatives=(named,))


def _alternatives(search: Search, own: Answers, times: int) -> tuple[Alternative, ...]:
    """The best alternative of each kind that is nearly as good as the best of all.

    Those whose answers hardly differ from a better one's say nothing new, and an offset has to earn
    its place.
    """
    ranked = search.ranked()
    if not ranked or search.gain(ranked[0][0]) <= 0:
        return ()
    best = ranked[0][0]
    sure = min(search.gain(best), search.lead(ranked)) >= SURE
    named: list[tuple[Score, Answers]] = []
    for found, other in ranked:
        near = search.worth(found) >= search.worth(best) - _NAMED
        extra = found.hypothesis.offset and any(
            f.hypothesis.kind[:-1] == found.hypothesis.kind[:-1] for f, _ in named
        )
        if near and not extra and all(search.harm(other, known) > HARM for _, known in named):
            named.append((found, other))
    return tuple(
        _alternative(
            search,
            found,
            search.harm(other, own),
            times,
            sure=sure and found is best,
        )
        for found, other in named
    )


def _alternative(
    search: Search, found: Score, harm: float, times: int, *, sure: bool
) -> Alternative:
    """An alternative with its figures."""
    gain, fits = search.gain(found), fits_of(found, times)
    return Alternative(
        laws=found.hypothesis.laws,
        offset=found.hypothesis.offset,
        gain=gain,
        times_better=math.exp(min(gain / search.size / 2, _LARGEST)),
        harm=harm,
        fits=fits,
        every=_every(search.series, found.hypothesis),
        sure=sure and fits,
    )


def _every(series: Sequence[Series], found: Hypothesis) -> int | None:
    """The whole number in use by which all averages' scales are smaller than told."""
    factors = []
    for law, told in zip(found.laws, series, strict=True):
        if law.kind != told.law.kind or found.offset:
            return None
        if law.averages:
            factors.append(told.law.scale / law.scale * law.every / told.law.every)
    nearest = min(_EVERY, key=lambda n: sum(abs(math.log(f / n)) for f in factors))
    near = factors and all(abs(f / nearest - 1) < _WHOLE for f in factors)
    return nearest if near else None
