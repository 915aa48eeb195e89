"""What users and strangers write in text, each as a function of bytes, for tests that make it up.

Beside ``tests.parsers``: a phema.toml in a run of snapshots, templates of names, laws, what outputs
record of themselves, and the settings that trainers store beside weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import phema_cli
from phema_cli.estimate.given_weights import combination
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.globs import Globs
from phema_cli.profiles import CheckpointsSpec, PowerProfile, parse_profile
from phema_cli.snapshots import scan
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.synthesis import provenance
from phema_cli.synthesis.names import output_paths
from phema_cli.trainers.registry import parse_law
from phema_cli.verify.recipe import remake
from tests.builders import write_run

#: what ``EMAModel`` of diffusers stores beside its weights.
SETTINGS: dict[str, Any] = {
    "decay": 0.9999,
    "min_decay": 0.0,
    "optimization_step": 100,
    "update_after_step": 0,
    "use_ema_warmup": True,
    "inv_gamma": 1.0,
    "power": 0.75,
}
#: characters of a name and bytes of a file system's path.
_LONGEST_NAME = 10_000

Read = Callable[[bytes], object]


def toml_run(folder: Path) -> Read:
    """Scans two snapshots beside a phema.toml of the bytes."""
    write_run(folder, gammas=(5.0,), steps=(50, 100))
    return _written(folder / "phema.toml", lambda: scan([folder]).require())


def diffusers(folder: Path) -> Read:
    """Scans averages of diffusers whose settings are the bytes."""
    for name in ("unet", "unet_ema"):
        (folder / "checkpoint-100" / name).mkdir(parents=True)
        path = folder / "checkpoint-100" / name / "diffusion_pytorch_model.safetensors"
        save_file({"w": torch.ones(2)}, path)

    def read() -> object:
        found = scan([folder])
        for snapshot in found.snapshots:
            snapshot.tag.profile.cdf(np.linspace(0, snapshot.tag.profile.end, 9))
        return found.require()

    return _written(folder / "checkpoint-100/unet_ema/config.json", read)


def _written(path: Path, read: Callable[[], object]) -> Read:
    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return parse


def template(data: bytes) -> object:
    """Fills a template of names in."""
    found = [
        output_paths(_text(data), [PowerProfile(5.0, 1e3)], step, form, folder=False)
        for step, form in ((1234567.0, "safetensors"), (0.5, "torch"))
    ]
    assert all(len(str(path)) < _LONGEST_NAME + len(data) for paths in found for path in paths)
    return found


def law(data: bytes) -> object:
    """Reads a law, and weighs steps by it."""
    made = parse_law(_text(data))
    for step in (1.0, 1e3, 1e9):
        profile = made.profile(step)
        values = profile.cdf(np.linspace(0, profile.end, 9))
        assert np.all((values >= 0) & (values <= 1 + 1e-9))
    return parse_law(made.text)


def profile(data: bytes) -> object:
    """Reads a target profile, and weighs times or checkpoints by it."""
    spec = parse_profile(_text(data))
    if isinstance(spec, CheckpointsSpec):
        return spec.chosen([1.0, 2.0, 5.0, 7.0, 2.0**53], 2.0**53)
    made = spec.ending_at(1e6)
    values = made.cdf(np.linspace(0, made.end, 9))
    assert np.all((values >= 0) & (values <= 1 + 1e-9))
    return made.density(np.linspace(0, made.end, 9))


def weights(folder: Path) -> Read:
    """Reads a combination of the snapshots of a run."""
    write_run(folder / "run", gammas=(5.0,), steps=(50, 100))
    found = scan([folder / "run"]).snapshots
    return _written(folder / "given.csv", lambda: combination(found, folder / "given.csv"))


def globs(data: bytes) -> object:
    """Matches names by globs, a line each."""
    made = Globs(_text(data).splitlines())
    names = ["module.encoder.weight", "a" * 200, "[", ""]
    used = [made(name) for name in names]
    assert any(used) == (len(made.unused(names)) < len(set(_text(data).splitlines())))
    return used


def remade(folder: Path) -> tuple[Read, bytes]:
    """Makes the recipe of an output whose provenance is the bytes, its checksum put right."""
    write_run(folder / "run", gammas=(5.0, 10.0), steps=(50, 100))
    (out,) = phema_cli.synthesize(folder / "run", gamma=7, output=str(folder / "o.safetensors"))
    checkpoint, found = read_checkpoint(out), scan([folder / "run"])
    text = checkpoint.metadata[PROVENANCE_KEY]

    def parse(data: bytes) -> object:
        given = _signed(_text(data))
        forged = replace(checkpoint, metadata={**checkpoint.metadata, PROVENANCE_KEY: given})
        return remake(forged, found)

    return parse, text.encode()


def _signed(text: str) -> str:
    """A record with the digest that it has to have; what is none stays as it is."""
    try:
        record = json.loads(text)
        rest = {k: v for k, v in record.items() if k != "digest"}
        record["digest"] = provenance._digest(rest)  # noqa: SLF001 - a forger knows it too
        return json.dumps(record)
    except (ValueError, AttributeError, RecursionError):
        return text


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
