"""Values that are not finite: found in sources, counted by tensor and file, or made by rounding.

An infinity that all sources share is no harm, and masks have them: it comes out as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phema_cli.errors import InputError
from phema_cli.formats.reader import FileReader
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.tensors import TensorPlan

if TYPE_CHECKING:
    import torch

_SHOWN = 3
_SINGLE = 4
_REMEDY = "leave the file out with --exclude, the tensor with --copy, or pass --allow-nonfinite"


class NonFiniteError(InputError):
    """A source holds infinities or NaN where others don't."""


def odd(stored: torch.Tensor) -> torch.Tensor:
    """Where sources (n, elements) are not finite, and not alike: (n, elements) of bool."""
    values = _wide(stored)
    alike = (values == values[0]).all(dim=0)
    return ~(values.isfinite() | alike)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Values in a type that torch can compare."""
    return values.float() if values.element_size() < _SINGLE else values


def refuse(plan: TensorPlan, stored: torch.Tensor, made: torch.Tensor) -> None:
    """Say what is wrong with a part of a tensor whose averages look odd, if anything is.

    Args:
        plan: the tensor.
        stored: (n, elements) what the sources hold.
        made: (k, elements) the averages.

    Raises:
        NonFiniteError: some source is not finite.
        InputError: all are, and an average is beyond the type that it is written in.
    """
    if bool(odd(stored).any()):
        raise NonFiniteError(f"tensor {plan.name} holds values that are not finite")
    finite = _wide(stored).isfinite().all(dim=0)
    if not bool(_wide(made).isfinite()[:, finite].all()):
        raise InputError(
            f"tensor {plan.name}: an average is too large for {plan.out_dtype.label}",
            remedy="pass --dtype float32, or leave the tensor out with --copy",
        )


def counted(recipe: Recipe) -> InputError:
    """The error that says how many values are not finite, of which tensors in which files.

    Reads all sources once more, in the order of the outputs.
    """
    found: list[tuple[int, str, str]] = []
    with FileReader() as reader:
        for plan in recipe.tensors:
            if plan.average:
                counts = _count(recipe, plan, reader)
                found += [
                    (n, plan.name, s.name) for n, s in zip(counts, recipe.sources, strict=True) if n
                ]
    total = sum(n for n, _, _ in found)
    shown = ", ".join(f"{n:,} in tensor {name} of {source}" for n, name, source in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} others" if len(found) > _SHOWN else ""
    return InputError(f"{total:,} values are not finite: {shown}{more}", remedy=_REMEDY)


def _count(recipe: Recipe, plan: TensorPlan, reader: FileReader) -> Sequence[int]:
    """How many elements of a tensor are odd, by source."""
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
        counts += odd(held).sum(dim=1)
    return counts.tolist()
