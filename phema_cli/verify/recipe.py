"""The recipe of an output that is there, made again from what the output records of itself."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from phema_cli.errors import CheckFailedError, InputError, UsageError
from phema_cli.estimate.given_weights import combined
from phema_cli.estimate.targets import time_of
from phema_cli.formats.base import Checkpoint, DType
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.globs import matching
from phema_cli.profiles import Array, PowerProfile, Profile
from phema_cli.profiles.grammar import MOST_EXACT
from phema_cli.profiles.specs import CHECKPOINTS
from phema_cli.request import Config, Request
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.base import Needs, reference
from phema_cli.snapshots.config import checked, from_table
from phema_cli.snapshots.scan import Scan
from phema_cli.snapshots.tensors import averaged
from phema_cli.solver import Figures, Solution
from phema_cli.synthesis.names import Placed
from phema_cli.synthesis.provenance import EXACT, SAID, SCHEMA, is_whole, source_entry
from phema_cli.synthesis.recipe import Recipe, assemble
from phema_cli.trainers.base import real

_ENTRIES = ("version", "method", "target", "sources", "figures", "copy")
_SOURCE_ENTRIES = ("name", "average", "gamma", "step", "time", "size_bytes", "weight")


def provenance_of(out: Checkpoint) -> dict[str, Any]:
    """What an output records of how it was made.

    Raises:
        CheckFailedError: there is no record, or phema does not write such a one.
    """
    try:
        record = json.loads(out.metadata[PROVENANCE_KEY])
        schema = record["schema"]
        whole = is_whole(record)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckFailedError(
            "has no provenance that phema wrote", where=out.path, remedy="synthesize it again"
        ) from error
    if schema != SCHEMA:
        raise CheckFailedError("has a provenance of another schema", where=out.path)
    if not whole:
        raise CheckFailedError("its provenance was changed after it was written", where=out.path)
    flaw = _flaw(record)
    if flaw is not None:
        raise CheckFailedError(f"its provenance {flaw}", where=out.path)
    return record  # type: ignore[no-any-return]


def is_bitwise(record: dict[str, Any]) -> bool:
    """Whether the sources give the output's averages to the bit.

    What version 0.1 made of values of 16 bits depended on the other targets of the call. It alone
    recorded a device.
    """
    return "device" not in record


def needs_of_record(record: dict[str, Any]) -> Needs:
    """What has to be known of the sources of an output: what was needed to make it."""
    if record["method"] != EXACT:
        return "laws"
    profile = record["target"].get("profile")
    return "times" if str(profile).startswith(f"{CHECKPOINTS}:") else "names"


def config_of(record: dict[str, Any], given: Config) -> Config:
    """What is said of the snapshots: by the user, else by the output's record.

    Raises:
        UsageError: an option of the user's makes no sense.
    """
    given = checked(given)
    try:
        recorded = from_table(record.get("options", {}), Path())
    except (InputError, UsageError):
        # Where they are needed, what the scan finds without them says more.
        return given
    return replace(given.over(recorded), typed=given.typed, typed_files=given.typed_files)


def _flaw(record: dict[str, Any]) -> str | None:
    """What is wrong with a record, None if nothing is."""
    missing = next((name for name in _ENTRIES if name not in record), None)
    if missing is not None:
        return f"lacks its {missing}"
    drop = record.get("drop", [])
    if not isinstance(drop, list):
        return "has a drop that phema does not write"
    options = record.get("options", {})
    if not isinstance(options, dict) or not options.keys() <= {*SAID}:
        return "has options that phema does not write"
    match record:
        case {
            "method": str(method),
            "target": {"step": step},
            "sources": [_, *_] as sources,
            "copy": [*copy],
        } if _is_step(step, method) and _are_globs(copy) and _are_globs(drop):
            return next((flaw for flaw in map(_source_flaw, sources) if flaw is not None), None)
    return "has entries that phema does not write"


def _is_step(step: object, method: str) -> bool:
    """Whether it is when a target is; of combinations nothing may say that."""
    return (step is None and method == EXACT) or ((real(step) or 0) > 0 and _is_number(step))


def _source_flaw(entry: object) -> str | None:
    """What is wrong with the record of a source, None if nothing is."""
    if not isinstance(entry, dict):
        return "has a source that phema does not write"
    missing = next((name for name in _SOURCE_ENTRIES if name not in entry), None)
    if missing is not None:
        return f"lacks the {missing} of a source"
    if not isinstance(entry["name"], str):
        return "has a source that phema does not write"
    if not _is_number(entry["weight"]):
        return "has a weight that is not a number"
    return None


def _is_number(value: object) -> bool:
    """Whether it is a number that a step or a weight can be."""
    number = real(value)
    return number is not None and abs(number) <= MOST_EXACT


def _are_globs(listed: list[Any]) -> bool:
    """Whether these are globs of names."""
    if not all(isinstance(glob, str) for glob in listed):
        return False
    try:
        matching(listed)
    except UsageError:
        return False
    return True


def remake(out: Checkpoint, found: Scan) -> Recipe:
    """The recipe that an output says it was made by, for what a scan found.

    Raises:
        CheckFailedError: a source is missing or another one, or the output can't come of them.
        PhemaError: the scan is of no use.
    """
    record = provenance_of(out)
    # Version 0.1 could average on a GPU, whose sums have other bits.
    if record.get("device", "cpu") != "cpu":
        raise CheckFailedError(
            "was averaged on a GPU, which this version can't repeat",
            where=out.path,
            remedy="synthesize it again",
        )
    try:
        recipe = _remade(out, record, found)
    except InputError as error:
        # Snapshots that could be averaged, and can't any more, are not what they were.
        raise CheckFailedError.of(error) from error
    files = [file.path for file in recipe.outputs[0].files]
    if files != list(out.files):
        made = ", ".join(p.name for p in files)
        raise CheckFailedError(f"its files should be {made}", where=out.path)
    return recipe


def _remade(out: Checkpoint, record: dict[str, Any], found: Scan) -> Recipe:
    """The recipe of a complete record; InputError where the snapshots have none."""
    found = found.settled(record["copy"], record.get("drop", ()))
    snapshots = found.require()
    step = float(record["target"]["step"] or 1.0)
    weights = _weights(out, record, snapshots)
    nothing = Figures(0.0, None, None, None, 1.0, 1.0)
    dtype = _stored_as(out, snapshots, record["copy"])
    path = out.path if len(out.files) == 1 else out.files[0].parent
    return assemble(
        found,
        [_target(record, snapshots, weights[:, 0])],
        Solution(weights, (nothing,)),
        Placed(out.format, [path], [0], _shard_bytes(out)),
        Request(
            method=record["method"],
            dtype=None if dtype is None else dtype.label,
            jobs=1,
            allow_nonfinite=True,
            side_files=False,
        ),
        step=step,
        record=out.metadata[PROVENANCE_KEY],
    )


def _target(record: dict[str, Any], snapshots: Sequence[Snapshot], weights: Array) -> Profile:
    """A target that takes what is copied from where the output's did; weights are recorded."""
    if record["method"] != EXACT:
        return PowerProfile(1.0, time_of(snapshots, float(record["target"]["step"])))
    places = np.flatnonzero(weights).tolist() or [0]
    return combined(snapshots, {i: float(weights[i]) for i in places}, EXACT, "weights")


def _weights(out: Checkpoint, record: dict[str, Any], snapshots: Sequence[Snapshot]) -> Array:
    """The recorded weights, (n, 1), each at its snapshot.

    Raises:
        CheckFailedError: a source is missing, or is not what it was.
    """
    weights = np.zeros((len(snapshots), 1))
    # What an average is of is nothing to a combination.
    facts = _SOURCE_ENTRIES[:-1] if record["method"] != EXACT else ("name", "step", "size_bytes")
    now = [source_entry(s) for s in snapshots]
    # Snapshots of several directories may have one name.
    by_name: dict[object, list[int]] = {}
    for i, source in enumerate(now):
        by_name.setdefault(source["name"], []).append(i)
    used: set[int] = set()
    for entry in record["sources"]:
        named = by_name.get(entry["name"], [])
        if not named:
            raise CheckFailedError(
                f"its source {entry['name']} is not among the snapshots",
                where=out.path,
                remedy="pass the paths that it was made from",
            )
        same = [i for i in named if _change(entry, now[i], facts) is None]
        if not same:
            changed = _change(entry, now[named[0]], facts)
            raise CheckFailedError(
                f"its source {entry['name']} had {changed} {entry[changed]}, "
                f"not {now[named[0]][str(changed)]}",
                where=out.path,
                remedy="pass the snapshots that it was made of, or synthesize it again",
            )
        place = next((i for i in same if i not in used), None)
        if place is None:
            raise CheckFailedError(f"lists its source {entry['name']} twice", where=out.path)
        used.add(place)
        weights[place] = entry["weight"]
    return weights


def _change(entry: dict[str, Any], now: dict[str, Any], facts: Collection[str]) -> str | None:
    """The first of these facts about a source that is not as it was recorded."""
    return next((name for name in facts if entry[name] != now[name]), None)


def _stored_as(out: Checkpoint, snapshots: Sequence[Snapshot], copy: Sequence[str]) -> DType | None:
    """The type that averaged tensors were converted to, None where it is the newest snapshot's."""
    newest = reference(snapshots).checkpoint.tensors
    names = averaged(snapshots, copy)
    # A distributed checkpoint has the names of its source's files, which may have a prefix.
    longest = max(names, key=len, default="")
    prefixes = [n.removesuffix(longest) for n in out.tensors if f".{n}".endswith(f".{longest}")]
    prefix = min(prefixes, key=len, default="")
    types = ((n, e.dtype) for n in names if (e := out.tensors.get(prefix + n)) is not None)
    return next((dtype for n, dtype in types if dtype != newest[n].dtype), None)


def _shard_bytes(out: Checkpoint) -> int | None:
    """A limit that splits tensors into the shards that are there."""
    if len(out.files) == 1:
        return None
    by_file: dict[Path, list[int]] = {}
    for extent in out.stored:
        by_file.setdefault(extent.file, []).append(extent.length)
    return max((sum(sizes) for sizes in by_file.values() if len(sizes) > 1), default=1)
