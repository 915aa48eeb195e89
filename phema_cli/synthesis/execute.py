"""The engine: executes a recipe."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import update_wrapper
from pathlib import Path
from typing import Concatenate, ParamSpec

from phema_cli.errors import StorageError
from phema_cli.estimate.proposal import scan_for
from phema_cli.request import Request
from phema_cli.synthesis.finite import NonFiniteError, counted
from phema_cli.synthesis.journal import Journal
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.ranks import Ranks
from phema_cli.synthesis.recipe import Recipe, make_recipe
from phema_cli.synthesis.staging import (
    Checks,
    Notes,
    check_inputs,
    check_outputs,
    make_durable,
    publish,
    staged,
    write_checksums,
)
from phema_cli.synthesis.workers import Share, fill, merged


def execute(
    recipe: Recipe | None,
    *,
    progress: Progress | None = None,
    processes: bool = False,
    ranks: Ranks | None = None,
) -> None:
    """Carry out a recipe: when it returns, all outputs are complete and on disk.

    No output gets its name before all of them are complete. After a kill, or an error, the same
    recipe goes on with what was on the disk then.

    Args:
        recipe: what to do; rank 0's counts, and where it has none all return.
        progress: called with a number of bytes read and written, from one thread at a time.
        processes: whether workers are forked processes: faster, where the program has no other
            threads that hold locks.
        ranks: the processes that share the work; each calls this.

    Raises:
        UsageError: as :func:`check_outputs`.
        InputError: a source is shorter than its header says, has changed, or holds values that are
            not finite; or an average is too large for the type that it is written in.
        StorageError: the operating system failed to read or write.
    """
    ranks = ranks or Ranks()
    recipe = ranks.share(recipe)
    if recipe is not None:
        _carry_out(recipe, ranks, progress, processes=processes)


def _carry_out(recipe: Recipe, ranks: Ranks, progress: Progress | None, *, processes: bool) -> None:
    """What every rank does, once all know the recipe."""
    with ExitStack() as stack:
        journal: Journal | None = None
        if ranks.leads:
            check_outputs(recipe)
            journal = stack.enter_context(staged(recipe))
            # Another run of the same outputs may have ended while this one waited for its turn.
            check_outputs(recipe)
        done, complete = ranks.share(
            (set(), False) if journal is None else (journal.done, journal.complete)
        )
        own = merged(recipe, [])
        if not complete:
            own = _fill(recipe, ranks, frozenset(done), progress, processes=processes)
            if ranks.size > 1:
                for output in recipe.outputs:
                    make_durable(output)
        parts = ranks.gather(own)
        if journal is not None:
            if not complete:
                _complete(recipe, merged(recipe, parts))
            _publish(recipe, journal)


def _fill(
    recipe: Recipe,
    ranks: Ranks,
    done: frozenset[int],
    progress: Progress | None,
    *,
    processes: bool,
) -> list[Checks]:
    """Do this process's share."""
    try:
        return fill(
            recipe,
            progress or (lambda _: None),
            Notes(recipe, ranks.rank),
            share=Share(ranks.rank, ranks.size, done),
            processes=processes,
        )
    except NonFiniteError as error:
        raise counted(recipe) from error


def _complete(recipe: Recipe, checks: list[Checks]) -> None:
    """See that sources are still what they were, and that all of the outputs is on disk."""
    check_inputs(recipe)
    for output, found in zip(recipe.outputs, checks, strict=True):
        write_checksums(output, found)
    for output in recipe.outputs:
        make_durable(output)


def _publish(recipe: Recipe, journal: Journal) -> None:
    """Give all files their names; from here on a run that goes on does only that."""
    try:
        journal.finish()
    except OSError as error:
        raise StorageError.wrap(error, journal.folder, "write") from error
    for output in recipe.outputs:
        publish(output)


_Options = ParamSpec("_Options")
_Roots = Sequence[str | os.PathLike[str]] | str | os.PathLike[str]


def _with_options(
    request: Callable[_Options, Request],
) -> Callable[
    [Callable[[_Roots, Request], list[Path]]],
    Callable[Concatenate[_Roots, _Options], list[Path]],
]:
    """Let a function of a request take the request's fields by their names."""

    def decorated(
        function: Callable[[_Roots, Request], list[Path]],
    ) -> Callable[Concatenate[_Roots, _Options], list[Path]]:
        def called(
            paths: _Roots, /, *args: _Options.args, **options: _Options.kwargs
        ) -> list[Path]:
            return function(paths, request(*args, **options))

        update_wrapper(called, function)
        first = next(iter(inspect.signature(function).parameters.values()))
        fields = inspect.signature(request).parameters.values()
        called.__signature__ = inspect.Signature([first, *fields])  # type: ignore[attr-defined]  # read by inspect
        return called

    return decorated


@_with_options(Request)
def synthesize(paths: _Roots, request: Request) -> list[Path]:
    """Write the checkpoints of the targets; what ``phema synthesize`` does, from Python.

    Args:
        paths: snapshots or directories of them.
        request: its fields, as keywords: ``synthesize("ckpts/", gamma=7)``; the options of
            :class:`phema_cli.request.Request`. Workers are threads.

    Returns:
        The outputs' paths, one per target.

    Raises:
        PhemaError: what is wrong, where, and the remedy.
    """
    roots = [paths] if isinstance(paths, str | os.PathLike) else paths
    recipe, outputs = make_recipe(scan_for(roots, request), request)
    if recipe is not None and not request.dry_run:
        execute(recipe)
    return outputs
