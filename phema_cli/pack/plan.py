"""The plan of a packing: its chains, coefficients and errors, from a sample of the snapshots."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from phema_cli.errors import CheckFailedError, InputError, UsageError
from phema_cli.estimate.sample import sample
from phema_cli.estimate.solve import stored_noise
from phema_cli.formats.base import DTYPES, DType
from phema_cli.formats.packing import BITS, FOLLOWED, Doubles, encode, fit, packed_specs
from phema_cli.formats.remote import is_remote
from phema_cli.options import number_text
from phema_cli.pack.request import PackRequest
from phema_cli.profiles import Array, PowerProfile, Profile
from phema_cli.snapshots import Scan, Snapshot
from phema_cli.snapshots.base import PART_FIELD, Finding, Tag, notice, snapshot_name, step_name
from phema_cli.snapshots.tensors import averaged
from phema_cli.solver import Sample, calibrate, solve
from phema_cli.synthesis.names import directory
from phema_cli.synthesis.provenance import carried_metadata
from phema_cli.system.ranks import default_jobs
from phema_cli.trainers.side_files import side_files

#: float32's rounding, relative to a value, as a mean square.
ROUNDING = 2.0**-48 / 12
ENDING = ".safetensors"


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A snapshot that is to be packed.

    Attributes:
        snapshot: the snapshot.
        name: of its file.
        follows: places of the files that it is predicted from, newest first.
        coefficients: of each.
        error: mean square error of an element; 0 where nothing is rounded.
    """

    snapshot: Snapshot
    name: str
    follows: tuple[int, ...]
    coefficients: tuple[float, ...]
    error: float


@dataclass(frozen=True, slots=True)
class Foretold:
    """How good an average can become.

    Attributes:
        gamma: the average.
        stored: its expected_error from the snapshots as they are.
        packed: the same from the packed ones.
    """

    gamma: float
    stored: float
    packed: float


@dataclass(frozen=True, slots=True)
class PackPlan:
    """All that a packing will do, decided before anything is written.

    Attributes:
        request: what was asked for.
        files: n snapshots, oldest first.
        chains: places of the files of each chain; the first is a keyframe.
        tensors: names of the tensors that are packed.
        foretold: what averages are expected to become; None where nothing foretells it.
    """

    request: PackRequest
    files: tuple[PackedFile, ...]
    chains: tuple[tuple[int, ...], ...]
    tensors: frozenset[str]
    foretold: Foretold | None

    def specs(self, place: int) -> dict[str, tuple[DType, tuple[int, ...]]]:
        """Types and shapes of what a file holds, wide types first so that all are aligned."""
        file = self.files[place]
        specs: dict[str, tuple[DType, tuple[int, ...]]] = {}
        for extent in file.snapshot.checkpoint.stored:
            if extent.name not in self.tensors:
                specs[extent.name] = extent.dtype, extent.shape
            elif self.is_keyframe(place):
                specs[extent.name] = DTYPES["F32"], extent.shape
            else:
                specs |= packed_specs(extent.name, extent.elements, self.request.bits)
        return dict(sorted(specs.items(), key=lambda item: -item[1][0].bits))

    def is_keyframe(self, place: int) -> bool:
        """Whether a file is whole."""
        return any(chain[0] == place for chain in self.chains)

    @property
    def jobs(self) -> int:
        """Workers."""
        return self.request.jobs or default_jobs()

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors that will be written."""
        return self.bytes_of(range(len(self.files)))

    def bytes_of(self, places: Iterable[int]) -> int:
        """Bytes of the tensors of some files."""
        return sum(
            dtype.size_bytes(math.prod(shape))
            for place in places
            for dtype, shape in self.specs(place).values()
        )


def make_plan(scan: Scan, request: PackRequest) -> PackPlan:
    """Decide a packing.

    Raises:
        CheckFailedError: the error foretold is above ``request.max_error``.
        InputError: nothing can be packed, or an element is not finite.
        UsageError: the bits are none of 16, 8 and 4, or the output is among the snapshots.
    """
    if request.bits not in BITS:
        *some, last = map(str, BITS)
        raise UsageError(f"--bits must be {', '.join(some)} or {last}, not {request.bits}")
    snapshots = scan.require()
    _check_place(request.output, snapshots)
    names = [
        name
        for name in averaged(snapshots, scan.copy)
        if all(s.checkpoint.tensors[name].dtype.name != "F64" for s in snapshots)
    ]
    found = sample(snapshots, scan.copy)
    if found is None or not names:
        raise InputError(
            "most of the tensors are of types that can't be packed",
            where=scan.roots[0],
            remedy="keep these snapshots as they are",
        )
    every = request.keyframe_every
    places = range(len(snapshots))
    chains = tuple(tuple(places[low : low + every]) for low in places[::every])
    called = _names(snapshots)
    files: list[PackedFile] = []
    for chain in chains:
        files += _chain(snapshots, called, chain, found, request.bits)
    errors = np.array([file.error for file in files])
    foretold = _foretell(snapshots, found, errors)
    if request.max_error is not None:
        _check(foretold, request.max_error)
    tied = {name for s in snapshots for name in s.checkpoint.ties}
    packed = frozenset(name for name in names if name not in tied)
    return PackPlan(request, tuple(files), chains, packed, foretold)


def _check_place(output: str, snapshots: Sequence[Snapshot]) -> None:
    """Refuse a directory in which the next scan would find each snapshot twice.

    Raises:
        UsageError: it is one of those that the snapshots lie in, or inside of one, or a file.
    """
    place = Path(os.path.realpath(directory(output)))
    for root in dict.fromkeys(s.root for s in snapshots if not is_remote(s.root)):
        if place.is_relative_to(os.path.realpath(root)):
            raise UsageError(
                f"lies in {root}, where each packed snapshot would be a second one of its step",
                where=output,
                remedy="pass -o with a directory outside of it",
            )


def _chain(
    snapshots: Sequence[Snapshot],
    names: Sequence[str],
    chain: Sequence[int],
    found: Sample,
    bits: int,
) -> list[PackedFile]:
    """Pack a chain's sample as its files will be: coefficients, and the errors that are left."""
    keyframe = found.values[chain[0]].astype(np.float32)
    noise = float(np.square(keyframe, dtype=np.float64).mean()) * ROUNDING
    files = [PackedFile(snapshots[chain[0]], names[chain[0]], (), (), 0.0)]
    movements: list[Doubles] = []
    for at, place in enumerate(chain[1:], start=1):
        values = found.values[place].astype(np.float32)
        wanted = np.subtract(values, keyframe, dtype=np.float64)
        last = movements
        coefficients = fit(last, wanted, noise)
        *_, movement = encode(values, keyframe, last, coefficients, bits)
        movements = [movement, *movements][:FOLLOWED]
        follows = tuple(chain[at - 1 - back] for back in range(len(last)))
        error = float(np.square(movement - wanted).mean())
        files.append(PackedFile(snapshots[place], names[place], follows, coefficients, error))
    return files


def _foretell(snapshots: Sequence[Snapshot], found: Sample, errors: Array) -> Foretold | None:
    """The expected error of an average between the stored ones, from either kind of snapshots."""
    profiles: list[Profile] = [s.tag.profile for s in snapshots]
    gammas = sorted({s.tag.gamma for s in snapshots if s.tag.gamma is not None})
    if not gammas:
        return None
    # Between the two that lie farthest from each other, else beside the only one.
    pair = max(pairwise(gammas), key=lambda two: (two[1] + 1) / (two[0] + 1), default=None)
    low, high = (gammas[0], 2 * gammas[0] + 1) if pair is None else pair
    target = PowerProfile(math.sqrt((low + 1) * (high + 1)) - 1, max(p.end for p in profiles))
    expected = []
    before = found.errors if found.errors is not None else np.zeros(len(errors))
    for known in (found, replace(found, errors=before + errors)):
        solution = solve(
            profiles,
            [target],
            movement=calibrate(profiles, known),
            storage_noise=stored_noise(snapshots),
        )
        expected.append(solution.figures[0].expected_error)
    return Foretold(target.gamma, *expected)


def _check(foretold: Foretold | None, most: float) -> None:
    """Refuse a packing that averages would suffer from.

    Raises:
        CheckFailedError: the expected error is too large.
        UsageError: nothing foretells it.
    """
    if foretold is None:
        raise UsageError(
            "no snapshot is an average of a gamma, so no error is foretold",
            remedy="leave --max-error out",
        )
    if foretold.packed > most:
        raise CheckFailedError(
            f"expected_error {foretold.packed:.3g} of gamma {foretold.gamma:.3g} would be above "
            f"--max-error {most:g}; from the snapshots as they are it is {foretold.stored:.3g}",
            remedy="nothing was written; pass more --bits",
        )


def _names(snapshots: Sequence[Snapshot]) -> list[str]:
    """A name for each file, unlike all others: that of phema's tracker, or like it."""
    names: dict[str, None] = {}
    for snapshot in snapshots:
        tag = snapshot.tag
        if tag.gamma is not None:
            stem = snapshot_name("ema", tag.step, tag.gamma)
        else:
            law = re.sub(r"[^A-Za-z0-9.]+", "-", tag.label).strip("-")
            stem = f"{step_name('ema', tag.step)}-{law}"
        name = f"{stem}{ENDING}"
        while name in names:
            name = f"{stem}-{sum(n.startswith(stem) for n in names) + 1}{ENDING}"
        names[name] = None
    return list(names)


def _plain_power(tag: Tag) -> PowerProfile | None:
    """The profile of an average of which gamma and a step say all; None of others."""
    power = tag.profile if isinstance(tag.profile, PowerProfile) else None
    return None if power is None or power.sparse or power.gamma != tag.gamma else power


def metadata_of(file: PackedFile) -> dict[str, str]:
    """The metadata of a packed file: its snapshot's, and of its average what the tracker writes."""
    tag = file.snapshot.tag
    said = carried_metadata(file.snapshot.checkpoint) | {"format": "pt"}
    if file.snapshot.partial:
        said[PART_FIELD] = "true"
    power = _plain_power(tag)
    if power is None:
        return said | {"step": number_text(tag.step)}
    return said | {"step": number_text(power.end), "gamma": number_text(power.gamma)}


def laws_of(files: Sequence[PackedFile]) -> str | None:
    """A phema.toml for the files whose metadata can't say what they are; None if all can."""
    tables = [
        f'[snapshots."{file.name}"]\naverage = "{tag.law}"\nstep = {number_text(tag.step)}\n'
        for file in files
        for tag in [file.snapshot.tag]
        if _plain_power(tag) is None
    ]
    return "\n".join(tables) or None


def left_behind(files: Sequence[PackedFile]) -> list[Finding]:
    """What lies beside the newest snapshot for those who load its weights, and is not packed."""
    newest = files[-1].snapshot
    if newest.folder is None:
        return []
    needed, _ = side_files(newest.folder)
    names = ", ".join(file.path.name for file in needed)
    what = f"not packed: {names}, which loaders of the weights need: keep these files"
    return [notice(what, newest.name)] if names else []
