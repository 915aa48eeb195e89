"""Help texts: laid out for a terminal, with examples that work."""

import re

import pytest

from tests.builders import phema
from tests.pages import shell
from tests.reference import COMMANDS


def examples(command, columns):
    """The commands that a help text shows; "" is the help of phema itself."""
    run = phema(*command.split(), "--help", COLUMNS=str(columns), NO_COLOR="1", TERM="dumb")
    assert run.code == 0
    return [line.rstrip() for line in re.findall(r"^ +\$ (.*)$", run.out, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_examples_of_the_help_work(command, workplace):
    """Every command has examples, each of which succeeds as it stands, one after another."""
    shown = examples(command, 200)
    assert any(example.startswith(f"phema {command}") for example in shown)
    for example in shown:
        shell(example, workplace)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal(command):
    """At 80 columns no example is folded, and nothing is left of an older manner of writing."""
    assert examples(command, 80) == examples(command, 200)
    assert "Example: " not in phema(*command.split(), "--help", COLUMNS="80").out
