"""The engine: executes a recipe."""

from __future__ import annotations

from collections.abc import Set

from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.staging import Staging, check_inputs, make_durable, write_checksums
from phema_cli.synthesis.workers import Checksums, fill
from phema_cli.system.pools import Progress
from phema_cli.system.ranks import Ranks


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
    # Loading it takes long, and signals wait until it is loaded: before anything is on the disk.
    import torch  # noqa: F401

    staging = Staging(recipe)
    try:
        left: tuple[Set[int], bool] = (set(), False)
        if ranks.leads:
            staging.open()
            left = staging.journal.done, staging.journal.complete
        done, complete = ranks.share(left)
        if not complete:
            checksums = fill(
                recipe, progress or (lambda _: None), done=done, ranks=ranks, processes=processes
            )
            if ranks.size > 1:
                make_durable(recipe)
            made = Checksums(recipe, ranks.gather(checksums))
            if ranks.leads:
                check_inputs(recipe, made.read)
                write_checksums(recipe, made.written)
                make_durable(recipe)
        if ranks.leads:
            staging.finish()
    except BaseException as error:
        staging.abandon(error)
        raise
