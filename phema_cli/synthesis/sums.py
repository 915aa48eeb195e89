"""Sums over rows: a chain of fused multiply-adds, by matrix products where those give it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from phema_cli.synthesis.memory import WIDTH

if TYPE_CHECKING:
    import torch

#: blocks that are tried out.
_TRIED = 4
#: some of several rows, by their numbers; a slice where they follow on one another.
Some: TypeAlias = slice | list[int]


def add_up(
    weights: torch.Tensor, targets: int, rows: torch.Tensor, count: int, out: torch.Tensor
) -> None:
    """Put the sums over ``rows`` (rows, width) into the first ``count`` columns of ``out``.

    Columns of ``out`` (k, width) beyond them may change, and its rows beyond the targets.

    Args:
        weights: (k, rows); k is ``LEAST_ROWS`` at least.
        targets: how many of the k rows are wanted.
        rows: what is summed.
        count: elements of each row.
        out: where the sums go.
    """
    import torch

    if product_is_chain(*weights.shape, weights.dtype):
        columns = -(-count // WIDTH) * WIDTH
        torch.mm(weights, rows[:, :columns], out=out[: len(weights), :columns])
    else:
        _chain(weights[:targets], rows[:, :count], out[:targets, :count])


def _chain(weights: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """The sums as they are defined."""
    out.zero_()
    for total, own in zip(out, weights.tolist(), strict=True):
        for row, weight in zip(rows, own, strict=True):
            total.add_(row, alpha=weight)


def add_blocks_up(
    weights: torch.Tensor, targets: int, rows: torch.Tensor, out: torch.Tensor
) -> None:
    """Put the sums over rows whose blocks have weights of their own into ``out``.

    Args:
        weights: (blocks, k, rows); k is ``LEAST_ROWS`` at least.
        targets: how many of the k are wanted.
        rows: (blocks, rows, elements of a block).
        out: (blocks, k, elements of a block); may change beyond the targets.
    """
    import torch

    if products_are_chains(*weights.shape[1:], rows.shape[2], weights.dtype):
        torch.bmm(weights, rows, out=out)
    else:
        _chains(weights[:, :targets], rows, out[:, :targets])


def _chains(weights: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """The same as it is defined."""
    out.zero_()
    for total, own in zip(out.unbind(1), weights.unbind(1), strict=True):
        for row, weight in zip(rows.unbind(1), own.unbind(1), strict=True):
            total.addcmul_(row, weight[:, None])


@lru_cache
def products_are_chains(targets: int, rows: int, elements: int, dtype: torch.dtype) -> bool:
    """Whether matrix products of that shape give the bits of the chains on this machine."""
    import torch

    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal((_TRIED, targets, rows))).to(dtype)
    values = torch.from_numpy(random.standard_normal((_TRIED, rows, elements))).to(dtype)
    expected = torch.empty(_TRIED, targets, elements, dtype=dtype)
    _chains(weights, values, expected)
    return torch.equal(torch.bmm(weights, values), expected)


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


def consecutive(numbers: list[int]) -> Some:
    """Ascending numbers, as a slice where they follow on one another."""
    first, last = numbers[0], numbers[-1]
    return slice(first, last + 1) if last - first + 1 == len(numbers) else numbers


def has_negative_zeros(row: torch.Tensor) -> bool:
    """Whether stored values have -0.0 among them: as integers, no number's bits are less."""
    import torch

    integers: torch.dtype = getattr(torch, f"int{8 * row.element_size()}")
    least: int = torch.iinfo(integers).min
    return int(row.view(integers).amin()) == least
