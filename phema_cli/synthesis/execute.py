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
from phema_cli.estimate.solve import scan_for
from phema_cli.request import Request
from phema_cli.synthesis.journal import Journal
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.ranks import Ranks
from phema_cli.synthesis.recipe import Recipe, make_recipe
from phema_cli.synthesis.staging import (
    Checks,
    check_inputs,
    make_durable,
    publish,
    staged,
    write_checksums,
)
from phema_cli.synthesis.workers import fill, merged


def execute(
    recipe: Recipe | None,
    *,
    progress: Progress | None = None,
    processes: bool = False,
    ranks: Ranks | None = None,
) -> None:
    """Carry out a recipe: when it returns, all outputs are complete and on disk.

    No output gets its name before all of them are complete. After a kill, or an error, the same
    recipe resumes with what was on the disk then.

    Args:
        recipe: what to do; rank 0's counts, and where it has none all return.
        progress: called with a number of bytes read and written, from one thread at a time.
        processes: whether workers are forked processes: faster, where the program has no other
            threads that hold locks.
        ranks: the processes that share the work; each calls this.

    Raises:
        UsageError: an output exists and is not to be replaced, or is in the way of another file.
        InputError: a source is shorter than its header says, has changed, or holds values that are
            not finite; or an average is too large for the type that it is written in.
        StorageError: the operating system failed to read or write.
    """
    ranks = ranks or Ranks()
    recipe = ranks.share(recipe)
    if recipe is None:
        return
    # A signal while a library is loaded ends the process at once, so none is loaded later on.
    import torch  # noqa: F401

    with ExitStack() as stack:
        journal: Journal | None = None
        if ranks.leads:
            journal = stack.enter_context(staged(recipe))
        done, complete = ranks.share(
            (set(), False) if journal is None else (journal.done, journal.complete)
        )
        checks: list[Checks] = [{} for _ in recipe.outputs]
        if not complete:
            checks = fill(
                recipe, progress or (lambda _: None), done=done, ranks=ranks, processes=processes
            )
            if ranks.size > 1:
                make_durable(recipe)
        parts = ranks.gather(checks)
        if journal is not None:
            _finish(recipe, journal, merged(recipe, parts))


def _finish(recipe: Recipe, journal: Journal, checks: list[Checks]) -> None:
    """See that sources are what they were and outputs are on the disk; then give all their names.

    Once the journal says that all is complete, a run that resumes gives names and no more.
    """
    if not journal.complete:
        check_inputs(recipe)
        for output, own in zip(recipe.outputs, checks, strict=True):
            write_checksums(recipe, output, own)
        make_durable(recipe)
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
