"""Sources and targets at quadrature nodes, and the rows whose squares are expected errors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from phema_cli.profiles import Array, ExponentialProfile, PowerProfile, Profile, RawProfile
from phema_cli.solver.quadrature import nodes


@dataclass(frozen=True)
class System:
    """Profiles evaluated at nodes over training time, in units of the last source's time.

    A cell is the time between two neighbouring ends of sources.

    Attributes:
        unit: the last source's time, in steps.
        times: (rows,) nodes.
        weights: (rows,) quadrature weights.
        ends: (cells,) where each cell ends.
        cells: (rows,) the cell of each node.
        source_ends: (n,) times of the sources.
        families: (n,) see :func:`families`.
        target_ends: (k,) times of the targets.
        points: (n + k,) whether a source or target is a single point, without a density.
        source_cdf: (rows, n) F_i.
        target_cdf: (rows, k) F_r.
        source_density: (rows, n) p_i.
        target_density: (rows, k) p_r.
    """

    unit: float
    times: Array
    weights: Array
    ends: Array
    cells: NDArray[np.intp]
    source_ends: Array
    families: NDArray[np.intp]
    target_ends: Array
    points: NDArray[np.bool_]
    source_cdf: Array
    target_cdf: Array
    source_density: Array
    target_density: Array

    @cached_property
    def gaps(self) -> Array:
        """(cells,) length of each cell."""
        return np.diff(self.ends, prepend=0.0)

    @property
    def gap(self) -> float:
        """The median time from one snapshot to the next."""
        return float(np.median(self.gaps[1:])) if len(self.gaps) > 1 else float(self.gaps[0])


def evaluate(sources: Sequence[Profile], targets: Sequence[Profile]) -> System:
    """Evaluate profiles at nodes that integrate their products.

    Args:
        sources: n profiles.
        targets: k profiles, none ending later than the last source.
    """
    everything = [*sources, *targets]
    unit = max(s.end for s in sources)
    breaks = np.unique([b / unit for p in everything for b in p.breaks])
    t, w = nodes(breaks, min(p.exponent for p in everything), max(p.exponent for p in everything))
    source_ends = np.array([s.end / unit for s in sources])
    ends = np.unique(source_ends)
    return System(
        unit=unit,
        times=t,
        weights=w,
        ends=ends,
        cells=np.minimum(np.searchsorted(ends, t), len(ends) - 1),
        source_ends=source_ends,
        families=families(sources),
        target_ends=np.array([p.end / unit for p in targets]),
        points=np.array([not p.square_integrable for p in everything]),
        source_cdf=np.column_stack([s.cdf(t * unit) for s in sources]),
        target_cdf=_columns([p.cdf(t * unit) for p in targets], len(t)),
        source_density=unit * np.column_stack([s.density(t * unit) for s in sources]),
        target_density=unit * _columns([p.density(t * unit) for p in targets], len(t)),
    )


def _columns(columns: Sequence[Array], rows: int) -> Array:
    """Columns side by side; none is a matrix without columns."""
    return np.column_stack(columns) if columns else np.empty((rows, 0))


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
    inside: list[tuple[Array, Array]] = []
    white: list[tuple[Array, Array]] = []
    for cell, (low, high) in enumerate(pairwise(edges)):
        span = slice(low, high)
        cdf = np.hstack([system.source_cdf[span], system.target_cdf[span]])
        density = np.hstack([system.source_density[span], system.target_density[span]])
        power, root = float(w[span].sum()), np.sqrt(w[span])[:, None]
        mean = w[span] @ cdf / power
        unfinished = np.flatnonzero(system.source_ends >= system.ends[cell])
        _, which = np.unique(system.families[unfinished], return_index=True)
        steps.append(power**0.5 * mean)
        inside.append(_in_basis(root * (cdf - mean), unfinished[which], n))
        white.append(_in_basis(root * density, unfinished[which], n))
    return Parts(
        steps=np.array(steps),
        inside=np.concatenate([rows for rows, _ in inside]),
        white=np.concatenate([rows for rows, _ in white]),
        cells=np.repeat(np.arange(len(inside)), [len(rows) for rows, _ in inside]),
        inside_rest=np.array([rest for _, rest in inside]),
        white_rest=np.array([rest for _, rest in white]),
    )


def _in_basis(block: Array, chosen: NDArray[np.intp], n: int) -> tuple[Array, Array]:
    """A block's rows in a basis of its chosen columns, and the squares that columns from n lose."""
    basis = np.linalg.qr(block[:, chosen]).Q
    rows: Array = basis.T @ block
    rest: Array = ((block[:, n:] - basis @ rows[:, n:]) ** 2).sum(axis=0)
    return rows, rest
