"""The help: its text out of docstrings, and its layout and colours on any terminal."""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer.core

#: columns of the narrowest help; below, names of options would be cut off.
LEAST_WIDTH = 72
#: where a section of a docstring begins that the help shows as it is.
_SECTION = re.compile(r"^(?=(?:Examples|Exit codes):$)", re.MULTILINE)


class HelpfulCommand(typer.core.TyperCommand):
    """A command whose help is whole and can be read on any terminal."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's, which typer has a copy of
        """Print the help."""
        _prepare()
        super().format_help(ctx, formatter)


class HelpfulGroup(typer.core.TyperGroup):
    """The same of phema itself."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as above
        """Print the help."""
        _prepare()
        super().format_help(ctx, formatter)


def _prepare() -> None:
    """Set typer's colours and width, which it has in variables of a module.

    Yellow can't be read on a light background. A terminal folds lines that are too long for it;
    typer would cut words off.
    """
    from rich.console import Console
    from typer import rich_utils

    for name, style in list(vars(rich_utils).items()):
        if name.startswith("STYLE_") and "yellow" in str(style):
            setattr(rich_utils, name, style.replace("yellow", "magenta"))
    narrow = Console().width < LEAST_WIDTH
    rich_utils.MAX_WIDTH = LEAST_WIDTH if narrow else None


def add_help(app: typer.Typer) -> None:
    """Give every command the help and the epilog that its docstring holds.

    The first screen has what most people need: what the command does, examples, and the options
    that are used most. Rare options and the rest of the prose, which the terminal folds, come after
    it. The sections ``Examples:`` and ``Exit codes:`` at the end are shown as they are; a line of
    them that begins with ``$`` is a command that works.
    """
    for info in [*app.registered_commands, app.registered_callback]:
        if info is not None and info.callback is not None:
            docstring = inspect.cleandoc(info.callback.__doc__ or "")
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
