"""The tutorial's own loop, and the average that phema makes of what it leaves, on any system."""

import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.builders import phema
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs" / "tutorial.md"
#: what the test adds to the page's loop: gamma 7 tracked in float64, and where it ends.
_BEFORE = "    known = [p.detach().double() for p in model.parameters()]\n"
_AFTER = """        beta = (1 - 1 / (i + 1)) ** (1 + 7)
        known = [
            k * beta + p.detach().double() * (1 - beta) for k, p in zip(known, model.parameters())
        ]
        if i % save_freq == 0:
            named = dict(zip((n for n, _ in model.named_parameters()), known))
            torch.save((named, model.state_dict()), "known.obj")
"""


@pytest.mark.slow
def test_the_tutorials_loop_gives_gamma_7(tmp_path):
    """2,000 steps of it, then --gammas 5,10: within 1e-3 of the averaging distance of gamma 7."""
    program = blocks(PAGE, "python")[0].text
    loop, saving = "    for i in range(steps):\n", "        if i % save_freq == 0:\n"
    assert program.count(loop) == program.count(saving) == 1
    tracked = program.replace(loop, _BEFORE + loop).replace(saving, _AFTER + saving)
    warm.run([sys.executable, "-c", tracked], cwd=tmp_path, check=True)
    asked = phema("inspect", "run", cwd=tmp_path)
    assert asked.code == 3
    assert asked.out.endswith("try: phema inspect run --gammas 5,10\n")
    made = phema("synthesize", "--gamma", "7", "--gammas", "5,10", "run", cwd=tmp_path)
    assert made.code == 0, made.err
    known, last = torch.load(tmp_path / "known.obj")
    result = load_file(tmp_path / made.out.strip())
    away = sum(float((known[n] - last[n]).square().sum()) for n in known)
    off = sum(float((known[n] - result[n]).square().sum()) for n in known)
    assert (off / away) ** 0.5 < 1e-3


def test_commands_of_the_tutorial_work_in_any_shell():
    """No command has what sh, cmd.exe and PowerShell read in different ways.

    Quotes are double; lists are quoted, since PowerShell takes unquoted ones apart; nothing is
    piped, redirected, continued or set before the command.
    """
    sessions = "".join(b.text for b in blocks(PAGE, "console"))
    commands = re.findall(r"^\$ (.*)$", sessions, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        assert command.startswith(("phema ", "python "))
        bare = re.sub(r'"[^"$`%!\\]*"', "", command)
        assert not re.search(r"""['"`$%!^&|<>;(){}*?~,\\@#]""", bare), command
