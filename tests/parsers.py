"""The parsers of what files hold, each as a function of bytes, for tests that make up the bytes."""

from __future__ import annotations

import atexit
import functools
import io
import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from phema_cli import profiles as weightings
from phema_cli.cli.parsing import profiles
from phema_cli.errors import PhemaError
from phema_cli.formats import packing
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.reader import FileReader
from phema_cli.snapshots.config import read_config
from phema_cli.trainers import registry
from tests import requests
from tests.builders import read_index
from tests.dcp_files import save
from tests.edm2_files import network, write_edm2
from tests.limits import BYTES, SECONDS, LimitError, limits_of, seconds_of
from tests.packing import edit_entry, packed_chain, walk
from tests.torch_files import craft, tensor_pickle

#: characters of a message.
_LONGEST = 4000


class Parser(NamedTuple):
    """A parser.

    Attributes:
        parse: reads bytes that stand where a file of its kind stands.
        seeds: valid files.
    """

    parse: Callable[[bytes], object]
    seeds: list[bytes]


def _packed(folder: Path) -> dict[str, Parser]:
    """Parsers of the last file of a chain, and of how that says that it is packed."""
    *_, last = packed_chain(folder, walk(4, (3, 13)), [(n, 5.0) for n in range(1, 5)], 4)
    whole = last.read_bytes()

    def values(data: bytes) -> object:
        last.write_bytes(data)
        found = read_index(last)
        with FileReader() as reader:
            for e in found.tensors.values():
                if e.packed is not None:
                    reader.read_elements(e, 0, memoryview(bytearray(e.length)))
        return found

    def entry(data: bytes) -> object:
        last.write_bytes(whole)
        edit_entry(last, lambda _: data.decode(errors="replace"))
        return read_index(last)

    text = read_index(last).metadata[packing.KEY]
    return {
        "packed": Parser(values, [whole]),
        "packing": Parser(
            entry, [text.rpartition(" ")[0].encode(), packing.Packing().text()[:-9].encode()]
        ),
    }


_STATE = {"model": {"w": torch.rand(2, 3).t(), "n": torch.tensor(3)}, "step": 5, "ema": [1, "a"]}


def _file(folder: Path, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Writes the bytes into a file and reads that."""
    path = folder / name

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return parse


def _pickled(folder: Path) -> Callable[[bytes], object]:
    """Reads the bytes as the pickle of a .pt file."""

    def parse(data: bytes) -> object:
        path = craft(folder / "p.pt", data, bytes(24))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/1", bytes(24))
        return read_index(path)

    return parse


def _saved() -> bytes:
    """A .pt file."""
    stored = io.BytesIO()
    torch.save(_STATE, stored)
    return stored.getvalue()


def _toml_seed() -> bytes:
    return (
        b'pattern = "(?P<step>.)"\ngammas = [5, 1e1]\naverage = "exponential:beta=0.9"\n'
        b'update_every = 2\nkey = "a.b"\nselect = ["*"]\nnames_from = "x.pt"\n'
        b'[snapshots."a.pt"]\ngamma = 5\nstep = 0x10\n'
    )


#: files for a run of two snapshots at steps 50 and 100.
_TOML_RUN = [
    b'pattern = "step0*(?P<step>[0-9]+)-gamma(?P<gamma>.)"\nselect = ["*step*", "x"]\n',
    b'exclude = ["*[!s]"]\ncopy = ["twin"]\ndrop = ["c?unt"]\n',
    b'gammas = [5]\ntrust_tags = true\nupdate_every = 2\ncopy = ["*"]\n',
    b"raw = true\nsteps_per_epoch = 3\n",
]
#: those of the library, and of trainers.
LAWS = {**weightings.LAWS, **registry.LAWS}


@functools.cache
def parsers() -> Mapping[str, Parser]:
    """All of them, by name."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sharded = folder / "sharded"
    sharded.mkdir()
    save_file({"w": torch.ones(2), "v": torch.ones(1)}, sharded / "x.safetensors", {"gamma": "5"})
    one = (sharded / "x.safetensors").read_bytes()
    index = {"metadata": {"total_size": 8}, "weight_map": dict.fromkeys("wv", "x.safetensors")}
    dcp = save(folder / "dcp", {"ema": {"w": torch.ones(3), "v": torch.rand(4, 3).t()}, "step": 3})
    chunks = shutil.copytree(dcp, folder / "chunks")
    write_edm2(folder / "seed.pkl", network(2))
    saved = _saved()
    remade, recorded = requests.remade(folder / "remade")
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        pickled = archive.read("archive/data.pkl")
    return {
        "safetensors": Parser(_file(folder, "a.safetensors", read_index), [one]),
        "index": Parser(
            _file(sharded, "m.safetensors.index.json", read_index), [json.dumps(index).encode()]
        ),
        **_packed(folder / "packed"),
        "torch": Parser(_file(folder, "a.pt", read_index), [saved]),
        "torch-pickle": Parser(_pickled(folder), [pickled, tensor_pickle(0, (2,), (1,))]),
        "edm2": Parser(
            _file(folder, "a.pkl", read_index),
            [
                (folder / "seed.pkl").read_bytes(),
                pickle.dumps({"ema": {"w": torch.ones(2)}, "a": {1, 2.5}}, 4),
            ],
        ),
        "dcp-metadata": Parser(
            _file(dcp, ".metadata", read_index), [(dcp / ".metadata").read_bytes()]
        ),
        "dcp-chunk": Parser(
            _file(chunks, "__0_0.distcp", lambda path: read_index(path.parent / ".metadata")),
            [(chunks / "__0_0.distcp").read_bytes()],
        ),
        "toml": Parser(
            _file(folder, "phema.toml", lambda path: read_config(path.parent)), [_toml_seed()]
        ),
        "toml-run": Parser(requests.toml_run(folder / "toml-run"), _TOML_RUN),
        "template": Parser(
            requests.template, [b"a/{gamma:>9}-{step:07}{{x}}", b"{sigma_rel}{profile:.9s}.pt"]
        ),
        "law": Parser(requests.law, [form.example.encode() for form in LAWS.values()]),
        "globs": Parser(requests.globs, [b"*.weight", b"a?[!a-z]*\nmodule.encoder.weight"]),
        "provenance": Parser(remade, [recorded]),
        "diffusers": Parser(
            requests.diffusers(folder / "diffusers"), [json.dumps(requests.SETTINGS).encode()]
        ),
        "csv": Parser(
            _file(folder, "p.csv", lambda path: profiles([f"csv:{path}"])),
            [b"time,weight\n0,1\n10,2.5e-1\n"],
        ),
        "weights": Parser(
            requests.weights(folder / "weights"),
            [
                b'snapshot,weight\n50,1\n100,"-2.5e-1"\n',
                b'{"targets": [{"sources": [{"name": "100", "weight": 1e0}]}]}',
                b'{"50": 0.5, "100": 0}',
            ],
        ),
        "profile": Parser(
            requests.profile,
            [
                b"checkpoints:last=3,from=1e0,to=9",
                b"decay:last=0.2,shape=sqrt",
                b"uniform:last=2000steps",
                b"exponential:halflife=20",
            ],
        ),
    }


def outcome(name: str, data: bytes) -> object:
    """What a parser makes of bytes, or the error that it is to raise; any other is raised."""
    found: object
    try:
        found = parsers()[name].parse(data)
    except PhemaError as error:
        found = error
    if isinstance(found, PhemaError):
        line = str(found)
        assert "\n" not in line
        assert len(line) < _LONGEST
    if isinstance(found, Checkpoint):
        _check_places(found)
    return found


def _check_places(found: Checkpoint) -> None:
    """All values lie in their files."""
    for extent in found.tensors.values():
        parts: list[Any] = [p.extent for p in extent.pieces] or [extent]
        if extent.packed is not None:
            link, name = extent.packed
            parts = [e for part in link.parts for e in part.tensors[name]] + [link.keyframe[name]]
        for part in parts:
            steps = zip(part.shape, part.strides or (), strict=bool(part.strides))
            last = 1 + sum((n - 1) * s for n, s in steps) if part.strides else part.elements
            length = part.dtype.size_bytes(last) if part.elements else 0
            assert 0 <= part.offset <= part.offset + length <= part.file.stat().st_size


def check(name: str, data: bytes, *, memory: bool = True) -> object:
    """The outcome, in little time, and memory where that is measured too.

    Raises:
        LimitError: it takes more.
    """
    if memory:
        found, seconds, held = limits_of(lambda: outcome(name, data))
    else:
        (found, seconds), held = seconds_of(lambda: outcome(name, data)), 0
    if seconds > SECONDS:
        raise LimitError(f"{seconds} s")
    if held > BYTES:
        raise LimitError(f"{held} bytes")
    return found
