"""Calibration: fits drift, roughness, jitter and rounding to a sample of the snapshots.

docs/maths.md, "What the snapshots say of the run". Each is a maximum of a likelihood that takes
elements as independent. The drift q(t) is fitted to the mean-square differences of neighbouring
snapshots, whose expected value is ``int q (F_a - F_b)^2 dt + N_aa + N_bb - 2 N_ab``. Roughness and
jitter are fitted to what is left of each snapshot when it is held out and estimated from all the
others: the drift says how far the weights move from one snapshot to the next, the held-out ones
how well that can be bridged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from phema_cli.errors import InputError
from phema_cli.profiles import Array, Profile
from phema_cli.solver.least_squares import leave_one_out
from phema_cli.solver.movement import EARLY, Movement, Rounding
from phema_cli.solver.system import Parts, System, evaluate, selected

#: sizes that keep the fit of a thousand snapshots below a second: pairs of snapshots compared,
#: values that the held-out estimates are computed for.
_MOST_PAIRS, _MOST_VALUES = 512, 2_000_000
#: most pieces of the drift: it keeps the fit of a thousand snapshots below a second.
_MOST_KNOTS = 64
#: weight of the drift's second and first differences (of its logarithm, against that of 1/t).
_BEND, _SLOPE = 0.1, 0.01
#: knots before the first snapshot, between which the drift keeps to the shape of 1/t.
_EARLY_KNOTS = 3
#: fraction of an observed difference that counts as movement at least, however large rounding is:
#: where weights stand still on values that are stored exactly, no rounding explains anything.
_LEAST_MOVEMENT = 0.3
_ROUNDS = 3
_NEWTON_STEPS, _TRIALS, _LONGEST = 40, 10, 3.0
#: least number of cells of a block that shares one roughness and jitter.
_CELLS = 4
#: what is tried for roughness, and for jitter in units of the gap between snapshots.
_ROUGHNESS = np.exp2(np.arange(-30, 19) / 6)
_JITTER = np.concatenate([[0.0], np.geomspace(1e-3, 4.0, 36)])
#: roughness is shrunk towards 1: this times the square of its logarithm, per block.
_SHRINK = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """Elements of the snapshots.

    Attributes:
        values: (n, e) the same elements of every snapshot, float32 or float64, all finite.
        units: (e,) unit in the last place of each element as it is stored; 0 where that is exact.
        errors: (n,) mean square error of each snapshot's elements that it shares with no other, as
            packed ones have; None without any.
        copied: names of tensors that an average holds as copies of the raw weights.
    """

    values: NDArray[np.floating]
    units: Array
    errors: Array | None = None
    copied: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """``<Sample of 4096 elements of 40 snapshots>``."""
        snapshots, elements = self.values.shape
        return f"<Sample of {elements} elements of {snapshots} snapshots>"

    def of(self, rows: NDArray[np.intp]) -> Sample:
        """The sample of some of the snapshots."""
        if len(rows) == len(self.values):
            return self
        few = None if self.errors is None else self.errors[rows]
        return Sample(self.values[rows], self.units, few)


def calibrate(sources: Sequence[Profile], sample: Sample) -> Movement | None:
    """Fit drift, roughness, jitter and rounding.

    Of thousands of sources those of :func:`phema_cli.solver.system.selected` are fitted to.

    Args:
        sources: n profiles.
        sample: the sources' elements in the same order.

    Returns:
        The movement, or None where there is nothing to fit: fewer than two snapshots, or none of
        the elements moves.

    Raises:
        InputError: the sources' elements differ by more than a square can hold.
    """
    if len(sources) <= 1 or not sample.values.size:
        return None
    ends = np.array([s.end for s in sources])
    rows = selected(ends, float(ends.max()))
    chosen, few = [sources[i] for i in rows], sample.of(rows)
    system = evaluate(chosen, [])
    pairs = neighbouring(chosen, system.families)
    latest = few.values[np.argmax(ends[rows])]
    with np.errstate(over="ignore"):
        squares, paces = _differences(few.values, pairs)
        mean_square = float(np.mean(np.square(latest, dtype=np.float64)))
    if not np.isfinite(squares).all():
        raise InputError(
            "values of the snapshots are too large to be compared",
            remedy="leave their tensor out with --copy, or pass --no-sample",
        )
    if not squares.any():
        return None
    moved = np.any(few.values != latest, axis=0)
    rounding = Rounding.of_elements(np.where(moved, few.units, 0.0), paces)
    stride = max(1, few.values.size // _MOST_VALUES)
    residual = few.values[:, ::stride] - latest[::stride]
    movement, _ = fit(system, pairs, squares, residual, rounding, mean_square, few.errors)
    return replace(movement, errors=sample.errors)


def neighbouring(sources: Sequence[Profile], families: NDArray[np.intp]) -> NDArray[np.intp]:
    """Sources to compare: same time and neighbouring length, same family and neighbouring time.

    Args:
        sources: n profiles.
        families: (n,) the family of each, by number.

    Returns:
        (p, 2) indices, about ``_MOST_PAIRS`` of them at most, evenly chosen.
    """
    same_time: dict[float, list[int]] = {}
    same_family: dict[int, list[int]] = {}
    for i, source in enumerate(sources):
        same_time.setdefault(source.end, []).append(i)
        same_family.setdefault(int(families[i]), []).append(i)
    by_length: list[tuple[int, int]] = []
    for end in sorted(same_time):
        by_length += pairwise(sorted(same_time[end], key=lambda i: sources[i].exponent))
    by_time = [
        list(pairwise(sorted(group, key=lambda i: sources[i].end)))
        for group in same_family.values()
    ]
    lists = [by_length, *by_time]
    if not any(lists):
        # Each of its own length and time.
        lists = [list(pairwise(sorted(range(len(sources)), key=lambda i: sources[i].end)))]
    stride = max(1, -(-sum(map(len, lists)) // _MOST_PAIRS))
    # Each list is thinned by itself, from its newest pair on, so that all families stay.
    found = [pair for pairs in lists for pair in pairs[::-1][::stride][::-1]]
    return np.array(found, dtype=np.intp).reshape(-1, 2)


def _differences(values: NDArray[np.floating], pairs: NDArray[np.intp]) -> tuple[Array, Array]:
    """Mean square difference of each pair, and each element's RMS one relative to the average."""
    squares = np.empty(len(pairs))
    relative = np.zeros(values.shape[1])
    for k, (a, b) in enumerate(pairs):
        square = np.square(np.subtract(values[a], values[b], dtype=np.float64))
        squares[k] = square.mean()
        if 0 < squares[k] < np.inf:
            relative += square / squares[k]
    return squares, np.sqrt(relative / max(1, int((squares > 0).sum())))


def fit(
    system: System,
    pairs: NDArray[np.intp],
    squares: Array,
    residual: NDArray[np.floating],
    rounding: Rounding,
    mean_square: float,
    errors: Array | None = None,
) -> tuple[Movement, Parts]:
    """Drift, roughness and jitter under which the snapshots are likeliest.

    Nothing but ``system`` depends on the snapshots' tags, except which pairs there are.

    Args:
        system: the n snapshots as sources, without targets.
        pairs: (p, 2) snapshots that are compared.
        squares: (p,) mean square difference of each pair, in squared parameter units, not all 0.
        residual: (n, e) elements of the snapshots less those of one of them, or any n columns with
            the same mean squares of combinations.
        rounding: of the stored values.
        mean_square: of the weights, in squared parameter units.
        errors: (n,) as those of :class:`Sample`.

    Returns:
        The movement, and the system split by it.
    """
    times, blocks = _knots(system), _blocks(system)
    movement = Movement(
        times=times,
        drift=1 / times,
        blocks=blocks,
        roughness=np.ones(len(blocks)),
        jitter=np.zeros(len(blocks)),
        rounding=rounding,
        mean_square=mean_square,
        measured=True,
        errors=errors,
    )
    movement = _fit_drift(system, movement, pairs, squares)
    parts = movement.split(system)
    return _fit_roughness_and_jitter(system, parts, movement, residual), parts


def _knots(system: System) -> Array:
    """Times between which the drift is interpolated: ends of cells, and a few early ones."""
    ends = system.ends * system.unit
    early = ends[0] * np.geomspace(EARLY, 0.5, _EARLY_KNOTS)
    # All of the first snapshots, between which most changes, then some at even distances.
    dense = min(_MOST_KNOTS // 4, len(ends))
    even = np.linspace(dense - 1, len(ends) - 1, min(_MOST_KNOTS - dense, len(ends)))
    chosen = np.unique(np.concatenate([np.arange(dense), np.round(even).astype(int)]))
    return np.concatenate([early, ends[chosen]])


def _blocks(system: System) -> Array:
    """Last steps of the blocks: at least four cells each, and a quarter of all cells before."""
    last, lasts = 0, []
    while last < len(system.ends):
        last += max(_CELLS, last // _CELLS)
        lasts.append(last - 1)
    lasts[-1] = len(system.ends) - 1
    # What is left over belongs to the block before it.
    if len(lasts) > 1 and lasts[-1] - lasts[-2] < _CELLS:
        del lasts[-2]
    return system.ends[lasts] * system.unit


def _fit_drift(
    system: System, movement: Movement, pairs: NDArray[np.intp], squares: Array
) -> Movement:
    """The movement with its drift at the knots.

    The drift decides which part of the differences is rounding, so the fit is repeated.
    """
    a, b = pairs.T
    f = system.source_cdf
    distance = (f[:, a] - f[:, b]) ** 2 * system.weights[:, None] * system.unit
    # A node's intensity is a mean of the knots beside it, in the logarithm.
    at = np.log(system.times * system.unit)
    knots = np.log(movement.times)
    hats = np.column_stack([np.interp(at, knots, row) for row in np.eye(len(knots))])
    noise = np.zeros(len(squares))
    log_q = None
    for _ in range(_ROUNDS):
        log_q = _likeliest_drift(distance.T, hats, -knots, squares, noise, log_q)
        moved = np.exp(hats @ log_q) @ distance
        apart = 2 * (movement.rounding.variance - movement.rounding.covariance(moved))
        if movement.errors is not None:
            apart += movement.errors[a] + movement.errors[b]
        noise = np.minimum(apart, (1 - _LEAST_MOVEMENT) * squares)
        movement = replace(movement, drift=np.exp(log_q))
    return movement


def _likeliest_drift(
    distance: Array, hats: Array, prior: Array, squares: Array, noise: Array, start: Array | None
) -> Array:
    """Logarithms of the drift at the knots that make the squares most likely.

    Minimises ``1/2 sum (log v + squares/v)`` with ``v = distance exp(hats z) + noise``, plus a
    penalty on bends of ``z - prior``, by damped Newton steps with the expected Hessian.

    Args:
        distance: (p, rows) squared differences of the pairs' profiles, times quadrature weights.
        hats: (rows, m) interpolation from knots to nodes.
        prior: (m,) what the shape is shrunk to.
        squares: (p,) observed mean squares.
        noise: (p,) the rounding in them.
        start: (m,) where to begin.
    """
    m = len(prior)
    unit, penalty = np.eye(m), _penalty(m)
    floor = 1e-12 * squares.max()
    if start is None:
        level = max((squares - noise).sum(), 1e-3 * squares.sum())
        start = prior + np.log(level / (distance @ np.exp(hats @ prior)).sum())

    def loss(z: Array, q: Array) -> float:
        v = distance @ q + noise + floor
        tension = float((z - prior) @ penalty @ (z - prior))
        return float((np.log(v) + (squares + floor) / v).sum() + tension) / 2

    z: Array = start
    q = np.exp(hats @ z)
    damping = 1e-3
    best = loss(z, q)
    for _ in range(_NEWTON_STEPS):
        moved = distance * q
        v = moved.sum(axis=1) + noise + floor
        jacobian = (moved @ hats) / v[:, None]
        gradient = 0.5 * jacobian.T @ (1 - (squares + floor) / v) + penalty @ (z - prior)
        hessian = 0.5 * jacobian.T @ jacobian + penalty
        size = np.trace(hessian) / m
        for _ in range(_TRIALS):
            step = -np.linalg.solve(hessian + damping * size * unit, gradient)
            step *= min(1.0, _LONGEST / max(np.abs(step).max(), 1e-300))
            tried = np.exp(hats @ (z + step))
            value = loss(z + step, tried)
            if value <= best:
                break
            damping *= 10
        else:
            break
        z, q, damping, gain, best = z + step, tried, max(damping / 5, 1e-9), best - value, value
        if gain < 1e-7 * len(squares):
            break
    return z


@lru_cache
def _penalty(m: int) -> Array:
    """What bends and slopes of m numbers cost, as a quadratic form (m, m)."""
    slope = np.diff(np.eye(m), axis=0)
    bend = np.diff(slope, axis=0)
    # Before the first snapshot there is hardly anything to fit to.
    stiff = np.where(np.arange(m - 1) < _EARLY_KNOTS, 1.0, _SLOPE)
    return _BEND * bend.T @ bend + slope.T @ (stiff[:, None] * slope)


def _fit_roughness_and_jitter(
    system: System, parts: Parts, movement: Movement, residual: NDArray[np.floating]
) -> Movement:
    """Roughness and jitter of each block, from the snapshots of that block held out."""
    noise = movement.noise(parts, len(system.source_ends))
    ends = movement.blocks / system.unit * (1 + 1e-12)
    block_of_cell = np.searchsorted(ends, system.ends)
    block_of_source = np.searchsorted(ends, system.source_ends)
    if len(system.ends) > 1:
        # Nothing lies before the first snapshots that could help to estimate them.
        block_of_source[system.source_ends == system.ends[0]] = -1
    first = np.flatnonzero(np.diff(block_of_cell[parts.cells], prepend=-1))
    jitters = _JITTER * system.gap
    # The first cell's movement is that of the drift, whatever its block's roughness.
    early = (parts.cells == 0) & (len(system.ends) > 1)
    for _ in range(2):
        rows, *_ = movement.rows(system, parts)
        held = leave_one_out(rows, noise)
        observed = np.square(held @ residual, dtype=np.float64).mean(axis=1)
        fixed = ((parts.steps @ held.T) ** 2).sum(axis=0)
        fixed += np.einsum("ij,ij->i", held @ noise, held)
        inside, white = (parts.inside @ held.T) ** 2, (parts.white @ held.T) ** 2
        fixed += inside[early].sum(axis=0)
        inside[early], white[early] = 0.0, 0.0
        inside, white = np.add.reduceat(inside, first), np.add.reduceat(white, first)
        roughness, jitter = movement.roughness.copy(), movement.jitter / system.unit
        for k in range(len(movement.blocks)):
            mine = block_of_source == k
            others = np.arange(len(movement.blocks)) != k
            expected = fixed + (roughness[others] ** 2) @ inside[others]
            expected += (jitter[others] ** 2) @ white[others]
            roughness[k], jitter[k] = _likeliest_bridge(
                observed[mine], expected[mine], inside[k, mine], white[k, mine], jitters
            )
        movement = replace(movement, roughness=roughness, jitter=jitter * system.unit)
    return movement


def _likeliest_bridge(
    observed: Array, expected: Array, inside: Array, white: Array, jitters: Array
) -> tuple[float, float]:
    """The f and j with which ``v = expected + f^2 inside + j^2 white`` is likeliest.

    Args:
        observed: (n,) mean square errors of a block's snapshots when they are held out.
        expected: (n,) what other blocks, steps from cell to cell and rounding put into them.
        inside: (n,) the part of movement inside of the block's cells, at roughness 1.
        white: (n,) the part of white noise, at jitter 1.
        jitters: what is tried for j.
    """
    f, j = _ROUGHNESS[:, None, None], jitters[:, None]
    v = np.maximum(expected + f**2 * inside + j**2 * white, np.finfo(np.float64).tiny)
    loss = (np.log(v) + observed / v).sum(axis=2) + _SHRINK * np.log(_ROUGHNESS[:, None]) ** 2
    best = np.unravel_index(np.argmin(loss), loss.shape)
    return float(_ROUGHNESS[best[0]]), float(jitters[best[1]])
