"""Fixtures shared by all tests."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phema_cli.system.signals import ENDING, raise_on_signals
from tests.builders import phema, write_run
from tests.once import each_sample_is_tested_once
from tests.pages import README, blocks, python


def pytest_collection_modifyitems(items):
    """Skip what needs Linux on other systems, with its reason."""
    for item in items:
        marker = item.get_closest_marker("linux")
        if marker is not None and sys.platform != "linux":
            item.add_marker(pytest.mark.skip(reason=f"Linux alone: {marker.args[0]}"))


@pytest.fixture(autouse=True)
def _no_open_files_left():
    """No test leaves a file descriptor open, where the system tells which there are."""
    before = _open_files()
    yield
    assert _open_files() <= before


def _open_files():
    """How many files are open, but for fonts: matplotlib keeps these open for the next picture."""
    number, table = 0, Path("/proc/self/fd")
    for descriptor in table.iterdir() if table.is_dir() else ():
        # What lists them is itself gone by now.
        with suppress(FileNotFoundError):
            number += descriptor.readlink().suffix != ".ttf"
    return number


@pytest.fixture(scope="session", autouse=True)
def _each_sample_is_tested_once():
    """Commands in this process that meet the same snapshots test their tags once."""
    with each_sample_is_tested_once():
        yield


@pytest.fixture
def _signals_end_it():
    """Signals raise their error, as they do in a process of the console script."""
    before = {number: signal.getsignal(number) for number in ENDING}
    raise_on_signals()
    yield
    sys.unraisablehook = sys.__unraisablehook__
    for number, handler in before.items():
        signal.signal(number, handler)


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
    python(loop.text, place, {"__name__": "__main__"})
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
