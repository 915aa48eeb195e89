"""``--weights``: a combination of snapshots as somebody gives it, read and matched by name."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from phema_cli.errors import InputError, PhemaError, StorageError, UsageError
from phema_cli.profiles import CombinationProfile
from phema_cli.snapshots import Snapshot
from phema_cli.trainers.base import real, shown

#: a line each for a hundred thousand snapshots.
_MOST_BYTES = 16 << 20
_HELP = "write lines of snapshot,weight, or keep what phema weights --json prints for one target"


def combination(
    snapshots: Sequence[Snapshot], given: str | os.PathLike[str] | Mapping[str, float]
) -> CombinationProfile:
    """The sum of snapshots with these weights, of any sign and sum.

    Args:
        snapshots: oldest first.
        given: weights by snapshot, or a file of them. A snapshot is called by its name, its path,
            the end of either, or its step.

    Raises:
        InputError: the file holds no weights, or names no snapshot, or one twice.
        UsageError: as InputError, for weights from Python.
        StorageError: the file can't be read.
    """
    path = None if isinstance(given, Mapping) else Path(given)
    weights = given.items() if isinstance(given, Mapping) else _read(Path(given)).items()
    try:
        placed = _placed(snapshots, dict(weights))
    except UsageError as error:
        if path is None:
            raise
        raise InputError(error.what, where=path, remedy=error.remedy) from error
    label = "weights" if path is None else f"weights:{path.stem}"
    places = tuple(sorted(placed))
    profiles = tuple(snapshots[i].tag.profile for i in places)
    return CombinationProfile(label, places, tuple(placed[i] for i in places), profiles)


def _placed(snapshots: Sequence[Snapshot], weights: Mapping[str, float]) -> dict[int, float]:
    """Weights by the place of their snapshot; those that are 0 are left out."""
    placed: dict[int, float] = {}
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise UsageError(f"the weight of {name!r:.200} is not finite", remedy=_HELP)
        place = _place(snapshots, name)
        if place in placed:
            raise UsageError(f"{name!r:.200} gives a weight to {snapshots[place].name} again")
        placed[place] = float(weight)
    used = {place: weight for place, weight in placed.items() if weight}
    if not used:
        raise UsageError("gives no snapshot a weight", remedy=_HELP)
    return used


def _place(snapshots: Sequence[Snapshot], name: str) -> int:
    """The place of the only snapshot that is called so, by the closest way of calling it."""
    ways = (
        [i for i, s in enumerate(snapshots) if name == s.name],
        [i for i, s in enumerate(snapshots) if name == str(s.checkpoint.path)],
        [i for i, s in enumerate(snapshots) if _ends(s.name, name)],
        [i for i, s in enumerate(snapshots) if _ends(str(s.checkpoint.path), name)],
        [i for i, s in enumerate(snapshots) if s.tag.step == _number(name)],
    )
    found = next((way for way in ways if way), [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"no snapshot is called {name!r:.200}", remedy="phema inspect -v lists them"
        )
    several = {(snapshots[i].series, snapshots[i].tag.label) for i in found}
    raise UsageError(
        f"{len(found)} snapshots are called {name!r:.200}",
        remedy="pass --raw, or --key with one of their series"
        if len(several) > 1
        else "give more of their paths",
    )


def _ends(path: str, name: str) -> bool:
    """Whether a path ends with a name, at a slash and with or without a slash behind it."""
    wanted = name.rstrip("/")
    return bool(wanted) and f"/{path}".endswith(f"/{wanted}")


def _number(text: str) -> float | None:
    """The number that a text is; None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _read(path: Path) -> dict[str, float]:
    """The weights in a file by the names of snapshots."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    if len(raw) > _MOST_BYTES:
        raise InputError(f"larger than {_MOST_BYTES >> 20} MiB", where=path, remedy=_HELP)
    try:
        text = raw.decode("utf-8-sig")
        return _of_json(text) if text.lstrip()[:1] == "{" else _of_lines(text)
    except PhemaError as error:
        raise InputError(error.what, where=path, remedy=error.remedy or _HELP) from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError("does not hold weights", where=path, remedy=_HELP) from error


def _of_lines(text: str) -> dict[str, float]:
    """Weights in lines of ``snapshot,weight``; a first line without a number names columns."""
    weights: dict[str, float] = {}
    rows = (row for row in csv.reader(text.splitlines(), skipinitialspace=True) if any(row))
    for number, row in enumerate(rows):
        if len(row) != 2:  # noqa: PLR2004 - a name and a weight
            raise InputError(f"{','.join(row)!r:.200} is not a line of snapshot,weight")
        name, weight = row[0].strip(), _number(row[1])
        if weight is None and number == 0:
            continue
        if weight is None:
            raise InputError(f"{row[1]!r:.80} is not a weight")
        _add(weights, name, weight)
    return weights


def _of_json(text: str) -> dict[str, float]:
    """Weights as ``phema weights --json`` prints them for one target, or by name."""
    content = json.loads(text)
    if "targets" not in content:
        entries = list(content.items())
    else:
        targets = content["targets"]
        if not isinstance(targets, list) or len(targets) != 1:
            raise InputError("holds the weights of several targets, or of none")
        try:
            entries = [(source["name"], source["weight"]) for source in targets[0]["sources"]]
        except (KeyError, TypeError) as error:
            raise InputError("does not hold weights") from error
    weights: dict[str, float] = {}
    for name, weight in entries:
        number = real(weight)
        if not isinstance(name, str) or number is None:
            raise InputError(f"{shown(weight)} is not a weight")
        _add(weights, name, number)
    return weights


def _add(weights: dict[str, float], name: str, weight: float) -> None:
    """Add a weight; an entry of 0 says nothing, so a name may have one of another series."""
    if weight == 0 and name in weights:
        return
    if weights.get(name):
        raise InputError(f"gives {name!r:.200} two weights")
    weights[name] = weight
