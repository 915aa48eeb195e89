"""The integral of J (docs/maths.md): nodes over training time, rows of squares that sum to it.

Of thousands of sources a system has some. Work grows with the cube of their number and memory with
its square, while what more of them tell shrinks: neighbours share their rounding errors, and those
far from a target's end only have to follow a smooth profile.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import (
    Array,
    ExponentialProfile,
    PowerProfile,
    Profile,
    RawProfile,
    stored_at,
)

# A product of two densities of exponents <= g changes by exp(2 (g+1) h) over a cell of width h in
# log time. Gauss-Legendre is exact to rounding with 6 nodes up to a change of e, with 12 up to e^8,
# if the cell also stays away from 0, where flat exponents are singular: counting g+1 as at least
# _STEEP keeps h at most 1.
_FEW_NODES, _MANY_NODES = 6, 12
_FEW_CHANGE, _MANY_CHANGE = 1.0, 8.0

# Below exp(-_DEPTH) of a square integral lies nothing that float64 could still see.
_DEPTH = 40.0
_STEEP = 4.0

#: sources that a target is solved from, and movement is fitted to, about.
MOST_SOURCES = 1024


def selected(ends: Array, near: float) -> NDArray[np.intp]:
    """The sources of a target: all, or a quarter early ones, a quarter near ones, the rest evenly.

    Short averages need those near their end, long ones the earliest, before which nothing is known.
    docs/maths.md has what this loses. Sources of one time stay together: apart they are worth less.

    Args:
        ends: (n,) times of the sources.
        near: when the target ends.

    Returns:
        (m,) their places, ascending.
    """
    times, which = np.unique(ends, return_inverse=True)
    count = len(times)
    keep = max(MOST_SOURCES * count // len(ends), 4)
    if len(ends) <= MOST_SOURCES or keep >= count:
        return np.arange(len(ends))
    quarter = keep // 4
    after = min(int(np.searchsorted(times, near, side="right")) + quarter // 2, count)
    chosen = np.zeros(count, np.bool_)
    chosen[:quarter] = True
    chosen[max(after - quarter, 0) : after] = True
    others = np.flatnonzero(~chosen)
    even = np.linspace(0, len(others) - 1, keep - int(chosen.sum()))
    chosen[others[even.round().astype(np.intp)]] = True
    return np.flatnonzero(chosen[which])


@cache
def _unit_rule(nodes: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


def _edges(low: float, high: float, steep: float) -> list[float]:
    """Edges of cells from ``low`` up to, not including, ``high``; they widen away from ``high``.

    At log depth s below the time where it ends, an exponent g has fallen to exp(-g s): what is
    steeper than _DEPTH/s no longer counts there, so cells may widen in proportion to s.
    """
    whole, finest = math.log(high / low), _MANY_CHANGE / (2 * steep)
    depth, depths = 0.0, []
    while depth < whole - 1e-9 * finest:
        depths.append(depth)
        depth += min(max(finest, depth * _MANY_CHANGE / (4 * _DEPTH)), 1.0)
    # The first depth is that of ``high``.
    return [low, *(high * math.exp(-d) for d in depths[:0:-1])]


def nodes(breaks: Array, gamma_min: float, gamma_max: float) -> tuple[Array, Array]:
    """Gauss-Legendre nodes that integrate products of two power densities from 0 to the last break.

    Least squares on the nodes replaces the Gram matrix of the profiles, whose condition number is
    the square of theirs (above 1e14 for a few hundred snapshots).

    Args:
        breaks: (m,) times at which a profile may jump, ascending, distinct, above 0.
        gamma_min: smallest exponent that occurs, above -0.5.
        gamma_max: largest exponent that occurs.

    Returns:
        Times and weights, (rows,) float64 each, in the unit of ``breaks``.
    """
    steep = max(gamma_max + 1, _STEEP)
    first = float(breaks[0])
    below = first * math.exp(-min(_DEPTH / (2 * gamma_min + 1), 600.0))
    edges: list[float] = []
    for low, high in pairwise([below, *breaks.tolist()]):
        edges += _edges(low, high, steep)
    edges.append(float(breaks[-1]))
    times, weights = [], []
    for low, high in pairwise(edges):
        change = 2 * steep * math.log(high / low)
        x, w = _unit_rule(_FEW_NODES if change <= _FEW_CHANGE else _MANY_NODES)
        times.append(low + (high - low) * x)
        weights.append((high - low) * w)
    return np.concatenate(times), np.concatenate(weights)


@dataclass(frozen=True, slots=True)
class System:
    """Profiles evaluated at nodes over training time, in units of the last source's time.

    A cell is the time between two neighbouring ends of sources.

    Attributes:
        unit: the last source's time, in steps.
        times: (rows,) nodes.
        weights: (rows,) quadrature weights.
        ends: (cells,) where each cell ends.
        gap: the median time from one snapshot to the next.
        stride: the shortest time between updates of the sources' averages; 0 if every step is one,
            or none of them is an average.
        cells: (rows,) the cell of each node.
        source_ends: (n,) times of the sources.
        families: (n,) see :func:`families`.
        target_ends: (k,) times of the targets.
        points: (n + k,) whether a source or target is a single point in time.
        source_cdf: (rows, n) F_i.
        target_cdf: (rows, k) F_r.
        source_density: (rows, n) p_i.
        target_density: (rows, k) p_r.
    """

    unit: float
    times: Array
    weights: Array
    ends: Array
    gap: float
    stride: float
    cells: NDArray[np.intp]
    source_ends: Array
    families: NDArray[np.intp]
    target_ends: Array
    points: NDArray[np.bool_]
    source_cdf: Array
    target_cdf: Array
    source_density: Array
    target_density: Array


def evaluate(sources: Sequence[Profile], targets: Sequence[Profile]) -> System:
    """Evaluate profiles at nodes that integrate their products.

    Args:
        sources: n profiles.
        targets: k profiles, none ending later than the last source was stored.
    """
    everything = [*sources, *targets]
    unit = max(s.end for s in sources)
    breaks = np.unique([b / unit for p in everything for b in p.breaks])
    t, w = nodes(breaks, min(p.exponent for p in everything), max(p.exponent for p in everything))
    source_ends = np.array([s.end / unit for s in sources])
    ends = np.unique(source_ends)
    # Averages that are updated now and then end a little later than they are stored.
    stored = np.unique([stored_at(s) / unit for s in sources])
    strides = [
        s.sparse.stride if s.sparse else 0.0 for s in sources if not isinstance(s, RawProfile)
    ]
    none, steps = np.empty((len(t), 0)), t * unit
    return System(
        unit=unit,
        times=t,
        weights=w,
        ends=ends,
        gap=float(np.median(np.diff(stored))) if len(stored) > 1 else float(stored[0]),
        stride=min(strides, default=0.0) / unit,
        cells=np.minimum(np.searchsorted(ends, t), len(ends) - 1),
        source_ends=source_ends,
        families=families(sources),
        target_ends=np.array([p.end / unit for p in targets]),
        points=np.array([isinstance(p, RawProfile) for p in everything]),
        source_cdf=np.column_stack([s.cdf(steps) for s in sources]),
        target_cdf=np.column_stack([none, *(p.cdf(steps) for p in targets)]),
        source_density=unit * np.column_stack([s.density(steps) for s in sources]),
        target_density=unit * np.column_stack([none, *(p.density(steps) for p in targets)]),
    )


def families(sources: Sequence[Profile]) -> NDArray[np.intp]:
    """Sources that are multiples of one function wherever they are not complete yet, by number.

    Power functions of one gamma are, exponentials of one rate, and raw weights, which are 0.

    Returns:
        (n,) the family of each source.
    """
    keys: dict[Hashable, int] = {}
    found = []
    for source in sources:
        match source:
            case PowerProfile():
                key: Hashable = ("gamma", source.gamma)
            case ExponentialProfile():
                key = ("rate", source.rate)
            case RawProfile():
                key = "raw"
            case _:
                key = ("label", source.label, source.end)
        found.append(keys.setdefault(key, len(keys)))
    return np.array(found, dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Parts:
    """What ``int q (F_r - sum_i x_i F_i)^2 dt`` and its white noise are made of, as few rows.

    The mean of F over a cell, weighed by q, and the deviations from it are orthogonal, so their
    squares add up to ``int q F^2 dt``. Inside a cell the sources of a family are multiples of one
    of them, so they span no more dimensions than there are families; rows in an orthogonal basis of
    that span keep all of them. What the targets have outside of it no weights can change.

    Attributes:
        steps: (cells, n + k) means over each cell.
        inside: (rows, n + k) deviations from them.
        white: (rows, n + k) densities.
        cells: (rows,) the cell of each row.
        inside_rest: (cells, k) squares of the targets' deviations that are in no row.
        white_rest: (cells, k) the same of their densities.
    """

    steps: Array
    inside: Array
    white: Array
    cells: NDArray[np.intp]
    inside_rest: Array
    white_rest: Array

    def between_updates(self, system: System) -> Array:
        """Squares of the targets' deviations over the time from one update to the next, (cells, k).

        Over N steps a target's F rises by ``N p_r``, and what is made of averages that are updated
        at the N-th alone can only have its mean: ``N^2/12 int q p_r^2 dt`` is left.
        """
        squares = self.white_rest.copy()
        np.add.at(squares, self.cells, self.white[:, len(system.source_ends) :] ** 2)
        return system.stride**2 / 12 * squares


def split(system: System, q: Array) -> Parts:
    """Split the walk into its steps from cell to cell and what happens inside of the cells.

    Args:
        system: n sources and k targets.
        q: (rows,) intensity at the nodes.
    """
    w = q * system.weights
    n = len(system.source_ends)
    edges = np.flatnonzero(np.diff(system.cells, prepend=-1, append=-1))
    steps: list[Array] = []
    rows: list[Array] = []
    rests: list[Array] = []
    for cell, (low, high) in enumerate(pairwise(edges)):
        span = slice(low, high)
        cdf = np.hstack([system.source_cdf[span], system.target_cdf[span]])
        density = np.hstack([system.source_density[span], system.target_density[span]])
        power, root = float(w[span].sum()), np.sqrt(w[span])[:, None]
        mean = w[span] @ cdf / power
        unfinished = np.flatnonzero(system.source_ends >= system.ends[cell])
        _, which = np.unique(system.families[unfinished], return_index=True)
        steps.append(power**0.5 * mean)
        # Deviations from the mean, and densities.
        blocks = root * np.array([cdf - mean, density])
        # Rows in a basis of the columns that span those of the sources.
        basis = np.linalg.qr(blocks[:, :, unfinished[which]]).Q
        rows.append(basis.transpose(0, 2, 1) @ blocks)
        rests.append(((blocks[:, :, n:] - basis @ rows[-1][:, :, n:]) ** 2).sum(axis=1))
    inside, white = np.concatenate(rows, axis=1)
    inside_rest, white_rest = np.stack(rests, axis=1)
    return Parts(
        steps=np.array(steps),
        inside=inside,
        white=white,
        cells=np.repeat(np.arange(len(rows)), [part.shape[1] for part in rows]),
        inside_rest=inside_rest,
        white_rest=white_rest,
    )
