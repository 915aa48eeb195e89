"""Fixtures shared by all tests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.builders import phema, write_run
from tests.pages import README, blocks, shell


@pytest.fixture(autouse=True)
def _no_open_files_left():
    """No test leaves a file descriptor open."""
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    yield
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before


@pytest.fixture
def ckpts(tmp_path):
    """A directory with four snapshots each of gamma 5 and 10."""
    write_run(tmp_path / "ckpts")
    return tmp_path / "ckpts"


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory):
    """What the documents speak of: demo/, the README's ckpts/, odd/."""
    place = tmp_path_factory.mktemp("docs")
    assert phema("demo", "demo", cwd=place).code == 0
    (loop,) = blocks(README, "python")
    shell(f"python - <<'EOF'\n{loop.text}EOF", place)
    write_run(place / "odd", steps=(1000, 2000))
    for path in sorted((place / "odd").iterdir()):
        step, gamma = re.search(r"step0*(\d+)-gamma(\d+)", path.name).groups()
        tensors = {"w": torch.rand(36)}
        save_file(tensors, place / "odd" / f"{int(gamma == '10')}_{step}.safetensors")
        path.unlink()
    return place


@pytest.fixture
def workplace(_prepared, tmp_path):
    """A directory of one's own with what the documents speak of."""
    return shutil.copytree(_prepared, tmp_path / "workplace")
