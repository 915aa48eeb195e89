"""Help texts: what a docstring says, laid out for a terminal."""

from __future__ import annotations

import inspect
import re

import typer

_SECTION = re.compile(r"^(?=(?:Examples|Exit codes):$)", re.MULTILINE)


def write(app: typer.Typer) -> None:
    """Give every command of the application the help and the epilog that its docstring holds."""
    for info in [*app.registered_commands, app.registered_callback]:
        if info is not None and info.callback is not None:
            info.help, info.epilog = _parts(info.callback.__doc__ or "")


def _parts(docstring: str) -> tuple[str, str]:
    """The prose, in paragraphs for the terminal to fold, and the sections at the end as they are.

    These are ``Examples:`` and ``Exit codes:``. A line of an example that begins with ``$`` is a
    command, which works as it stands.
    """
    prose, *sections = _SECTION.split(inspect.cleandoc(docstring))
    paragraphs = (" ".join(p.split()) for p in prose.strip().split("\n\n"))
    # Typer takes away the indentation of all lines but the first, which is therefore empty.
    return "\n\n".join(paragraphs), "\n" + "\n\n".join(map(_marked, sections))


def _marked(section: str) -> str:
    """A section with its title and its commands in bold; nothing else in it is markup."""
    title, _, lines = section.strip().replace("[", r"\[").partition("\n")
    commands = re.sub(r"^( *\$ )(.*)$", r"\1[bold]\2[/]", lines, flags=re.MULTILINE)
    return f"[bold]{title}[/]\n{commands}"
