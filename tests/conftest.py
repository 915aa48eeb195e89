"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import write_run


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
