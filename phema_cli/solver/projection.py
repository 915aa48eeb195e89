"""Least-squares projection of targets on stored profiles (arXiv:2312.02696, Algorithm 3)."""

from __future__ import annotations

from typing import cast

import numpy as np

from phema_cli.profiles import Array


def projection(sources: Array, targets: Array) -> Array:
    """Weights x that minimise ``int (p_r - sum_i x_i p_i)^2 dt`` for each target.

    The paper solves the normal equations ``A x = b`` of the profiles' inner products (Eq. 151).
    This is the same minimum by QR of the densities at quadrature nodes, which keeps the condition
    number of the profiles instead of squaring it. Column scales don't matter to QR.

    Args:
        sources: (rows, n) ``sqrt(w_k) p_i(t_k)``, linearly independent columns.
        targets: (rows, k) ``sqrt(w_k) p_r(t_k)``.

    Returns:
        (n, k) weights, float64.
    """
    n = sources.shape[1]
    r = cast("Array", np.linalg.qr(np.hstack([sources, targets]), mode="r"))
    # LU of an upper triangle with its pivots on the diagonal is back substitution.
    return np.linalg.solve(r[:n, :n], r[:n, n:]).astype(np.float64, copy=False)


def normalized(x: Array) -> Array:
    """Weights of ``projection`` divided by their sum: constant weights stay what they are.

    Args:
        x: (n, k) weights of each target.

    Returns:
        (n, k) weights, float64.
    """
    total: Array = x.sum(axis=0)
    return x / total
