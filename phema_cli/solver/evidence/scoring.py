"""How well the snapshots predict each other if a hypothesis about their tags is true.

docs/evidence.md defines s, J, C and P, the figures that come of it. ``series`` are the n snapshots,
``reduced`` is their sample in the order of the series.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from phema_cli.profiles import Array, PowerProfile, Profile, gamma_from_sigma_rel
from phema_cli.solver.calibration import fit, neighbouring
from phema_cli.solver.evidence.laws import Hypothesis, Series, as_tagged
from phema_cli.solver.evidence.reduction import Reduced
from phema_cli.solver.least_squares import contrasts, leave_one_out, minimise
from phema_cli.solver.movement import Movement
from phema_cli.solver.system import System, evaluate
from phema_cli.solver.weights import averaging_distance

#: sigma_rel of the targets by which answers are compared: short, usual, long.
TARGETS = tuple(gamma_from_sigma_rel(s) for s in (0.05, 0.1, 0.2))
#: bounds on gamma + 1, and on the retention over the run of other laws: below, profiles can't be
#: integrated; above, they take long and are as good as raw.
_LEAST_SCALE, _MOST_POWER, _MOST_SCALE = 0.52, 400.0, 3000.0


@dataclass(frozen=True, slots=True)
class Score:
    """What a hypothesis is worth.

    Each snapshot i is held out and estimated from the others by the weights that the hypothesis'
    own fit gives. ``l_i`` is the mean square error that the sample shows, ``v_i`` the one that the
    fit predicts.

    Attributes:
        hypothesis: what the score is of.
        score: ``mean_i (log v_i + l_i/v_i)``, a proper scoring rule; less is better.
        jitter: J, the largest jitter over the median time between snapshots.
        ratios: (n,) ``l_i/v_i``, about 1 where all is well.
        movement: the fit.
    """

    hypothesis: Hypothesis
    score: float
    jitter: float
    ratios: Array
    movement: Movement

    @property
    def worst(self) -> float:
        """C, the largest ratio."""
        return float(self.ratios.max())


def possible(hypothesis: Hypothesis, series: Sequence[Series]) -> bool:
    """Whether an alternative can be scored: numbers within bounds, no two snapshots alike."""
    first = min(s.times[0] for s in series)
    last = max(s.times[-1] for s in series) + hypothesis.offset
    if hypothesis.offset <= -first:
        return False
    for law, tagged in zip(hypothesis.laws, series, strict=True):
        if law.kind == "other":
            if hypothesis.offset or law != tagged.law:
                return False
        elif law.averages and law != tagged.law:
            scale = law.scale * (1.0 if law.kind == "power" else last / law.every)
            least = 0.0 if law.kind == "warmup" else _LEAST_SCALE
            if not least < scale < (_MOST_POWER if law.kind == "power" else _MOST_SCALE):
                return False
    # Two snapshots of one law and one time have a singular covariance.
    places = [
        (law, t) for law, s in zip(hypothesis.laws, series, strict=True) for t in set(s.times)
    ]
    return len(set(places)) == len(places)


def score(hypothesis: Hypothesis, series: Sequence[Series], reduced: Reduced) -> Score | None:
    """Fit a movement under a hypothesis, hold out each snapshot, and compare: s, J and C.

    Returns:
        None where the equations have no solution in float64.
    """
    profiles = hypothesis.profiles(series)
    sizes = [len(s.rows) for s in series]
    pairs = neighbouring(profiles, np.repeat(np.arange(len(series)), sizes))
    away = reduced.root[pairs[:, 0]] - reduced.root[pairs[:, 1]]
    squares = (away**2).mean(axis=1)
    system = _system(hypothesis, series, [])
    try:
        # The weights' own mean square matters to sums other than one only.
        movement, parts = fit(
            system, pairs, squares, reduced.root, reduced.rounding, mean_square=1.0
        )
        rows, *_ = movement.rows(system, parts)
        seen, predicted = _held_out(rows, movement.noise(parts, sum(sizes)), reduced)
    except np.linalg.LinAlgError:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = seen / predicted
        value = float(np.mean(np.log(predicted) + ratios))
    if not np.isfinite(value):
        return None
    jitter = float(movement.jitter.max()) / (system.gap * system.unit)
    return Score(hypothesis, value, jitter, ratios, movement)


def error_ratios(movement: Movement, series: Sequence[Series], reduced: Reduced) -> Array | None:
    """How well a movement that others of their run have shown predicts some snapshots.

    Returns:
        (n,) ``l_i/v_i``, each held out from these; None where they have no solution in float64.
    """
    try:
        rows, _, noise, _ = movement.problem(_system(as_tagged(series), series, []))
        seen, predicted = _held_out(rows, noise, reduced)
    except np.linalg.LinAlgError:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = np.where(seen > 0, seen / predicted, 0.0)
    return ratios


def _held_out(rows: Array, noise: Array, reduced: Reduced) -> tuple[Array, Array]:
    """(n,) l and v: observed and predicted mean-square errors of snapshots held out."""
    held = leave_one_out(rows, noise)
    seen = ((held @ reduced.root) ** 2).mean(axis=1)
    predicted = ((rows @ held.T) ** 2).sum(axis=0) + np.einsum("ij,ij->i", held @ noise, held)
    return seen, predicted


def _system(hypothesis: Hypothesis, series: Sequence[Series], targets: Sequence[Profile]) -> System:
    """The snapshots as sources under a hypothesis; a series is one family, except "other"."""
    numbers: list[int] = []
    for k, (law, tagged) in enumerate(zip(hypothesis.laws, series, strict=True)):
        first = len(numbers) + len(series)
        alone = range(first, first + len(tagged.rows))
        numbers += alone if law.kind == "other" else [k] * len(tagged.rows)
    system = evaluate(hypothesis.profiles(series), targets)
    return replace(system, families=np.array(numbers, dtype=np.intp))


def rank(scored: Score, series: Sequence[Series], reduced: Reduced) -> float:
    """In how many independent ways the elements move, as far as m = n - 1 contrasts can tell.

    Contrasts that the fit makes independent and of variance one have second moments G near the
    unit matrix if many elements move on their own. If all moves are mixtures of r, G is that of r
    samples (Wishart), ``E tr G^2 = m + m (m + 1)/r``: the fewer, the less a fit is to be trusted.

    Returns:
        r, infinite where G is as even as it can be.
    """
    rows, _, noise, _ = scored.movement.problem(_system(scored.hypothesis, series, []))
    white = contrasts(rows, noise).T @ reduced.root
    moments = white @ white.T
    m = len(moments)
    moments *= m / np.trace(moments)
    excess = float((moments**2).sum()) - m
    return m * (m + 1) / excess if excess > 0 else math.inf


def answers(scored: Score, series: Sequence[Series]) -> tuple[Array, Array]:
    """What the snapshots give for the targets ``TARGETS`` at the last time if a hypothesis is true.

    Returns:
        (n, k) weights of the snapshots, and (k,) the RMS distance per parameter by which averaging
        moves the final weights.
    """
    last = max(p.end for p in scored.hypothesis.profiles(series))
    targets = [PowerProfile(gamma, last) for gamma in TARGETS]
    system = _system(scored.hypothesis, series, targets)
    a, b, noise, _ = scored.movement.problem(system)
    return minimise(a, b, noise), averaging_distance(system, scored.movement)
