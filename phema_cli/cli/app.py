"""The Typer application and ``main``, where every command begins and ends."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer.core
import typer.main

from phema_cli._version import __version__
from phema_cli.cli import (
    demo,
    diff,
    endings,
    inspect,
    manual,
    plan,
    plot,
    render,
    sweep,
    synthesize,
    verify,
    weights,
)

_HELP = ["-h", "--help"]

app = typer.Typer(
    name="phema",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": _HELP},
    pretty_exceptions_enable=False,
)
app.command("inspect")(inspect.inspect)
app.command("weights")(weights.weights)
app.command("plot")(plot.plot)
app.command("synthesize")(synthesize.synthesize)
app.command("sweep")(sweep.sweep)
app.command("diff")(diff.diff)
app.command("verify")(verify.verify)
app.command("plan")(plan.plan)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        render.line(f"phema {__version__} (phema-cli)")
        raise typer.Exit


@app.callback()
def phema(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, metavar="", help="Show the version."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            envvar="PHEMA_DEBUG",
            show_envvar=False,
            metavar="",
            help="Show tracebacks of errors.",
        ),
    ] = False,
) -> None:
    """Build the EMA of any length after training, from stored snapshots.

    The best length of an EMA is known only after training. Snapshots of two short averages, stored
    now and then while training, are enough to build the average of any other gamma, or of any other
    weighting, as a linear combination.

    Results are on stdout and everything else on stderr. Every option also reads an environment
    variable: PHEMA_GAMMA for --gamma.

    Examples:
      What a directory of snapshots can give:
        $ phema inspect ckpts/

      Write the EMA of gamma 7:
        $ phema synthesize --gamma 7 ckpts/

      Complete commands, options and snapshots in bash; so source_zsh, source_fish:
        $ eval "$(_PHEMA_COMPLETE=source_bash phema)"

    Exit codes:
      0         done
      1         a check failed: --max-error, diff, verify
      2         the command line makes no sense, or the output exists
      3         an input is missing, broken or does not fit the others
      4         a pickle asks for what could harm, or hides tensors
      5         disk or I/O error, no memory, no stdout
      141       the reader of a pipe has closed it
      130, 143  interrupted, terminated
    """


manual.write(app)


@functools.cache
def _command() -> Callable[..., object]:
    """All commands with their options, put together when they are first needed."""
    command = typer.main.get_command(app)
    for each in (command, *getattr(command, "commands", {}).values()):
        context = typer.Context(each, help_option_names=_HELP)
        for option in (*each.params, each.get_help_option(context)):
            # Behind the flags that typer adds the help would have a type, as if they took a value.
            if isinstance(option, typer.core.TyperOption) and option.is_flag:
                option.metavar = ""
    return command


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with phema's exit codes."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in given or bool(os.environ.get("PHEMA_DEBUG"))
    try:
        told = [a for a in given if a != "--debug"]
        code = _command()(told, standalone_mode=False, obj=told)
        sys.stdout.flush()
    except Exception as error:
        # Whoever wants tracebacks wants none of what was typed.
        if debug and not hasattr(error, "format_message"):
            raise
        code = endings.ended(error)
    sys.exit(code if isinstance(code, int) else 0)
