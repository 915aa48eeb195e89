"""Power losses: whatever the disk holds then, the same command gives the whole output."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phema_cli.snapshots import scan
from phema_cli.synthesis import Request, make_recipe
from phema_cli.synthesis.execute import execute
from tests.builders import replacing

pytestmark = [pytest.mark.slow, pytest.mark.linux("what the system was asked to flush")]


class Disk:
    """What of a directory survives a power loss, and what may not: only what was flushed does.

    A file has the bytes of its last flush, a directory the names of its last one. ``names`` makes
    the other extreme of what file systems do: all names are there at once, and the bytes that were
    not flushed are zeros.

    Args:
        root: the directory, whose content is on the disk now.
        names: whether names need no flush.
    """

    def __init__(self, root, *, names):
        self.root = root
        self.names = names
        self.files, self.folders = {}, {}
        self.states = []
        for path in [root, *root.rglob("*")]:
            self.flush(path)

    def flush(self, path):
        """Note what is durable from now on."""
        number = path.stat().st_ino
        if path.is_dir():
            self.folders[number] = {p.name: (p.stat().st_ino, p.is_dir()) for p in path.iterdir()}
        else:
            self.files[number] = path.read_bytes()

    def power_loss(self):
        """Add what would be on the disk now to the states."""
        state = {}
        if self.names:
            for path in self.root.rglob("*"):
                if path.is_dir():
                    state[path] = None
                else:
                    durable = self.files.get(path.stat().st_ino, b"")
                    size = path.stat().st_size
                    state[path] = durable[:size] + bytes(size - len(durable[:size]))
        else:
            self._descend(self.root, self.folders[self.root.stat().st_ino], state)
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def _descend(self, folder, entries, state):
        for name, (number, is_folder) in entries.items():
            # What has a name and was never flushed is empty.
            state[folder / name] = None if is_folder else self.files.get(number, b"")
            if is_folder:
                self._descend(folder / name, self.folders.get(number, {}), state)


def restore(root, state):
    """Make a directory what it would be after a power loss."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for path, data in state.items():
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def content(root):
    """Bytes of every file below a directory."""
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


#: where outputs go, by their form.
FORMS = {
    "sharded": "new/",
    "single": "new/g{gamma}.safetensors",
    "torch": "g{gamma}.pt",
    "dcp": "new/g{gamma}",
}


@pytest.fixture
def make(tmp_path):
    """Plans a synthesis in shards or one file, of two targets and many small runs."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        metadata = {"gamma": "5.0", "step": str(step)}
        values = {f"w{i}": torch.rand(2_000) for i in range(3)} | {"n": torch.arange(10)}
        save_file(values, tmp_path / "in" / f"s{step}.safetensors", metadata)
    (tmp_path / "disk").mkdir()

    def planned(form, gammas=(6.0, 7.0)):
        out = FORMS[form]
        request = Request(
            gamma=gammas,
            output=f"{tmp_path}/disk/{out}",
            format="dcp" if form == "dcp" else None,
            max_shard_size=9_000 if form in {"sharded", "dcp"} else None,
        )
        recipe, _ = make_recipe(scan([tmp_path / "in"]), request)
        return replace(recipe, tile_elements=64, jobs=1)

    return planned


@pytest.mark.parametrize("names", [False, True], ids=["flushed", "names"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_command_goes_on(make, tmp_path, monkeypatch, form, overwrite, names):
    """At every flush, rename and removal: what is named is whole, and the run can be repeated."""
    root = tmp_path / "disk"
    if overwrite:
        other = make(form)
        execute(replace(other, weights=other.weights[::-1].copy()))
    old = content(root)
    disk = Disk(root, names=names)
    recipe = make(form)
    monkeypatch.setattr("phema_cli.system.pools._REPORT_SECONDS", 0.001)
    with monkeypatch.context() as patch:
        record(patch, disk)
        execute(replacing(recipe) if overwrite else recipe)
    disk.power_loss()
    new = content(root)
    assert len(disk.states) > 8
    # What has returned is there for good.
    assert {path: disk.states[-1].get(path) for path in new} == new
    for number, state in enumerate(disk.states):
        restore(root, state)
        check_names(root, recipe, old, new)
        # Only where all is there, and nothing else, it is no beginning of another run.
        whole = content(root) == new
        execute(replacing(recipe) if overwrite or whole else recipe)
        assert content(root) == new, number
        assert not list(root.rglob("*.partial")), number


def record(patch, disk):
    """Have the disk follow what is flushed, and lose its power before and after."""
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "rmdir")}

    def fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        disk.power_loss()
        real["fsync"](descriptor)
        if path.is_relative_to(disk.root):
            disk.flush(path)
        disk.power_loss()

    def watched(name):
        def call(*arguments):
            disk.power_loss()
            real[name](*arguments)

        return call

    patch.setattr("os.fsync", fsync)
    for name in ("replace", "unlink", "rmdir"):
        patch.setattr(f"os.{name}", watched(name))


def check_names(root, recipe, old, new):
    """A file with a final name holds the old bytes or the new ones; with an index all are there."""
    finals = {path for output in recipe.outputs for path in output.finals}
    for path, data in content(root).items():
        if path in finals:
            assert data in {old.get(path), new[path]}
    for output in recipe.outputs:
        if output.index is not None and output.index.path.exists():
            held = {path: path.read_bytes() for path in output.finals}
            assert held in ({p: old.get(p) for p in held}, {p: new[p] for p in held})
