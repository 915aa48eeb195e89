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


def _edges_to_zero(first: float, gamma_min: float, steep: float) -> list[float]:
    """Cell edges from near 0 up to ``first``, each cell even in log time, growing with depth.

    At log depth s below ``first`` an exponent g has fallen to exp(-g s): what is steeper than
    _DEPTH/s no longer counts there, so the cells may widen in proportion to s.
    """
    depth, edges = 0.0, [first]
    end = min(_DEPTH / (2 * gamma_min + 1), 600.0)
    while depth < end:
        finest = _MANY_CHANGE / (2 * steep)
        depth += min(max(finest, depth * _MANY_CHANGE / (4 * _DEPTH)), 1.0)
        edges.append(first * math.exp(-depth))
    return edges[::-1]


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
    edges = _edges_to_zero(float(breaks[0]), gamma_min, steep)
    for low, high in pairwise(breaks.tolist()):
        parts = max(1, math.ceil(2 * steep * math.log(high / low) / _MANY_CHANGE - 1e-9))
        edges += [low * (high / low) ** (i / parts) for i in range(1, parts)] + [high]
    times, weights = [], []
    for low, high in pairwise(edges):
        change = 2 * steep * math.log(high / low)
        x, w = _unit_rule(_FEW_NODES if change <= _FEW_CHANGE else _MANY_NODES)
        times.append(low + (high - low) * x)
        weights.append((high - low) * w)
    return np.concatenate(times), np.concatenate(weights)
