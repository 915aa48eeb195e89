"""Weighted sums of rows, as fast as torch has them and with the bits of one chain.

``sum_i x_i row_i`` is the chain of fused multiply-adds over the rows, first to last, from zero.
Functions that read each row once are several times as fast; which of them give the chain's bits
is tried out once per process, so that the number of sums made at once shows in none of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from phema_cli.profiles import Array
from phema_cli.synthesis.tiling import MANY, WIDTH

if TYPE_CHECKING:
    import torch

_PIECE = 2048

_Way = Literal["matmul", "bags", "chain"]


class Bags:
    """Sums of rows by ``embedding_bag``, which holds a sum in registers while it reads the rows.

    Rows are cut into pieces, and piece j of all rows is a bag for each target.

    Args:
        weights: (k, rows, parts) of the rows' type; a weight is the sum of its parts.
        width: elements of a row, a multiple of ``WIDTH``.
    """

    def __init__(self, weights: torch.Tensor, width: int) -> None:
        import torch

        self._targets, rows, parts = weights.shape
        self._piece = math.gcd(width, _PIECE)
        self._entries = rows * parts
        pieces = width // self._piece
        place = torch.arange(pieces)[:, None, None, None] + pieces * torch.arange(rows)[:, None]
        self._indices = place.expand(pieces, *weights.shape).reshape(-1).int()
        bags = pieces * self._targets
        self._offsets = torch.arange(0, bags * self._entries + 1, self._entries).int()
        self._weights = weights.reshape(-1).repeat(pieces)

    def __call__(self, rows: torch.Tensor, count: int, out: torch.Tensor) -> None:
        """Put the sums over ``rows`` (rows, width) into the first ``count`` columns of ``out``.

        Columns of ``out`` (k, width), of the rows' type, beyond them may change.
        """
        import torch

        indices, offsets, weights = self._indices, self._offsets, self._weights
        pieces = -(-count // self._piece)
        bags = pieces * self._targets
        if bags < len(offsets) - 1:
            entries = bags * self._entries
            indices, weights = indices[:entries], weights[:entries]
            offsets = offsets[: bags + 1]
        made = torch.nn.functional.embedding_bag(
            indices,
            rows.view(-1, self._piece),
            offsets,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
        cut = out[:, : pieces * self._piece].view(self._targets, pieces, self._piece)
        cut.copy_(made.view(pieces, self._targets, self._piece).transpose(0, 1))


class Sums:
    """Sums of the same rows with k sets of weights.

    Args:
        weights: (rows, k) float64.
        width: elements of a row, a multiple of ``WIDTH``.
        dtype: type of rows and sums.
    """

    def __init__(self, weights: Array, width: int, dtype: torch.dtype) -> None:
        import torch

        self._weights = torch.from_numpy(weights.T.copy()).to(dtype)
        rows, targets = weights.shape
        self._way = fastest_way(targets, rows, dtype)
        self._bags = Bags(self._weights[:, :, None], width) if self._way == "bags" else None

    def __call__(self, rows: torch.Tensor, count: int, out: torch.Tensor) -> None:
        """Put the sums over ``rows`` (rows, width) into the first ``count`` columns of ``out``.

        Columns of ``out`` (k, width) beyond them may change.
        """
        import torch

        if self._way == "matmul":
            columns = -(-count // WIDTH) * WIDTH
            torch.mm(self._weights, rows[:, :columns], out=out[:, :columns])
        elif self._bags is not None:
            self._bags(rows, count, out)
        else:
            _chain(self._weights, rows[:, :count], out[:, :count])


def split(weights: Array, dtype: torch.dtype) -> torch.Tensor:
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
def fastest_way(targets: int, rows: int, dtype: torch.dtype) -> _Way:
    """The fastest function that gives the bits of the chain on this machine."""
    import torch

    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal((targets, rows))).to(dtype)
    values = torch.from_numpy(random.standard_normal((rows, 4 * WIDTH))).to(dtype)
    expected = torch.empty(targets, 4 * WIDTH, dtype=dtype)
    _chain(weights, values, expected)
    if targets >= MANY and torch.equal(torch.mm(weights, values), expected):
        return "matmul"
    if dtype == torch.float32:
        made = torch.empty_like(expected)
        Bags(weights[:, :, None], 4 * WIDTH)(values, 4 * WIDTH, made)
        if torch.equal(made, expected):
            return "bags"
    return "chain"
