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


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_screen_has_what_most_people_need(command):
    """Usage, what it does, an example, then the options that are used most; all else after them."""
    lines = phema(command, "--help", COLUMNS="80", TERM="dumb").out.splitlines()
    text = "\n".join(lines)
    places = [text.index(part) for part in ("Usage:", "Examples:", "$ phema", "Options ")]
    assert places == sorted(places)
    headings = [line for line in lines if re.match("(╭─|\\+-) ", line)]
    assert len(headings) < 4 or lines.index(headings[2]) < 50
