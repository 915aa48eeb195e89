"""The Typer application, and ``main``, which runs a command."""

import functools
import os
import platform
import re
import sys
import traceback
from inspect import cleandoc
from typing import Annotated, Any

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

_HELP = ["-h", "--help"]
#: columns of the narrowest help; below, names of options would be cut off.
_LEAST_WIDTH = 72
#: where a section of a docstring begins that the help shows as it is.
_SECTION = re.compile(r"^(?=(?:Examples|Exit codes):$)", re.MULTILINE)


class _Legible:
    """A command whose help is whole and can be read on any terminal."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's, which typer has a copy of
        """Print the help, by colours and a width that typer has in variables of a module.

        Yellow can't be read on a light background. A terminal folds lines that are too long for
        it; typer would cut words off.
        """
        from rich.console import Console
        from typer import rich_utils

        for option in ctx.command.get_params(ctx):
            # The help would show a type beside flags, as if they took a value.
            if isinstance(option, typer.core.TyperOption) and option.is_flag:
                option.metavar = ""
        for name, style in list(vars(rich_utils).items()):
            if name.startswith("STYLE_") and "yellow" in str(style):
                setattr(rich_utils, name, style.replace("yellow", "magenta"))
        rich_utils.MAX_WIDTH = _LEAST_WIDTH if Console().width < _LEAST_WIDTH else None
        super().format_help(ctx, formatter)  # type: ignore[misc]  # of the class beside it


class _Command(_Legible, typer.core.TyperCommand):
    """One of phema's commands."""


class _Group(_Legible, typer.core.TyperGroup):
    """Phema itself."""


app = typer.Typer(
    name="phema",
    cls=_Group,
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
    app.command(_function.__name__, cls=_Command)(_function)


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


def _add_help() -> None:
    """Give every command the help and the epilog that its docstring holds.

    The first screen has what most people need: what the command does, examples, and the options
    that are used most. Rare options and the rest of the prose, which the terminal folds, come after
    it. The sections ``Examples:`` and ``Exit codes:`` at the end are shown as they are; a line of
    them that begins with ``$`` is a command that works.
    """
    for info in [*app.registered_commands, app.registered_callback]:
        if info is not None and info.callback is not None:
            docstring = cleandoc(info.callback.__doc__ or "")
            prose, *sections = _SECTION.split(docstring)
            first, *more = (" ".join(p.split()) for p in prose.strip().split("\n\n"))
            shown = [_highlighted(section) for section in sections]
            info.help = "\n\n".join([first, *shown[:1]])
            # Typer unindents all lines but the first, so the first is empty.
            info.epilog = "\n" + "\n\n".join([*more, *shown[1:]])


def _highlighted(section: str) -> str:
    """A section of a help text with its title and its commands in bold, and no other markup."""
    title, _, lines = section.strip().replace("[", r"\[").partition("\n")
    commands = re.sub(r"^( *\$ )(.*)$", r"\1[bold]\2[/]", lines, flags=re.MULTILINE)
    return f"[bold]{title}[/]\n{commands}"


_add_help()


#: all commands with their options, made when they are first needed.
command_line = functools.cache(typer.main.get_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with phema's exit codes."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    said = os.environ.get("PHEMA_DEBUG", "").strip().lower()
    debug = "--debug" in given or said not in {"", "0", "false", "f", "no", "n", "off"}
    try:
        typed = [a for a in given if a != "--debug"]
        code = command_line(app)(typed, standalone_mode=False, obj=typed)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - its code and one line tell the user
        # A mistake in the command line is no bug: a traceback would not help.
        if debug and not hasattr(error, "format_message"):
            traceback.print_exception(error)
        code = process.report(error)
    sys.exit(code if isinstance(code, int) else 0)
