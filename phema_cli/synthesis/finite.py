"""Infinities and NaN: in some of the sources, or in an average that is too large for its type.

Masks have infinities: one that all sources share does no harm and comes out as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phema_cli.errors import InputError
from phema_cli.formats.files import FileReader
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.tensors import TensorPlan

if TYPE_CHECKING:
    import torch

_SHOWN = 3
_SINGLE = 4
_REMEDY = "leave the file out with --exclude, the tensor with --copy, or pass --allow-nonfinite"


class NonFiniteError(InputError):
    """A source holds infinities or NaN where others don't."""


def nonfinite(stored: torch.Tensor) -> torch.Tensor:
    """Where sources (n, elements) are not finite and differ: (n, elements) of bool."""
    values = _wide(stored)
    alike = (values == values[0]).all(dim=0)
    return ~(values.isfinite() | alike)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """The values, or those of 8 and 16 bits as float32: torch can't compare all narrow types."""
    return values.float() if values.element_size() < _SINGLE else values


def refuse(plan: TensorPlan, stored: torch.Tensor, made: torch.Tensor) -> None:
    """Refuse a part of a tensor whose averages may not be finite, if something is wrong.

    Args:
        plan: the tensor.
        stored: (n, elements) what the sources hold.
        made: (k, elements) the averages.

    Raises:
        NonFiniteError: some source is not finite.
        InputError: all are, and an average is too large for the type that it is written in.
    """
    if bool(nonfinite(stored).any()):
        raise NonFiniteError(f"tensor {plan.name} holds values that are not finite")
    finite = _wide(stored).isfinite().all(dim=0)
    if not bool(_wide(made).isfinite()[:, finite].all()):
        raise InputError(
            f"tensor {plan.name}: an average is too large for {plan.out_dtype.label}",
            remedy="pass --dtype float32, or leave the tensor out with --copy",
        )


def count_nonfinite(recipe: Recipe) -> InputError:
    """The error that says how many values are not finite, in which tensors of which files.

    It reads all sources once more, in the order of the outputs.
    """
    counts: list[tuple[int, str, str]] = []
    with FileReader() as reader:
        for plan in recipe.tensors:
            if plan.average:
                by_source = zip(_count(recipe, plan, reader), recipe.sources, strict=True)
                counts += [(n, plan.name, source.name) for n, source in by_source if n]
    total = sum(n for n, _, _ in counts)
    shown = ", ".join(f"{n:,} in tensor {name} of {source}" for n, name, source in counts[:_SHOWN])
    more = f" and {len(counts) - _SHOWN} others" if len(counts) > _SHOWN else ""
    return InputError(f"{total:,} values are not finite: {shown}{more}", remedy=_REMEDY)


def _count(recipe: Recipe, plan: TensorPlan, reader: FileReader) -> Sequence[int]:
    """How many elements of a tensor are not finite and differ, by source."""
    import torch

    size = recipe.tile_elements // 8 * 8 or plan.elements
    extents = [recipe.extent(i, plan.name) for i in range(len(recipe.sources))]
    labels = [e.dtype.label for e in extents]
    wide = torch.float64 if "float64" in labels else torch.float32
    counts = torch.zeros(len(extents), dtype=torch.int64)
    for start in range(0, plan.elements, size):
        count = min(size, plan.elements - start)
        held = torch.empty(len(extents), count, dtype=wide)
        for extent, label, row in zip(extents, labels, held, strict=True):
            stored = torch.empty(count, dtype=getattr(torch, label))
            reader.read_elements(extent, start, stored.view(torch.uint8).numpy().data)
            row.copy_(stored)
        counts += nonfinite(held).sum(dim=1)
    return counts.tolist()
