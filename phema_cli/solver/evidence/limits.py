"""When the test raises an alarm, and when a doubt: every threshold, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from phema_cli.solver.evidence.laws import Series
from phema_cli.solver.evidence.scoring import Score, rank
from phema_cli.solver.evidence.search import Search

#: distinct times that one test needs.
LEAST_TIMES = 3
#: P from which wrong tags matter.
HARM = 0.05
#: L by which an alternative must beat all of other kinds for its numbers to be trusted.
SURE = 6.0
#: how much limits of L rise at most where elements move in few ways.
_MOST_RISE = 4.0
#: share of the times that the second largest series must have for the full sharpness of L.
_EVEN = 0.75


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


def limits_of(times: int) -> Limits:
    """The limits for a number of distinct times, ``LEAST_TIMES`` or more."""
    return [limits for limits in LIMITS if limits.times <= times][-1]


def second(series: Sequence[Series]) -> int:
    """Snapshots of the second largest series: only what is compared can tell laws apart."""
    return sorted([0, *(len(s.rows) for s in series)])[-2]


def fits_of(found: Score, times: int) -> bool:
    """Whether a hypothesis' own J and C are within the limits."""
    limits = limits_of(times)
    return found.jitter <= limits.jitter and found.worst <= limits.worst


def gain_limits(search: Search, best: Score, times: int) -> tuple[float, float]:
    """L from which an alarm is raised, and a doubt.

    Where one series has far more snapshots than the others, alternatives explain what it does by
    itself, and L is large with right tags too: what counts is the second largest series. So it is
    where elements move in few ways: the better of both fits says in how many.
    """
    counted = second(search.series)
    limits = limits_of(counted)
    either = [best] if search.told is None else [best, search.told]
    ways = max(rank(found, search.series, search.reduced) for found in either)
    rise = min(_MOST_RISE, max(1.0, (limits.rank / ways) ** 2))
    doubt = limits.doubt if counted >= _EVEN * times else limits.alarm
    return rise * limits.alarm, math.sqrt(rise) * doubt
