"""Sums over rows: a chain of fused multiply-adds, by the fastest function that gives its bits.

That is ``embedding_bag`` for few targets and a matrix product, which reads each row once, for more.
Whether they give the chain's bits is tried out once per process.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

#: rows are this long, or a multiple: BLAS sums short ones in another order.
WIDTH = 256
#: rows of a matrix product at least: with fewer BLAS libraries sum in another order.
LEAST_ROWS = 4
#: blocks, or pieces of rows, that are tried out.
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
        rows: what is summed; each begins a multiple of ``WIDTH`` elements behind the one before.
        count: elements of each row.
        out: where the sums go.
    """
    import torch

    columns = -(-count // WIDTH) * WIDTH
    if targets < LEAST_ROWS and is_chain("bag", targets, len(rows), WIDTH, weights.dtype):
        sums = _bag(weights[:targets], rows, columns // WIDTH, WIDTH)
        out[:targets, :columns].view(targets, -1, WIDTH).copy_(sums.transpose(0, 1))
    elif is_chain("mm", *weights.shape, _TRIED * WIDTH, weights.dtype):
        torch.mm(weights, rows[:, :columns], out=out[: len(weights), :columns])
    else:
        _chains(weights[None, :targets], rows[None, :, :count], out[None, :targets, :count])


def add_blocks_up(
    weights: torch.Tensor, targets: int, rows: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """The sums over rows whose blocks have weights of their own.

    Args:
        weights: (blocks, k, rows); k is ``LEAST_ROWS`` at least.
        targets: how many of the k are wanted.
        rows: (rows, width); a block's elements, the same number of each, follow on one another.
        out: memory for the sums of all k.

    Returns:
        (targets, blocks, elements of a block).
    """
    import torch

    blocks, k, count = weights.shape
    block = rows.shape[1] // blocks
    if targets < LEAST_ROWS and is_chain("bag", targets, count, block, weights.dtype):
        return _bag(weights[:, :targets], rows, blocks, block).transpose(0, 1)
    sums = out.view(-1)[: k * rows.shape[1]].view(blocks, k, block)
    apart = rows.view(count, blocks, block).transpose(0, 1)
    if is_chain("bmm", k, count, block, weights.dtype):
        torch.bmm(weights, apart, out=sums)
    else:
        _chains(weights[:, :targets], apart, sums[:, :targets])
    return sums[:, :targets].transpose(0, 1)


def _chains(weights: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """The sums as they are defined, into ``out`` (blocks, targets, elements).

    ``weights`` are (blocks, targets, rows), and ``rows`` (blocks, rows, elements).
    """
    out.zero_()
    for total, own in zip(out.unbind(1), weights.unbind(1), strict=True):
        for row, weight in zip(rows.unbind(1), own.unbind(1), strict=True):
            total.addcmul_(row, weight[:, None])


def _bag(weights: torch.Tensor, rows: torch.Tensor, pieces: int, size: int) -> torch.Tensor:
    """The sums over rows by ``embedding_bag``.

    Args:
        weights: (targets, rows), or (pieces, targets, rows) where pieces have their own.
        rows: (rows, width); each begins a multiple of ``size`` behind the one before.
        pieces: of a row.
        size: elements of a piece.

    Returns:
        (pieces, targets, size).
    """
    import torch

    *_, targets, count = weights.shape
    step = rows.stride(0) // size
    places, ends = _places(pieces, targets, count, step)
    sums = torch.nn.functional.embedding_bag(
        places,
        rows.as_strided(((count - 1) * step + pieces, size), (size, 1)),
        ends,
        mode="sum",
        per_sample_weights=weights.expand(pieces, targets, count).reshape(-1),
        include_last_offset=True,
    )
    return sums.view(pieces, targets, size)


@lru_cache
def _places(pieces: int, targets: int, count: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``embedding_bag`` sums: the pieces of each bag, and where bags end."""
    import torch

    places = torch.arange(pieces)[:, None, None] + step * torch.arange(count)
    ends = torch.arange(0, pieces * targets * count + 1, count)
    return places.expand(pieces, targets, count).reshape(-1).int(), ends.int()


@cache
def is_chain(
    way: Literal["bag", "mm", "bmm"], targets: int, rows: int, elements: int, dtype: torch.dtype
) -> bool:
    """Whether a sum of that shape gives the bits of the chain on this machine.

    Args:
        way: ``embedding_bag``, a matrix product, or one for each block.
        targets: sums that are made at once.
        rows: rows that are summed.
        elements: of a block, or of a row where all of it has one weight.
        dtype: of all numbers.
    """
    import torch

    blocks = 1 if way == "mm" else _TRIED
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.standard_normal((blocks, targets, rows))).to(dtype)
    values = torch.from_numpy(random.standard_normal((rows, blocks * elements))).to(dtype)
    apart = values.view(rows, blocks, elements).transpose(0, 1)
    expected = torch.empty(blocks, targets, elements, dtype=dtype)
    _chains(weights, apart, expected)
    if way == "bag":
        return torch.equal(_bag(weights, values, blocks, elements), expected)
    made = torch.mm(weights[0], values)[None] if way == "mm" else torch.bmm(weights, apart)
    return torch.equal(made, expected)


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
