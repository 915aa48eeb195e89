"""Gauss-Legendre nodes over training time, dense enough for power functions of any exponent.

Least squares on the nodes replaces the Gram matrix of the profiles, whose condition number is the
square of theirs (above 1e14 for a few hundred snapshots).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np

from phema_cli.profiles import Array

# A product of two densities of exponents <= g changes by exp(2 (g+1) h) over a cell of width h in
# log time. Gauss-Legendre is exact to rounding with 6 nodes up to a change of e, with 12 up to e^8,
# if the cell also stays away from 0, where flat exponents are singular: counting g+1 as at least
# _STEEP keeps h at most 1.
_FEW_NODES, _MANY_NODES = 6, 12
_FEW_CHANGE, _MANY_CHANGE = 1.0, 8.0

# Below exp(-_DEPTH) of a square integral lies nothing that float64 could still see.
_DEPTH = 40.0
_STEEP = 4.0


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
    whole, depth, edges = math.log(high / low), 0.0, [low]
    finest = _MANY_CHANGE / (2 * steep)
    depths = []
    while depth < whole - 1e-9 * finest:
        depth += min(max(finest, depth * _MANY_CHANGE / (4 * _DEPTH)), 1.0)
        depths.append(min(depth, whole))
    edges += [high * math.exp(-d) for d in depths[-2::-1]]
    return edges


def nodes(breaks: Array, gamma_min: float, gamma_max: float) -> tuple[Array, Array]:
    """Nodes and weights that integrate products of two power densities from 0 to the last break.

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
