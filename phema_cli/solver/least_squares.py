"""Least squares: the weights that minimise J (docs/maths.md), and holding snapshots out.

Of n sources and k targets ``sources`` is A (rows, n), ``targets`` b (rows, k), and ``noise`` N
(n, n), symmetric and not negative.
"""

from typing import cast

import numpy as np

from phema_cli.profiles import Array

#: ridge on the diagonal of a covariance, relative to it, at which a factor is tried first.
_RIDGE = 1e-10
_LEAST_PIVOT = 1e-14


def minimise(
    sources: Array, targets: Array, noise: Array | None = None, *, sum_to_one: bool = True
) -> Array:
    """Weights x that minimise ``|b - A x|^2 + x' N x`` for each target.

    With square roots of the movement's intensity times profiles' cumulative weights in A and b, the
    covariance of the storage errors in N, and weights that sum to one, that is the best linear
    unbiased estimator (method ``blue``). With densities in A and b and nothing else it is the
    paper's projection (arXiv:2312.02696, Algorithm 3), whose normal equations (Eq. 151) have the
    square of this problem's condition number.

    A reflection eliminates the constraint; QR solves what remains.

    Args:
        sources: A, with linearly independent columns where there is no noise.
        targets: b.
        noise: N.
        sum_to_one: whether the weights must sum to one.

    Returns:
        (n, k) weights, float64.
    """
    n, rows = sources.shape[1], len(sources)
    joint = np.zeros((rows + (0 if noise is None else n), n + targets.shape[1]))
    joint[:rows, :n], joint[:rows, n:] = sources, targets
    if noise is not None:
        joint[rows:, :n] = cholesky(noise)
    if not sum_to_one:
        return _least_squares(joint, n)
    joint[:, n:] -= joint[:, :n].mean(axis=1, keepdims=True)
    _reflect(joint[:, :n])
    x = _from_reflected(_least_squares(joint[:, 1:], n - 1)) + 1 / n
    # Constant weights stay what they are.
    normalized: Array = x / x.sum(axis=0)
    return normalized


def _reflect(rows: Array) -> None:
    """Reflect rows of n numbers in place, so that (1, ..., 1) becomes the first axis.

    The Householder reflection is its own inverse, and takes all other axes to an orthogonal basis
    of the vectors that sum to zero.
    """
    n = rows.shape[1]
    v = np.full(n, n**-0.5)
    v[0] += 1
    rows -= np.outer(rows @ v, 2 / (v @ v) * v)


def _from_reflected(y: Array) -> Array:
    """The (n, k) vectors that sum to zero of (n - 1, k) coordinates in that basis."""
    x = np.vstack([np.zeros(y.shape[1]), y])
    _reflect(x.T)
    return x


def _least_squares(joint: Array, n: int) -> Array:
    """The x of ``min |b - a x|``; ``joint`` is overwritten.

    Args:
        joint: (rows, n + k) a and b beside it; columns of a are linearly independent.
        n: columns of a.
    """
    if n == 0:
        return np.empty((0, joint.shape[1]))
    # QR is blind to the scale of columns, what is made of its triangle is not.
    scale = _scale(joint[:, :n])
    r = cast("Array", np.linalg.qr(joint, mode="r"))
    # LU of an upper triangle with its pivots on the diagonal is back substitution.
    x: Array = np.linalg.solve(r[:n, :n], r[:n, n:]) / scale[:, None]
    return x


def _scale(a: Array) -> Array:
    """Scale columns to norm one in place; (n,) the norms, 1 for columns of zeros."""
    scale: Array = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1.0
    a /= scale
    return scale


def cholesky(covariance: Array) -> Array:
    """An upper triangle R with ``R' R`` the covariance, but for a ridge on its diagonal.

    Rounding may keep a matrix that is computed from data from being a covariance; the ridge grows
    until it is one.
    """
    n = len(covariance)
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    if not scale.any():
        return np.zeros((n, n))
    scale = np.maximum(scale, 1e-6 * scale.max())
    correlation, ridge = covariance / np.outer(scale, scale), _RIDGE
    while True:
        try:
            lower = np.linalg.cholesky(correlation + ridge * np.eye(n))
        except np.linalg.LinAlgError:
            ridge *= 10
        else:
            return cast("Array", lower.T * scale)


def contrasts(sources: Array, noise: Array) -> Array:
    """Contrasts of two sources or more, independent and of variance one if A and N are right.

    Returns:
        (n, n - 1) float64, columns that sum to zero.
    """
    a = np.vstack([sources, cholesky(noise)])
    _reflect(a)
    scale = _scale(a[:, 1:])
    r = cast("Array", np.linalg.qr(a[:, 1:], mode="r"))
    # Snapshots that differ by nothing, not even by rounding, leave no pivot.
    np.fill_diagonal(r, np.where(np.abs(np.diag(r)) < _LEAST_PIVOT, _LEAST_PIVOT, np.diag(r)))
    return _from_reflected(np.linalg.solve(r, np.eye(len(scale))) / scale[:, None])


def leave_one_out(sources: Array, noise: Array) -> Array:
    """For each of two sources or more, the contrast to its best estimate from the others.

    Row i holds 1 at i and minus the estimate's weights elsewhere, so rows sum to zero. With K the
    sources' covariance and Z a basis of what sums to zero, it is row i of ``Z (Z'KZ)^-1 Z'`` over
    its diagonal.

    Returns:
        (n, n) float64.
    """
    half = contrasts(sources, noise)
    precision = half @ half.T
    held: Array = precision / np.diag(precision)[:, None]
    return held
