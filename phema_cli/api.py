"""The calls from Python: averages as files, or tensor by tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from phema_cli.errors import InputError, UsageError
from phema_cli.estimate.solve import scan_for
from phema_cli.options import Option, declared
from phema_cli.profiles import Profile
from phema_cli.request import Request
from phema_cli.snapshots import Paths
from phema_cli.solver import Figures
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.recipe import Recipe, make_recipe
from phema_cli.synthesis.tensors import TensorPlan
from phema_cli.synthesis.workers import stream

if TYPE_CHECKING:
    import torch

_Options = ParamSpec("_Options")
_First = TypeVar("_First")
_Made = TypeVar("_Made")
_Result = TypeVar("_Result")
#: options of files, which an average in memory has no use for.
_OF_FILES = {
    each.name: each.default
    for each, says in declared(Request)
    if isinstance(says, Option)
    and (says.group == "Output" or each.name == "jobs")
    and each.name not in {"dtype", "max_error"}
}


def taking(
    make: Callable[_Options, _Made], without: Container[str] = ()
) -> Callable[
    [Callable[[_First, _Made], _Result]], Callable[Concatenate[_First, _Options], _Result]
]:
    """Let a function of two arguments take what makes the second one, by its names.

    Args:
        make: what makes it: a class, or a function.
        without: parameters that the function refuses, and its signature does not show.
    """

    def decorated(
        function: Callable[[_First, _Made], _Result],
    ) -> Callable[Concatenate[_First, _Options], _Result]:
        def called(first: _First, /, *args: _Options.args, **options: _Options.kwargs) -> _Result:
            return function(first, make(*args, **options))

        update_wrapper(called, function)
        says = inspect.signature(function)
        first = next(iter(says.parameters.values()))
        rest = inspect.signature(make).parameters.values()
        called.__signature__ = says.replace(  # type: ignore[attr-defined]  # read by inspect
            parameters=[first, *(each for each in rest if each.name not in without)]
        )
        return called

    return decorated


@taking(Request)
def synthesize(paths: Paths, request: Request) -> list[Path]:
    """Write the checkpoints of the targets; what ``phema synthesize`` does, from Python.

    Args:
        paths: a snapshot, a directory of them, or several.
        request: its fields, as keywords: ``synthesize("ckpts/", gamma=7)``; the options of
            :class:`phema_cli.request.Request`. Workers are threads.

    Returns:
        The outputs' paths, one per target.

    Raises:
        PhemaError: what is wrong, where, and the remedy.
    """
    recipe, outputs = make_recipe(scan_for(paths, request), request)
    if recipe is not None and not request.dry_run:
        execute(recipe)
    return outputs


class Average(Iterator[tuple[str, "torch.Tensor"]]):
    """One average as pairs of a name and a tensor, each made when it is asked for, once.

    The order and the values are those of the file that :func:`synthesize` writes. A tied tensor
    comes under each of its names, one right after the other. One tensor is held at a time, beside
    buffers of at most ``max_memory``; ``dict(average("ckpts/", gamma=7))`` holds all of them.

    Attributes:
        target: its profile.
        step: its time, as the trainer counts.
        figures: how good it is.
        like: tensors of the same names, shapes and types on the meta device: without values.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.target: Profile = recipe.targets[0]
        self.step = recipe.step
        self.figures: Figures = recipe.figures[0]
        names = {plan.name: [plan.name] for plan in recipe.tensors}
        for name, first in recipe.ties.items():
            names[first].append(name)
        self.like: dict[str, torch.Tensor] = {}
        for plan in recipe.tensors:
            self.like |= dict.fromkeys(names[plan.name], _like(plan))
        self._pairs = _pairs(recipe, names, self.like)

    def __repr__(self) -> str:
        """``<Average gamma 7 at step 2000: 10 tensors, good>``."""
        return (
            f"<Average {self.target.label} at step {self.step:.10g}: "
            f"{len(self.like)} tensors, {self.figures.verdict}>"
        )

    def __next__(self) -> tuple[str, torch.Tensor]:
        """The next name and tensor.

        Raises:
            InputError: a source is shorter than its header says or holds values that are not
                finite, or an average is too large for its type; after the last tensor, a source
                has changed since its header was read.
            StorageError: the operating system failed to read.
        """
        return next(self._pairs)


@taking(Request, _OF_FILES)
def average(paths: Paths, request: Request) -> Average:
    """Make one average, tensor by tensor, without a file.

    ``for name, tensor in average("ckpts/", gamma=7): ...`` has the values of the file that
    :func:`synthesize` writes. Weights are solved, and errors that the headers show are raised,
    before it returns. One thread reads and sums.

    Args:
        paths: a snapshot, a directory of them, or several.
        request: its fields, as keywords, like those of :func:`synthesize`: ``gamma=7``. There is
            one target, and none of the options of files, nor ``jobs``.

    Returns:
        What yields the pairs.

    Raises:
        UsageError: several targets, or an option of files.
        PhemaError: what else is wrong, where, and the remedy.
    """
    idle = [name for name, default in _OF_FILES.items() if getattr(request, name) != default]
    if idle:
        raise UsageError(
            f"an average in memory takes no {', '.join(idle)}",
            remedy="leave it out, or write a file with phema_cli.synthesize",
        )
    recipe, paths_of = make_recipe(scan_for(paths, request), replace(request, jobs=1))
    if recipe is None or len(paths_of) != 1:
        raise UsageError(f"{len(paths_of)} targets are not one", remedy="call it for each target")
    return Average(recipe)


def _pairs(
    recipe: Recipe, names: Mapping[str, Sequence[str]], like: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The pairs of an average: ``names`` of each by the first, ``like`` shape and type of each."""
    for plan, data in stream(recipe):
        meant = like[plan.name]
        for name in names[plan.name]:
            yield name, data.view(meant.dtype).view(meant.shape)
        # Not held while the next one is made.
        del data


def _like(plan: TensorPlan) -> torch.Tensor:
    """A tensor as a recipe makes it, without values.

    Raises:
        InputError: torch has no such type.
    """
    import torch

    kind = plan.kind.out
    dtype: torch.dtype | None = getattr(torch, kind.label, None)
    if dtype is None:
        raise InputError(
            f"tensor {plan.name} is of {kind.label}, which this torch does not have",
            remedy="leave it out: config=Config(drop=[...])",
        )
    # Two elements of four bits are one of torch's.
    packed = 8 * dtype.itemsize // kind.bits
    shape = (*plan.shape[:-1], plan.shape[-1] // packed) if packed > 1 else plan.shape
    return torch.empty(shape, dtype=dtype, device="meta")
