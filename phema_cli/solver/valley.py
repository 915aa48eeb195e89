"""A smooth curve through noisy points: where it is lowest, and which points are as low as that.

The model is ``y(u) = a + b u + c u^2 + g(u) + noise`` with u a logarithm: a parabola with a flat
prior, a Gaussian process g that bends it where the points ask for that, and independent noise.
What is not known of g and of the noise is averaged over a table of values, each weighed by its
restricted likelihood (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006,
sections 2.7 and 5.4.1).
"""

import math

import numpy as np

from phema_cli.profiles import Array

#: values that are tried, relative to the range of the metrics: noise of an evaluation, size of g;
#: and over how far g is correlated, in log scale.
_NOISES = (1e-4, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
_SIZES = (0.0, 0.02, 0.06, 0.2, 0.6, 2.0)
_LENGTHS = (0.4, 0.8, 1.6)
#: models less likely than this part of the likeliest one are left out.
_LEAST = 1e-3
#: fewer points than this have a parabola through them, and say nothing of noise.
LEAST_POINTS = 4


def _models() -> tuple[Array, Array, Array, Array]:
    """Noise, size, length and log prior of all models; half of the prior is on plain parabolas."""
    bent = len(_SIZES[1:]) * len(_LENGTHS)
    rows = [(noise, 0.0, 1.0, math.log(0.5)) for noise in _NOISES] + [
        (noise, size, length, math.log(0.5 / bent))
        for noise in _NOISES
        for size in _SIZES[1:]
        for length in _LENGTHS
    ]
    noise, size, length, prior = np.array(rows).T
    return noise, size, length, prior


class Valley:
    """The curve through points, of which there are at least ``LEAST_POINTS``.

    Args:
        u: (n,) places, distinct values among them at least three.
        y: (n,) values there, finite; lower is better.
        counts: (n,) of how many evaluations each value is the mean.
        known: variance of an evaluation as repetitions show it, and its degrees of freedom.

    Attributes:
        noise: standard deviation of an evaluation, in the unit of y.
    """

    def __init__(self, u: Array, y: Array, counts: Array, known: tuple[float, int] | None) -> None:
        noise, self._size, self._length, prior = _models()
        self._noise = noise
        self._centre = float(u.mean())
        self._low, self._unit = float(y.min()), float(np.ptp(y)) or 1.0
        self._u = u - self._centre
        values = ((y - self._low) / self._unit)[:, None]
        basis = _basis(self._u)
        bend = self._covariance(self._u[:, None] - self._u)
        self._root = np.linalg.cholesky(bend + (noise**2)[:, None, None] * np.diag(1 / counts))
        shape = (len(noise), *basis.shape)
        self._basis = np.linalg.solve(self._root, np.broadcast_to(basis, shape))
        white = np.linalg.solve(self._root, np.broadcast_to(values, (len(noise), len(u), 1)))
        self._normal = self._basis.swapaxes(1, 2) @ self._basis
        parabola = np.linalg.solve(self._normal, self._basis.swapaxes(1, 2) @ white)
        rest = white - self._basis @ parabola
        likelihood = (
            prior
            - np.log(np.diagonal(self._root, axis1=1, axis2=2)).sum(axis=1)
            - 0.5 * (rest**2).sum(axis=(1, 2))
            - 0.5 * np.linalg.slogdet(self._normal)[1]
        )
        if known is not None:
            variance, freedom = known[0] / self._unit**2, known[1]
            likelihood -= 0.5 * freedom * (np.log(noise**2) + variance / noise**2)
        self._parabola = parabola[..., 0]
        self._bend = np.linalg.solve(self._root.swapaxes(1, 2), rest)[..., 0]
        self._weigh(likelihood)
        self.noise = self._unit * math.sqrt(float(self._weights @ self._noise**2))

    def _weigh(self, likelihood: Array) -> None:
        """Keep the models that count, and how much each does."""
        weights = np.exp(likelihood - likelihood.max())
        kept = weights > _LEAST
        self._weights = weights[kept] / weights[kept].sum()
        for name in ("root", "basis", "normal", "parabola", "bend", "noise", "size", "length"):
            setattr(self, f"_{name}", getattr(self, f"_{name}")[kept])

    def mean(self, u: Array) -> Array:
        """The curve at places, (k,)."""
        heights: Array = self._low + self._unit * (self._weights @ self._means(u))
        return heights

    def _means(self, u: Array) -> Array:
        """The curve of each model, (models, k), in units of the range."""
        at = u - self._centre
        near = self._covariance(at[:, None] - self._u)
        return self._parabola @ _basis(at).T + (near @ self._bend[..., None])[..., 0]

    def _covariance(self, gaps: Array) -> Array:
        """Covariance of g at two places by their distance, of each model: (models, *gaps)."""
        size, length = (v.reshape(-1, *(1,) * gaps.ndim) for v in (self._size, self._length))
        return size**2 * np.exp(-0.5 * (gaps / length) ** 2)

    def _known(self, near: Array, basis: Array) -> tuple[Array, Array]:
        """Of values at k places: white covariances with the points, and the parabola's part left.

        ``near`` is (models, k, n), ``basis`` (3, k); the two are (models, n, k) and (models, 3, k).
        """
        white = np.linalg.solve(self._root, near.swapaxes(1, 2))
        return white, basis - self._basis.swapaxes(1, 2) @ white

    def lowest(self, low: float, high: float) -> float:
        """Where the curve is lowest between two ends, to a thousandth of their distance."""
        places = np.linspace(low, high, 1001)
        return float(places[int(np.argmin(self.mean(places)))])

    def spread(self, u: Array, at: float) -> Array:
        """Standard error of the curve's height at places above that at another one, (k,)."""
        places = np.append(u, at)
        means = self._means(places)
        centred = places - self._centre
        white, lack = self._known(self._covariance(centred[:, None] - self._u), _basis(centred).T)
        solved = np.linalg.solve(self._normal, lack)
        covariance = self._covariance(places[:, None] - places)
        covariance = covariance - white.swapaxes(1, 2) @ white + lack.swapaxes(1, 2) @ solved
        own = np.diagonal(covariance, axis1=1, axis2=2)
        variance = own[:, :-1] + own[:, -1:] - 2 * covariance[:, :-1, -1]
        above = means[:, :-1] - means[:, -1:]
        variance = np.maximum(variance, 0.0) + (above - self._weights @ above) ** 2
        errors: Array = self._unit * np.sqrt(self._weights @ variance)
        return errors

    def gain(self, u: Array, at: float) -> Array:
        """By how much an evaluation at places reduces the variance of the slope elsewhere.

        The lowest point of a curve moves by its slope there over its bend, so this is what tells
        most about where it is.

        Args:
            u: (k,) places.
            at: where the slope counts.
        """
        places, place = u - self._centre, at - self._centre
        white, lack = self._known(self._covariance(places[:, None] - self._u), _basis(places).T)
        gaps = (place - self._u)[None]
        slope = self._covariance(gaps) * (-gaps / self._length[:, None, None] ** 2)
        steep, leaning = self._known(slope, np.array([[0.0], [1.0], [2 * place]]))
        solved = np.linalg.solve(self._normal, lack)
        gap = at - u
        shared = self._covariance(gap) * (-gap / self._length[:, None] ** 2)
        shared = shared - (steep.swapaxes(1, 2) @ white)[:, 0]
        shared = shared + (leaning.swapaxes(1, 2) @ solved)[:, 0]
        variance = (self._size**2)[:, None] - (white**2).sum(axis=1) + (lack * solved).sum(axis=1)
        gained = shared**2 / (np.maximum(variance, 0.0) + (self._noise**2)[:, None])
        mean: Array = self._weights @ gained
        return mean


def _basis(u: Array) -> Array:
    """``1, u, u^2`` at places, (k, 3)."""
    return np.stack([np.ones_like(u), u, u * u], axis=1)
