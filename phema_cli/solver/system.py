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
        has_density: (n,) whether a source has one.
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
    has_density: NDArray[np.bool_]
    source_cdf: Array
    target_cdf: Array
    source_density: Array
    target_density: Array

    @cached_property
    def gaps(self) -> Array:
        """(cells,) length of each cell."""
        return np.diff(self.ends, prepend=0.0)


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
        has_density=np.array([s.square_integrable for s in sources]),
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


def compressed(system: System, rows: Array, cells: NDArray[np.intp]) -> tuple[Array, Array]:
    """Fewer rows with the same inner products among sources, and with targets.

    Inside a cell the sources of a family are multiples of one of them, so they span no more
    dimensions than there are families; rows in an orthogonal basis of that span keep all of them.
    What the targets have outside of it no weights can change.

    Args:
        system: n sources and k targets.
        rows: (r, n + k), zero for sources that end before a row's cell.
        cells: (r,) ascending, the cell of each row.

    Returns:
        (r', n + k) rows, and (k,) the squares of what the targets have outside of them.
    """
    n = len(system.source_ends)
    edges = np.flatnonzero(np.diff(cells, prepend=-1, append=-1))
    outside = (rows[:, n:] ** 2).sum(axis=0)
    kept = []
    for low, high in pairwise(edges):
        open_still = np.flatnonzero(system.source_ends >= system.ends[cells[low]])
        _, which = np.unique(system.families[open_still], return_index=True)
        block = rows[low:high]
        basis = np.linalg.qr(block[:, open_still[which]]).Q
        part = basis.T @ block
        outside -= (part[:, n:] ** 2).sum(axis=0)
        kept.append(part)
    return np.concatenate(kept), np.maximum(outside, 0.0)
