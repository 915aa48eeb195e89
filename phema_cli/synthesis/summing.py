"""Weighted sums of rows, as fast as torch has them and with the bits of one chain.

``sum_i x_i row_i`` is the chain of fused multiply-adds over the rows, first to last, from zero. A
matrix product reads each row once; whether it gives the chain's bits is tried out once per process,
so that the number of sums made at once shows in none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from phema_cli.profiles import Array
from phema_cli.synthesis.tiling import LEAST_ROWS, WIDTH

if TYPE_CHECKING:
    import torch

_PIECE = 2048


class Bags:
    """Sums of 16-bit rows by ``embedding_bag``, which widens nothing and sums in float32.

    Rows are cut into pieces, and piece j of all rows is a bag for each target, by itself. A weight
    is the sum of two numbers of the rows' type.

    Args:
        weights: (n, k) float64.
        rows: which rows these are the weights of.
        width: elements of a row, a multiple of ``WIDTH``.
        dtype: type of the rows.
    """

    def __init__(self, weights: Array, rows: Sequence[int], width: int, dtype: torch.dtype) -> None:
        import torch

        parts = _split(weights, dtype)
        self._targets = len(parts)
        self._piece = math.gcd(width, _PIECE)
        self._entries = 2 * len(rows)
        pieces = width // self._piece
        place = torch.arange(pieces)[:, None, None, None] + pieces * torch.tensor(rows)[:, None]
        self._indices = place.expand(pieces, *parts.shape).reshape(-1).int()
        bags = pieces * self._targets
        self._offsets = torch.arange(0, bags * self._entries + 1, self._entries).int()
        self._weights = parts.reshape(-1).repeat(pieces)

    def __call__(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """The sums over ``rows`` (all rows, width), in their type.

        Returns:
            (k, pieces, elements of a piece), together ``count`` elements or more of each target.
        """
        import torch

        pieces = -(-count // self._piece)
        bags = pieces * self._targets
        entries = bags * self._entries
        made = torch.nn.functional.embedding_bag(
            self._indices[:entries],
            rows.view(-1, self._piece),
            self._offsets[: bags + 1],
            mode="sum",
            per_sample_weights=self._weights[:entries],
            include_last_offset=True,
        )
        return made.view(pieces, self._targets, self._piece).transpose(0, 1)


class Sums:
    """Sums of the same wide rows with k sets of weights.

    Args:
        weights: (rows, k) float64.
        dtype: type of rows and sums.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, weights: Array, dtype: torch.dtype) -> None:
        import torch

        self.rows, self._targets = weights.shape
        padded = torch.zeros(max(self._targets, LEAST_ROWS), self.rows, dtype=dtype)
        padded[: self._targets] = torch.from_numpy(weights.T.copy())
        self._weights = padded
        self._multiplies = product_is_chain(len(padded), self.rows, dtype)

    def __call__(self, rows: torch.Tensor, count: int, out: torch.Tensor) -> None:
        """Put the sums over ``rows`` (rows, width) into the first ``count`` columns of ``out``.

        Columns of ``out`` (k or ``LEAST_ROWS``, width) beyond them may change, and its other rows.
        """
        import torch

        if self._multiplies:
            columns = -(-count // WIDTH) * WIDTH
            torch.mm(self._weights, rows[:, :columns], out=out[: len(self._weights), :columns])
        else:
            _chain(self._weights[: self._targets], rows[:, :count], out[: self._targets, :count])


def _split(weights: Array, dtype: torch.dtype) -> torch.Tensor:
    """Weights (n, k) as sums of two numbers of a narrow type each, (k, n, 2)."""
    import torch

    exact = torch.from_numpy(np.ascontiguousarray(weights.T))
    high = exact.to(dtype)
    return torch.stack([high, (exact - high.double()).to(dtype)], dim=-1)


def _chain(weights: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """The sums as they are defined."""
    out.zero_()
    for total, own in zip(out, weights.tolist(), strict=True):
        for row, weight in zip(rows, own, strict=True):
            total.add_(row, alpha=weight)


@lru_cache
def product_is_chain(targets: int, rows: int, dtype: torch.dtype) -> bool:
    """Whether a matrix product of that shape gives the bits of the chain on this machine."""
    import torch

    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal((targets, rows))).to(dtype)
    values = torch.from_numpy(random.standard_normal((rows, 4 * WIDTH))).to(dtype)
    expected = torch.empty(targets, 4 * WIDTH, dtype=dtype)
    _chain(weights, values, expected)
    return torch.equal(torch.mm(weights, values), expected)
