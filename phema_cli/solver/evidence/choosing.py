"""Which snapshots one test looks at: few times, spread over the run, that several series share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from phema_cli.solver.evidence.laws import Series

#: distinct times that one test looks at.
MOST_TIMES = 16
#: series that the search for other tags looks at.
_MOST_SERIES = 4
#: snapshots of a part of them all, at most, and times, at least.
_PART, _LEAST = 64, 4


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


def thinned(times: Sequence[float], most: int) -> list[float]:
    """At most so many of the times: the newest, and others with odd gaps between their indices.

    With even gaps every other snapshot would never be looked at, and mistakes that alternate not be
    seen.

    Args:
        times: ascending.
        most: how many to keep.
    """
    last = len(times) - 1
    if last < most:
        return list(times)
    chosen, at = [last], last
    for k in range(1, most):
        ideal = last * (1 - k / (most - 1))
        # The nearest index below with an odd gap to the one before.
        at -= max(1, 2 * round((at - ideal - 1) / 2) + 1)
        if at < 0:
            break
        chosen.append(at)
    return [times[i] for i in reversed(chosen)]


def parts_of(series: Sequence[Series]) -> list[list[Series]]:
    """All snapshots in two parts or more of few times each, which take turns in time.

    No parts where one would have less than four times.
    """
    longest = max(len(s.rows) for s in series)
    most = max(_LEAST, min(MOST_TIMES, _PART // len(series)))
    count = max(2, -(-longest // most))
    if longest < _LEAST * count:
        return []
    turns = ([s.at(range(k, len(s.rows), count)) for s in series] for k in range(count))
    return [[s for s in part if s.rows] for part in turns]
