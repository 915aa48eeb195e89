"""Laws for averages without tags, where the snapshots can give them.

From 16 times on, two averages give both of their scales within 5 %, and so do raw weights or a
known average beside one unknown (13 % for the shortest). Fewer times, bfloat16 for two unknown
averages, and a single series don't: then nothing is proposed. docs/evidence.md has the figures.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import permutations, product

import numpy as np

from phema_cli.solver.calibration import Sample
from phema_cli.solver.evidence.alternatives import CAPS, PRESETS, Search
from phema_cli.solver.evidence.laws import RATIO, Hypothesis, Law, series_of
from phema_cli.solver.evidence.reduction import MOST_TIMES, reduce, select_snapshots
from phema_cli.solver.evidence.verdict import within_limits

#: where searches start: gammas, and retentions over the run of constant decays.
_GAMMAS = (2.0, *PRESETS[0], *PRESETS[1], 30.0)
_RETENTIONS = (5.0, 10.0, 20.0, 40.0, 80.0)
#: L by which laws must beat all of other kinds to be proposed.
_SURE = 6.0
#: series that may be unknown, and mantissa bits that a stored value needs if two are.
_MOST_UNKNOWN, _FINE_BITS = 2, 10


def propose(
    times: Sequence[float],
    groups: Sequence[Hashable],
    known: Mapping[Hashable, Law],
    sample: Sample,
) -> dict[Hashable, Law] | None:
    """The laws of series that have no tags.

    Args:
        times: of the n snapshots, in steps.
        groups: (n,) the series of each.
        known: the laws of those series that have tags; raw weights are one.
        sample: elements of the snapshots, in the same order.

    Returns:
        A law of each of them, where L is at least 6 against all that give other answers; else None.
    """
    unknown = [g for g in dict.fromkeys(groups) if g not in known]
    described = all(law.kind != "other" for law in known.values())
    if not (described and _enough(times, groups, unknown, sample)):
        return None
    starts = list(_starts(len(unknown), max(times)))
    guess = {**known, **dict(zip(unknown, starts[0], strict=True))}
    profiles = [guess[g].profile(t) for t, g in zip(times, groups, strict=True)]
    series = select_snapshots(series_of(profiles, groups))
    names = [groups[s.rows[0]] for s in series]
    reduced = reduce(sample, [row for s in series for row in s.rows])
    if reduced is None or not set(unknown) <= set(names):
        return None
    search = Search(series, reduced, frozenset(k for k, g in enumerate(names) if g in known))
    for laws in starts:
        tried = {**known, **dict(zip(unknown, laws, strict=True))}
        search.score(Hypothesis(tuple(tried[g] for g in names)))
    # Times are taken as they are: only the laws are missing.
    search.explain(lambda found: within_limits(found, MOST_TIMES), offsets=False)
    ranked = search.ranked()
    if not ranked:
        return None
    if search.lead(ranked) < _SURE or not within_limits(ranked[0], MOST_TIMES):
        return None
    laws_of = dict(zip(names, ranked[0].hypothesis.laws, strict=True))
    return {g: laws_of[g] for g in unknown}


def _enough(
    times: Sequence[float], groups: Sequence[Hashable], unknown: Sequence[Hashable], sample: Sample
) -> bool:
    """Whether unknown scales have been found from as much."""
    count = Counter(t for t, _ in set(zip(times, groups, strict=True)))
    shared = sum(k > 1 for k in count.values())
    if not 0 < len(unknown) <= _MOST_UNKNOWN or shared < MOST_TIMES or not sample.values.size:
        return False
    return len(unknown) == 1 or _bits(sample) >= _FINE_BITS


def _bits(sample: Sample) -> float:
    """The median of the values' mantissa bits as they are stored; infinite where that is exact."""
    values = sample.values[-1]
    rounded = (sample.units > 0) & (values != 0)
    if not rounded.any():
        return math.inf
    exponent = np.frexp(values[rounded])[1] - 1
    return float(np.median(exponent - np.log2(sample.units[rounded])))


def _starts(unknown: int, last: float) -> Iterator[tuple[Law, ...]]:
    """Laws of the unknown series from which searches start."""
    powers = [Law("power", gamma + 1) for gamma in _GAMMAS]
    constants = [Law("exponential", r / last) for r in _RETENTIONS]
    for laws in (powers, constants, [Law("warmup", cap, RATIO) for cap in CAPS]):
        yield from permutations(laws, unknown)
    if unknown > 1:
        # One of each kind.
        for pair in product(powers[1:-1], constants[1:-1]):
            yield from permutations(pair)
