"""The engine: executes a recipe."""

from __future__ import annotations

from contextlib import ExitStack

from phema_cli.synthesis.pools import Progress
from phema_cli.synthesis.recipe import Recipe
from phema_cli.synthesis.staging import (
    Checks,
    check_outputs,
    make_durable,
    publish,
    staged,
    write_checksums,
)
from phema_cli.synthesis.team import Team
from phema_cli.synthesis.workers import fill, merged


def execute(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    processes: bool = False,
    team: Team | None = None,
) -> None:
    """Carry out a recipe: when it returns, all outputs are complete and on disk.

    No output gets its name before all of them are complete.

    Args:
        recipe: what to do.
        overwrite: whether existing outputs are replaced.
        progress: called with a number of bytes read and written, from one thread at a time.
        processes: whether workers are forked processes: faster, where the program has no other
            threads that hold locks.
        team: the processes that share the work; each calls this with the same recipe.

    Raises:
        UsageError: as :func:`check_outputs`.
        InputError: a source is shorter than its header says.
        StorageError: the operating system failed to read or write.
    """
    team = team or Team()
    with ExitStack() as stack:
        if team.leads:
            check_outputs(recipe, overwrite)
            for output in recipe.outputs:
                stack.enter_context(staged(output))
        team.share(None)
        own = fill(
            recipe,
            progress or (lambda _: None),
            processes=processes,
            rank=team.rank,
            ranks=team.size,
        )
        if team.size > 1:
            for output in recipe.outputs:
                make_durable(output)
        parts = team.gather(own)
        if team.leads:
            _complete(recipe, merged(recipe, parts))


def _complete(recipe: Recipe, checks: list[Checks]) -> None:
    """Make outputs of what is filled: none gets its name before all of them are on disk."""
    for number, output in enumerate(recipe.outputs):
        write_checksums(output, checks[number])
    for output in recipe.outputs:
        make_durable(output)
    for output in recipe.outputs:
        publish(output)
