"""The engine: executes a recipe."""

from __future__ import annotations

from contextlib import ExitStack

from phema_cli.errors import StorageError
from phema_cli.synthesis.finite import NonFiniteError, counted
from phema_cli.synthesis.journal import Journal
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.ranks import Ranks
from phema_cli.synthesis.recipe import Recipe
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
    overwrite: bool = False,
    progress: Progress | None = None,
    processes: bool = False,
    ranks: Ranks | None = None,
) -> None:
    """Carry out a recipe: when it returns, all outputs are complete and on disk.

    No output gets its name before all of them are complete. After a kill, or an error, the same
    recipe goes on with what was on the disk then.

    Args:
        recipe: what to do; rank 0's counts, and where it has none all return.
        overwrite: whether existing outputs are replaced.
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
    told = ranks.share(None if recipe is None else (recipe, overwrite))
    if told is not None:
        _carry_out(*told, ranks, progress, processes=processes)


def _carry_out(
    recipe: Recipe, overwrite: bool, ranks: Ranks, progress: Progress | None, *, processes: bool
) -> None:
    """What every rank does, once all know the recipe."""
    with ExitStack() as stack:
        journal: Journal | None = None
        if ranks.leads:
            check_outputs(recipe, overwrite)
            journal = stack.enter_context(staged(recipe))
            # Another run of the same outputs may have ended while this one waited for its turn.
            check_outputs(recipe, overwrite)
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
