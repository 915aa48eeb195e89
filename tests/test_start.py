"""The tutorial's own loop, and the average that phema makes of what it leaves."""

import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.builders import phema
from tests.pages import ROOT, blocks

pytestmark = pytest.mark.slow

#: what the test adds to the page's loop: gamma 7 tracked in float64, and where it ends.
_BEFORE = "known = [p.detach().double() for p in model.parameters()]\n"
_AFTER = """
    beta = (1 - 1/(i+1)) ** (1 + 7)
    known = [k * beta + p.detach().double() * (1 - beta) for k, p in zip(known, model.parameters())]
    if i % save_freq == 0:
        named = dict(zip((n for n, _ in model.named_parameters()), known))
        torch.save((named, model.state_dict()), "known.obj")
"""


def test_the_tutorials_loop_gives_gamma_7(tmp_path):
    """1,000 steps of it, then --gammas 5,10: within 1e-3 of the averaging distance of gamma 7."""
    (program,) = blocks(ROOT / "docs" / "start.md", "python")
    assert "model_ema_1_{i}.pth" in program.text
    tracked = re.sub(r"\n\n\nfor i,", f"\n{_BEFORE}\nfor i,", program.text) + _AFTER
    subprocess.run([sys.executable, "-c", tracked], cwd=tmp_path, check=True)
    asked = phema("inspect", ".", cwd=tmp_path)
    assert asked.code == 3
    assert asked.out.endswith("try: phema inspect . --gammas 5,10\n")
    made = phema("synthesize", "--gamma", "7", "--gammas", "5,10", ".", cwd=tmp_path)
    assert made.code == 0, made.err
    known, last = torch.load(tmp_path / "known.obj")
    result = load_file(tmp_path / made.out.strip())
    away = sum(float((known[n] - last[n]).square().sum()) for n in known)
    off = sum(float((known[n] - result[n]).square().sum()) for n in known)
    assert (off / away) ** 0.5 < 1e-3
