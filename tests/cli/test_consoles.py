"""What commands print on any console: encodings, widths, colours, terminals that know nothing."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from tests import warm
from tests.builders import PHEMA, phema, run, write_run
from tests.reference import COMMANDS

#: a call of each command, in the directory of ``place``.
CALLS = {
    "inspect": ("ckpts", "-v"),
    "weights": ("ckpts", "-g", "4,7,12", "-v"),
    "plot": ("ckpts", "-g", "7", "-o", "plot.svg", "--overwrite"),
    "synthesize": ("ckpts", "-g", "4,7", "-o", "out/{gamma}.safetensors", "--overwrite"),
    "sweep": (
        "ckpts",
        "-s",
        "0.05,0.1,0.15",
        "--eval",
        "echo {sigma_rel}",
        "-o",
        "s",
        "--overwrite",
        "--repeat",
        "2",
    ),
    "diff": ("ckpts/ema-step0000100-gamma5.safetensors", "ema.safetensors", "--tolerance", "9"),
    "verify": ("ema.safetensors", "ckpts"),
    "pack": ("ckpts", "-o", "packed", "--dry-run"),
    "plan": ("--like", "ckpts", "--steps", "400", "--gammas", "5,10", "--snapshots", "4"),
    "demo": ("demo", "--steps", "20", "--force"),
}
#: calls that train, draw, or start other programs.
_SLOW = {"plot", "sweep", "demo"}
#: calls that end with findings, and with an error.
WRONG = {"findings": ("inspect", "odd"), "error": ("weights", "nowhere", "-g", "7")}
EVERY = [pytest.param(c, marks=[pytest.mark.slow] * (c in _SLOW)) for c in (*CALLS, *WRONG)]
TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
#: of ECMA-48: bold, faint, red, green, magenta, cyan, blue, and back to normal.
READABLE = {"", "0", "1", "2", "31", "32", "34", "35", "36", "39"}
SEQUENCE = re.compile(r"\x1b\[([\d;]*)m")


def test_every_command_is_called_here():
    """A command that is added gets a call."""
    assert sorted(CALLS) == sorted(COMMANDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with snapshots, an output, and snapshots with what phema warns of."""
    made = tmp_path_factory.mktemp("place")
    write_run(made / "ckpts")
    write_run(made / "odd")
    (made / "odd" / "broken.safetensors").write_bytes(b"{}")
    run("synthesize", "ckpts", "-g", "7", "-o", "ema.safetensors", "-q", cwd=made)
    return made


def called(place, command, **environment):
    """All that a call prints, with its exit code checked."""
    arguments = WRONG.get(command) or (command, *CALLS[command])
    done = phema(*arguments, cwd=place, verified=False, **environment)
    assert (done.code == 0) == (command not in WRONG), done.err
    return done.out + done.err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", EVERY)
def test_any_encoding(place, command, encoding):
    """What an encoding lacks has a plain form: nothing is escaped, and nothing is a question."""
    printed = called(place, command, PYTHONIOENCODING=encoding, COLUMNS="80", TERM="dumb")
    assert not re.search(r"\\u|\\x|\?|\x1b", printed)
    assert printed.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1:strict", "cp437", "cp932", "koi8-r"])
@pytest.mark.parametrize("command", ["inspect", "sweep"])
def test_drawings_in_other_encodings(place, command, encoding):
    """Some have a few of the characters of drawings, which is not enough for any."""
    printed = called(place, command, PYTHONIOENCODING=encoding, COLUMNS="80", TERM="dumb")
    assert "\\u" not in printed
    assert printed.isascii()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_in_another_encoding(command):
    """Boxes are drawn in ASCII where there is nothing better."""
    shown = run(*command.split(), "--help", PYTHONIOENCODING="cp1252", TERM="dumb").out
    assert shown.isascii()
    assert "\\u" not in shown


@pytest.mark.parametrize("command", EVERY)
def test_no_heading_is_broken_at_80_columns(place, command):
    """Tables fit, and words of their headings are whole."""
    printed = called(place, command, COLUMNS="80")
    assert not re.search(r"_(\s|$)", printed)
    lines = [
        line
        for line in printed.splitlines()
        if not re.search(r"^notice|^warning|^error|^phema:|compared|^\d+ of \d+: ", line)
    ]
    assert max(map(len, lines), default=0) <= 80


def characters(text, command):
    """How often each character is there, without blanks, what a chart draws, and times taken."""
    table, _, _ = text.partition("\nmetric")
    ignored = r"\s|\d" if command in {"sweep", "demo"} else r"\s"
    return Counter(re.sub(ignored, "", table))


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("command", EVERY)
def test_nothing_is_lost_on_a_narrow_console(place, command, columns):
    """All that stands in a pipe stands on a narrow console too, if over more lines."""
    wide = characters(called(place, command), command)
    narrow = characters(called(place, command, COLUMNS=columns), command)
    assert not wide - narrow


def test_code_to_copy_is_not_folded(place):
    """The terminal may fold it; what is copied from there has its lines."""
    printed = called(place, "plan", COLUMNS="40")
    assert "\n      ...  # loss, backward, optimizer.step()\n" in printed


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_nothing_of_the_help_is_lost_on_a_narrow_console(command):
    """Names of options and words are whole at 40 columns."""
    narrow, wide = (
        run(*command.split(), "--help", COLUMNS=c, NO_COLOR="1", TERM="dumb").out
        for c in ("40", "200")
    )
    assert "…" not in narrow
    words = r"--[\w-]+|[A-Za-z]{4,}"
    assert set(re.findall(words, wide)) <= set(re.findall(words, narrow))


@pytest.mark.parametrize("command", EVERY)
def test_colours_are_read_on_dark_and_light(place, command):
    """No text is yellow, white or black, in any brightness; it is one of a few colours."""
    printed = called(place, command, **TERMINAL)
    codes = {code for found in SEQUENCE.findall(printed) for code in found.split(";")}
    assert codes <= READABLE
    if command not in {"plot", "verify", "demo", "pack"}:
        assert codes


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_colours_of_the_help(command):
    """The same of the help, whose colours are typer's."""
    shown = run(*command.split(), "--help", **TERMINAL).out
    codes = {code for found in SEQUENCE.findall(shown) for code in found.split(";")}
    assert {"1", "36"} <= codes <= READABLE


@pytest.mark.parametrize("command", ["inspect", "findings"])
def test_no_colour_where_none_is_wanted(place, command):
    """NO_COLOR leaves bold text; a dumb terminal gets nothing but text."""
    printed = called(place, command, NO_COLOR="1", **TERMINAL)
    codes = {code for found in SEQUENCE.findall(printed) for code in found.split(";")}
    assert codes <= {"", "0", "1", "2"}
    assert "\x1b" not in called(place, command, TERM="dumb")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals in Python")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal(place, encoding):
    """On a terminal of 40 columns there is a progress bar, in what the encoding has."""
    import pty
    import termios

    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (24, 40))
    kept = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    with warm.popen(
        [PHEMA, "synthesize", *CALLS["synthesize"]],
        cwd=place,
        env=kept | {"TERM": "xterm", "PYTHONIOENCODING": encoding},
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
    ) as process:
        os.close(secondary)
        printed = b""
        try:
            while part := os.read(primary, 1 << 16):
                printed += part
        except OSError:
            # The other end is closed.
            pass
        os.close(primary)
        assert process.wait() == 0
    text = printed.decode(encoding)
    assert "synthesizing" in text
    assert "verdict" in text
    assert "\\u" not in text
