"""Evidence: do the snapshots bear their tags out, and if not, which tags would they?

Two averages of one trajectory give back the same weights within each stretch between snapshots,
whatever these did, if the averages are what they are told to be. Wrong tags put movement into
contrasts of snapshots that hold next to none. How that is measured and where the limits come from:
docs/evidence.md.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from phema_cli.profiles import Profile
from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.choosing import chosen_of
from phema_cli.solver.evidence.findings import Findings, look
from phema_cli.solver.evidence.foreign import strays
from phema_cli.solver.evidence.laws import Hypothesis, Law, Series, series_of
from phema_cli.solver.evidence.limits import (
    HARM,
    LEAST_TIMES,
    LIMITS,
    SURE,
    fits_of,
    gain_limits,
    limits_of,
    second,
)
from phema_cli.solver.evidence.reduction import reduce
from phema_cli.solver.evidence.scoring import Answers, Score, answers
from phema_cli.solver.evidence.search import LOOSE, Search

State = Literal["confirmed", "plausible", "unchecked", "doubtful", "contradicted"]

#: how far below the best alternative one of another kind may lie in L to be named.
_NAMED = 3.0
#: numbers of steps between updates that are in use, and the relative distance of scales from it.
_EVERY, _WHOLE = (2, 3, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 500, 1000), 0.1
#: logarithm of the largest ratio that is told.
_LARGEST = 700.0
#: snapshots that are named as fitting worst.
_SUSPECTS = 3


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
        foreign: rows without which all others bear their tags out, if few snapshots are what
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
    outcome = replace(_tested(series, sample), findings=findings)
    odd = strays(series, sample)
    kept = tuple(s.without(odd) for s in series)
    # Few snapshots are not left out to the last: what remained could not be compared.
    if not odd or any(len(s.rows) < LEAST_TIMES for s in kept if s not in series):
        return outcome
    # Files that do not belong are a simpler explanation than other laws, if all others fit.
    others = _tested(kept, sample)
    if others.state in ("doubtful", "contradicted"):
        return outcome
    return replace(outcome, state="contradicted", alternatives=(), foreign=odd)


def _tested(series: tuple[Series, ...], sample: Sample) -> Evidence:
    """The outcome for some snapshots, without a look at single ones."""
    chosen = chosen_of(series)
    times = len({t for s in chosen for t in s.times})
    rows = [row for s in chosen for row in s.rows]
    unchecked = Evidence("unchecked", series, times)
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
    if second(chosen) >= LEAST_TIMES:
        return _compared(tested, search, told)
    return tested if fits_of(told, times) else replace(tested, state="contradicted")


def _compared(tested: Evidence, search: Search, told: Score) -> Evidence:
    """The outcome where there are series to compare."""
    search.explore()
    best = search.tried[0] if search.tried else told
    own = answers(told, search.series)
    gain, harm = search.gain(best), search.harm(answers(best, search.series), own)
    alarm, doubt = gain_limits(search, best, tested.times)
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
    least = limits_of(outcome.times).as_well
    for found in search.tried:
        if search.gain(found) <= least:
            break
        if not found.hypothesis.offset and worth(found) > least:
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
