"""The engine: executes a recipe."""

from __future__ import annotations

from contextlib import ExitStack

from phema_cli.errors import StorageError
from phema_cli.synthesis.journal import Journal
from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.ranks import Ranks
from phema_cli.synthesis.recipe import Recipe
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
    overwrite: bool = False,
    progress: Progress | None = None,
    processes: bool = False,
    ranks: Ranks | None = None,
) -> None:
    """Carry out a recipe: when it returns, all outputs are complete and on disk.

    No output gets its name before all of them are complete. After a kill, or an error, the same
    recipe resumes with what was on the disk then.

    Args:
        recipe: what to do; rank 0's counts, and where it has none all return.
        overwrite: whether existing outputs are replaced.
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
    shared = ranks.share(None if recipe is None else (recipe, overwrite))
    if shared is None:
        return
    recipe, overwrite = shared
    with ExitStack() as stack:
        journal: Journal | None = None
        if ranks.leads:
            journal = stack.enter_context(staged(recipe, overwrite=overwrite))
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
            write_checksums(output, own)
        make_durable(recipe)
    try:
        journal.finish()
    except OSError as error:
        raise StorageError.wrap(error, journal.folder, "write") from error
    for output in recipe.outputs:
        publish(output)
