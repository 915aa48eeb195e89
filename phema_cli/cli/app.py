"""The Typer application, and ``main``, which runs a command."""

from __future__ import annotations

import functools
import os
import platform
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer.core
import typer.main

from phema_cli._version import __version__
from phema_cli.cli import (
    demo,
    diff,
    inspect,
    pack,
    plan,
    plot,
    process,
    render,
    sweep,
    synthesize,
    verify,
    weights,
)
from phema_cli.cli.help_text import HelpfulCommand, HelpfulGroup, add_help

_HELP = ["-h", "--help"]

app = typer.Typer(
    name="phema",
    cls=HelpfulGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": _HELP},
    pretty_exceptions_enable=False,
)
for _function in (
    inspect.inspect,
    weights.weights,
    plot.plot,
    synthesize.synthesize,
    sweep.sweep,
    diff.diff,
    verify.verify,
    pack.pack,
    plan.plan,
    demo.demo,
):
    app.command(_function.__name__, cls=HelpfulCommand)(_function)


def _version(wanted: bool) -> None:
    if wanted:
        python = platform.python_version()
        render.line(f"phema-cli {__version__} (Python {python}, {platform.system()})")
        raise typer.Exit


@app.callback()
def phema(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar="PHEMA_DEBUG", show_envvar=False, help="Show tracebacks of errors."
        ),
    ] = False,
) -> None:
    """Build the EMA of any length after training, from stored snapshots.

    The best length of an EMA is known only after training. Snapshots of two short averages, stored
    now and then while training, are enough to build the average of any other gamma, or of any other
    weighting, as a linear combination.

    Results are on stdout and everything else on stderr. Every option also reads an environment
    variable: PHEMA_GAMMA for --gamma; but PHEMA_PLAN_KEEP and PHEMA_DEMO_STEPS are those of plan
    --keep and demo --steps, as sweep --keep and plan --steps take other values.

    Examples:
      What a directory of snapshots can give:
        $ phema inspect ckpts/

      Write the EMA of gamma 7:
        $ phema synthesize --gamma 7 ckpts/

      Turn on completion in bash; source_zsh and source_fish are for the others:
        $ eval "$(_PHEMA_COMPLETE=source_bash phema)"

    Exit codes:
      0         done
      1         a check failed: --max-error, diff, verify
      2         the command line is wrong, or the output exists
      3         an input is missing, broken or does not fit the others
      4         a pickle could do harm, or hides tensors
      5         disk or I/O error, out of memory, stdout lost
      141       the reader of a pipe closed it
      130, 143  interrupted, terminated
    """


add_help(app)


@functools.cache
def _command() -> Callable[..., object]:
    """All commands with their options, made when they are first needed."""
    command = typer.main.get_command(app)
    for each in (command, *getattr(command, "commands", {}).values()):
        context = typer.Context(each, help_option_names=_HELP)
        for option in (*each.params, each.get_help_option(context)):
            # The help would show a type beside flags, as if they took a value.
            if isinstance(option, typer.core.TyperOption) and option.is_flag:
                option.metavar = ""
    return command


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with phema's exit codes."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    said = os.environ.get("PHEMA_DEBUG", "").strip().lower()
    debug = "--debug" in given or said not in {"", "0", "false", "f", "no", "n", "off"}
    try:
        typed = [a for a in given if a != "--debug"]
        code = _command()(typed, standalone_mode=False, obj=typed)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - its code and one line tell the user
        # A mistake in the command line is no bug: a traceback would not help.
        if debug and not hasattr(error, "format_message"):
            traceback.print_exception(error)
        code = process.report(error)
    sys.exit(code if isinstance(code, int) else 0)
