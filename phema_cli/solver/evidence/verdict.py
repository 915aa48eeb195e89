"""The verdict: do the snapshots fit their tags, and if not, which tags would they fit?

Two averages of one trajectory give back the same weights within each stretch between snapshots,
whatever these did, if the averages are what their tags say. Wrong tags put movement into contrasts
of snapshots that hold next to none. How that is measured and where the limits come from:
docs/evidence.md.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from phema_cli.profiles import Profile
from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.alternatives import LOOSE, Search
from phema_cli.solver.evidence.laws import Hypothesis, Law, Series, series_of
from phema_cli.solver.evidence.outliers import Findings, find_identical, find_strays
from phema_cli.solver.evidence.reduction import reduce, select_snapshots
from phema_cli.solver.evidence.scoring import Score, rank
from phema_cli.solver.evidence.stalls import find_stalled

State = Literal["confirmed", "plausible", "unchecked", "doubtful", "contradicted"]

#: distinct times that one test needs.
LEAST_TIMES = 3
#: P from which wrong tags matter.
HARM = 0.05
#: how much limits of L rise at most where elements move in few ways.
_MOST_RISE = 4.0
#: share of the times that the second largest series must have for the full sharpness of L.
_EVEN = 0.75
#: how far below the best alternative one of another kind may lie in L to be named.
_NAMED = 3.0
#: numbers of steps between updates that are in use, and the relative distance of scales from it.
_EVERY, _WHOLE = (2, 3, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200, 500, 1000), 0.1
#: logarithm of the largest ratio that is reported.
_LARGEST = 700.0
#: snapshots that are named as fitting worst.
_SUSPECTS = 3
#: times of the later half from which it is tested by itself, and how much its limits of L are
#: above those of a whole run: it is a second look.
_LATER, _SECOND = 6, 1.5


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
        as_well: L above which an alternative explains the snapshots as well as the tags do.
    """

    times: int
    alarm: float
    jitter: float
    worst: float
    doubt: float
    rank: float
    as_well: float


#: From a study of 44 training runs of 2,048 to 4,096 steps (small MLPs, convolutional flows and
#: transformers; Adam, AdamW and SGD; constant, cosine, wsd and rsqrt schedules; batches of 4 to
#: 1,024; float32, float16, bfloat16) and six that restart, thaw or change their data. With right
#: tags L reached 4.9, 4.5 and 2.4 in ordinary runs of so many times (15.7 and 13.3 in the odd ones
#: of less than 12), J 0.30, 0.60 and 0.97, C 4.1, 4.3 and 9.5, in 1,862 and 5,292 cases.
#: Of six further odd ones two that restart gave 25.1 with 4 times, all other runs 3.2 at most: the
#: alarm of few times is twice that, the doubt where it was.
#: The ranks are from 12 further runs, 8 with SGD, 7 with batches of 4 to 16: L was above 6 in
#: transformers that SGD trained under an rsqrt schedule only: at 16 times 14.8, 14.4, 14.2 and 10.9
#: where r was 9, 7, 11 and 14, at 8 times 9.9 where it was 10. r is that of the better fit: where
#: tags are wrong, what they leave unexplained makes it small.
#: With right tags of 11 of these runs at 16 times, other tags that matter had an L above -2 in 17 %
#: of 286 cases, above -1 in 11 %. With wrong ones none had in one of 720 harmful cases (-2), in two
#: (-1), in eleven (-0.25).
LIMITS = (
    Limits(times=3, alarm=50.0, jitter=0.4, worst=12.0, doubt=6.0, rank=0.0, as_well=-2.0),
    Limits(times=6, alarm=15.0, jitter=0.75, worst=12.0, doubt=4.0, rank=10.0, as_well=-2.0),
    Limits(times=12, alarm=5.0, jitter=1.2, worst=12.0, doubt=4.0, rank=24.0, as_well=-1.0),
)


@dataclass(frozen=True, slots=True)
class Alternative:
    """Other tags that explain the snapshots.

    Attributes:
        laws: one of each series that was compared, in their order.
        offset: steps to be added to all times; by so many the counter began too late.
        gain: L, twice the log likelihood ratio of one element, against the tags.
        times_better: by what factor the snapshots predict each other better than under the tags.
        harm: P, how far the tags change an answer if these are true, over the distance by which
            averaging moves the weights.
        fits: whether its own J and C are within the limits.
        every: N where it is the tags with each average updated every N-th step only.
    """

    laws: tuple[Law, ...]
    offset: float
    gain: float
    times_better: float
    harm: float
    fits: bool
    every: int | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Whether the snapshots fit their tags.

    Attributes:
        state: ``confirmed`` and ``plausible`` were tested with nothing against them,
            ``unchecked`` could not be, ``doubtful`` is a warning and ``contradicted`` an error.
        series: the snapshots as they were grouped.
        compared: the series that alternatives have laws of, without the snapshots that were not
            looked at; of many series some are left out.
        times: distinct times that were looked at.
        gain: L of the best alternative, negative if the tags are better than all; None where none
            was looked for.
        jitter: J, the largest jitter over the median time between snapshots.
        worst: C, the largest ratio of a snapshot's observed error to the predicted one when it is
            held out.
        harm: P of the best alternative.
        tag_error: how far an answer would change under other tags that explain the snapshots as
            well (from 12 times on, other tags that people use), over the distance by which
            averaging moves the weights; None if not known.
        alternatives: where the tags are doubtful or contradicted, the best other ones of each kind,
            best first; where they are plausible, the one that ``tag_error`` is of.
        suspects: rows of the sample and their ratios, the worst first.
        foreign: rows of few snapshots without which all others fit their tags: files of another
            run, or of another step.
        findings: what is the same bit by bit.
        later: whether all this is of the later half of the times, which does not fit its tags
            though all together do.
    """

    state: State
    series: tuple[Series, ...]
    compared: tuple[Series, ...] = ()
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
    later: bool = False


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
    findings = replace(find_identical(series, sample), stalled=find_stalled(series, sample))
    if findings.contradict:
        return Evidence("contradicted", series, findings=findings)
    whole = replace(_whole(series, sample), findings=findings)
    outcome = _with_later_half(whole, sample)
    odd = find_strays(series, sample)
    kept = tuple(s.without(odd) for s in series)
    # Few snapshots are not left out to the last: what remained could not be compared.
    if not odd or any(len(s.rows) < LEAST_TIMES for s in kept if s not in series):
        return outcome
    # Files that do not belong are a simpler explanation than other laws, if all others fit.
    others = _with_later_half(_whole(kept, sample), sample)
    if others.state in ("doubtful", "contradicted"):
        return outcome
    return replace(whole, state="contradicted", alternatives=(), foreign=odd)


def _with_later_half(whole: Evidence, sample: Sample) -> Evidence:
    """The outcome of all snapshots together, or of the later half where that alone has doubts.

    A law that changes in the course of a run, as when a job is resumed with another decay, is none
    of those that are tried, and the fit takes for movement what it leaves unexplained. In the later
    half it is one law.
    """
    if whole.state not in ("confirmed", "plausible"):
        return whole
    times = sorted({t for s in whole.series for t in s.times})
    late = times[len(times) // 2 :]
    if len(late) < _LATER:
        return whole
    half = (s.at([i for i, t in enumerate(s.times) if t >= late[0]]) for s in whole.series)
    later = _whole(tuple(s for s in half if s.rows), sample, again=True)
    if later.state not in ("doubtful", "contradicted"):
        return whole
    return replace(later, series=whole.series, findings=whole.findings, later=True)


def _whole(series: tuple[Series, ...], sample: Sample, *, again: bool = False) -> Evidence:
    """The outcome for some snapshots together; ``again`` if it is the second look at them."""
    chosen = select_snapshots(series)
    times = len({t for s in chosen for t in s.times})
    rows = [row for s in chosen for row in s.rows]
    unchecked = Evidence("unchecked", series, tuple(chosen), times)
    reduced = reduce(sample, rows) if times >= LEAST_TIMES and sample.values.size else None
    if reduced is None:
        return unchecked
    search = Search(chosen, reduced)
    tagged = search.tagged
    if tagged is None:
        return unchecked
    ranked = sorted(zip(rows, tagged.ratios.tolist(), strict=True), key=lambda r: -r[1])
    tested = replace(
        unchecked, jitter=tagged.jitter, worst=tagged.worst, suspects=tuple(ranked[:_SUSPECTS])
    )
    if second_largest(chosen) >= LEAST_TIMES:
        return _compared(tested, search, tagged, again=again)
    fits = again or within_limits(tagged, times)
    return tested if fits else replace(tested, state="contradicted")


def _compared(tested: Evidence, search: Search, tagged: Score, *, again: bool) -> Evidence:
    """The outcome where there are series to compare.

    What is looked at ``again`` counts by L alone: a collapse of the weights raises J as well.
    """
    search.explore()
    best = search.tried[0] if search.tried else tagged
    gain, harm = search.gain(best), search.harm(tagged, best)
    alarm, doubt = gain_limits(search, (tagged, best), tested.times)
    if again:
        alarm, doubt = _SECOND * alarm, _SECOND * doubt
    misfit = not again and not within_limits(tagged, tested.times)
    state: State = "confirmed"
    if misfit or (gain >= alarm and harm >= HARM):
        state = "contradicted"
    elif gain >= doubt and harm >= HARM:
        state = "doubtful"
    outcome = replace(tested, state=state, gain=gain, harm=harm)
    if state == "confirmed":
        return _with_tag_error(outcome, search, tagged)
    search.explain(lambda other: within_limits(other, tested.times))
    return replace(outcome, alternatives=_alternatives(search, tagged, tested.times))


def _with_tag_error(outcome: Evidence, search: Search, tagged: Score) -> Evidence:
    """The outcome with how far other tags that explain the snapshots as well change an answer.

    Offsets of the times are left out: they move the target's own time along. Where there are many
    times, numbers that nobody uses have to earn their place: some that differ by a few per cent
    always fit as well.
    """
    worth = search.worth if outcome.times >= LIMITS[-1].times else search.gain
    least = limits_of(outcome.times).as_well
    likely = [f for f in search.tried if not f.hypothesis.offset and worth(f) > least]
    harms = [(search.harm(tagged, found), found) for found in likely]
    error, farthest = max(harms, key=lambda harm: harm[0], default=(0.0, tagged))
    if error <= LOOSE:
        return replace(outcome, tag_error=error)
    named = _alternative(search, farthest, error, outcome.times)
    return replace(outcome, state="plausible", tag_error=error, alternatives=(named,))


def _alternatives(search: Search, tagged: Score, times: int) -> tuple[Alternative, ...]:
    """The best alternative of each kind that is nearly as good as the best of all.

    An alternative whose answers hardly differ from a better one's says nothing new, and an offset
    has to earn its place.
    """
    ranked = search.ranked()
    if not ranked or search.gain(ranked[0]) <= 0:
        return ()
    best = ranked[0]
    named: list[Score] = []
    for found in ranked:
        near = search.worth(found) >= search.worth(best) - _NAMED
        extra = found.hypothesis.offset and any(
            f.hypothesis.kind[:-1] == found.hypothesis.kind[:-1] for f in named
        )
        if near and not extra and all(search.harm(better, found) > HARM for better in named):
            named.append(found)
    return tuple(_alternative(search, f, search.harm(tagged, f), times) for f in named)


def _alternative(search: Search, found: Score, harm: float, times: int) -> Alternative:
    """An alternative with its figures."""
    gain = search.gain(found)
    return Alternative(
        laws=found.hypothesis.laws,
        offset=found.hypothesis.offset,
        gain=gain,
        times_better=math.exp(min(gain / search.size / 2, _LARGEST)),
        harm=harm,
        fits=within_limits(found, times),
        every=_every(search.series, found.hypothesis),
    )


def _every(series: Sequence[Series], found: Hypothesis) -> int | None:
    """The whole number in use by which all averages' scales are smaller than their tags say."""
    factors = []
    for law, tagged in zip(found.laws, series, strict=True):
        if law.kind != tagged.law.kind or found.offset:
            return None
        if law.averages:
            factors.append(tagged.law.scale / law.scale * law.every / tagged.law.every)
    nearest = min(_EVERY, key=lambda n: sum(abs(math.log(f / n)) for f in factors))
    near = factors and all(abs(f / nearest - 1) < _WHOLE for f in factors)
    return nearest if near else None


def limits_of(times: int) -> Limits:
    """The limits for a number of distinct times, ``LEAST_TIMES`` or more."""
    return [limits for limits in LIMITS if limits.times <= times][-1]


def second_largest(series: Sequence[Series]) -> int:
    """Snapshots of the second largest series: only what is compared can tell laws apart."""
    return sorted([0, *(len(s.rows) for s in series)])[-2]


def within_limits(scored: Score, times: int) -> bool:
    """Whether a hypothesis' own J and C are within the limits."""
    limits = limits_of(times)
    return scored.jitter <= limits.jitter and scored.worst <= limits.worst


def gain_limits(search: Search, either: Sequence[Score], times: int) -> tuple[float, float]:
    """L from which an alarm is raised, and a doubt.

    Where one series has far more snapshots than the others, alternatives explain what it does by
    itself, and L is large with right tags too: so the second largest series counts. L is also large
    where elements move in few ways: the better of both fits says in how many.
    """
    counted = second_largest(search.series)
    limits = limits_of(counted)
    ways = max(rank(found, search.series, search.reduced) for found in either)
    rise = min(_MOST_RISE, max(1.0, (limits.rank / ways) ** 2))
    doubt = limits.doubt if counted >= _EVEN * times else limits.alarm
    return rise * limits.alarm, math.sqrt(rise) * doubt
