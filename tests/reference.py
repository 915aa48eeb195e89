"""Prints docs/cli.md: the help of every command, as the console script shows it."""

from __future__ import annotations

import sys

from tests.builders import phema

COMMANDS = (
    *("inspect", "weights", "plot", "synthesize", "sweep", "verify", "diff", "plan", "demo"),
)


def reference() -> str:
    """The page's text."""
    parts = ["# Commands\n\nWritten by `make docs` from the commands' own help.\n"]
    for command in ("", *COMMANDS):
        run = phema(*command.split(), "--help", COLUMNS="100", NO_COLOR="1", TERM="dumb")
        help_lines = "\n".join(line.rstrip() for line in run.out.strip().splitlines())
        parts.append(f"## {f'phema {command}'.strip()}\n\n```text\n {help_lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
