"""``--weights``: a combination of snapshots as somebody gives it, read and matched by name."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.profiles import CombinationProfile
from phema_cli.profiles.grammar import number_of
from phema_cli.snapshots import Snapshot
from phema_cli.system.files import read_small
from phema_cli.trainers.base import real, shown

#: a line each for a hundred thousand snapshots.
_MOST_BYTES = 16 << 20
_HELP = "write lines of snapshot,weight, or keep what phema weights --json prints for one target"


#: a way of calling a snapshot, and what it is called that way.
_Call = tuple[Literal["name", "path", "end", "step"], str | Path | float | None]
#: weights by snapshot, or a file of them.
Given = str | os.PathLike[str] | Mapping[str, float]


def combination(snapshots: Sequence[Snapshot], given: Given) -> CombinationProfile:
    """The sum of snapshots with these weights, of any sign and sum.

    Args:
        snapshots: oldest first.
        given: weights by snapshot, or a file of them. A snapshot is called by its name, its path,
            the end of either, or its step: what comes first in this list and fits one counts.
            Where a file holds several, the average stands behind its name: ``last.pt raw``.

    Raises:
        InputError: the file holds no weights, or names no snapshot, or one twice.
        UsageError: as InputError, for weights from Python.
        StorageError: the file can't be read.
    """
    if isinstance(given, Mapping):
        label, placed = "weights", _placed(snapshots, _checked(given))
    else:
        path = Path(given)
        label = f"weights:{path.stem}"
        try:
            placed = _placed(snapshots, _read(path))
        except UsageError as error:
            raise InputError(error.what, where=path, remedy=error.remedy) from error
    return combined(snapshots, placed, label, "weights")


def combined(
    snapshots: Sequence[Snapshot],
    weights: Mapping[int, float],
    label: str,
    kind: Literal["mean", "weights"],
) -> CombinationProfile:
    """The target of weights by the places of their snapshots; its step is the last of theirs."""
    places = tuple(sorted(weights))
    tags = [snapshots[i].tag for i in places]
    return CombinationProfile(
        label,
        kind,
        places,
        tuple(weights[i] for i in places),
        tuple(tag.profile for tag in tags),
        max((tag.step for tag in tags if tag.step_origin != "order"), default=None),
    )


def _checked(given: Mapping[str, float]) -> dict[str, float]:
    """Weights from Python, by what snapshots are called there: texts, paths or steps."""
    weights: dict[str, float] = {}
    for name, weight in given.items():
        number = real(weight)
        if number is None:
            raise UsageError(f"{shown(weight)} is not a weight", remedy="pass numbers")
        _add(weights, os.fspath(name) if isinstance(name, os.PathLike) else str(name), number)
    return weights


def _placed(snapshots: Sequence[Snapshot], weights: Mapping[str, float]) -> dict[int, float]:
    """Weights by the place of their snapshot; those that are 0 are left out."""
    placed: dict[int, float] = {}
    called = _by_name(snapshots)
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise UsageError(f"the weight of {name!r:.200} is not finite", remedy=_HELP)
        if weight == 0:
            continue
        place = _place(name, called, snapshots)
        if place in placed:
            raise UsageError(f"{name!r:.200} gives a weight to {snapshots[place].name} again")
        placed[place] = weight
    if not placed:
        raise UsageError("gives no snapshot a weight", remedy=_HELP)
    return placed


def _by_name(snapshots: Sequence[Snapshot]) -> dict[_Call, list[int]]:
    """The places of the snapshots by each way of calling them, so that none is searched for."""
    found: dict[_Call, list[int]] = {}
    for i, snapshot in enumerate(snapshots):
        path = str(snapshot.checkpoint.path)
        ends = _ends(snapshot.name) | _ends(path)
        calls: list[_Call] = [("name", snapshot.name), ("name", _with_average(snapshot))]
        calls += [("path", Path(path).absolute()), *(("end", end) for end in ends)]
        made_here = PROVENANCE_KEY in snapshot.checkpoint.metadata
        if snapshot.tag.step_origin != "order" and not made_here:
            # It says when the snapshot was stored: it is not made up, nor that of an output.
            calls.append(("step", snapshot.tag.step))
        for call in calls:
            found.setdefault(call, []).append(i)
    return found


def _place(name: str, called: Mapping[_Call, list[int]], snapshots: Sequence[Snapshot]) -> int:
    """The place of the only snapshot that is called so, by the closest way of calling it."""
    calls: list[_Call] = [("name", name), ("path", Path(name).absolute())]
    calls += [("end", name.rstrip("/")), ("step", number_of(name))]
    found = next((called[call] for call in calls if call in called), [])
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"no snapshot is called {name!r:.200}", remedy="phema inspect -v lists them"
        )
    several = len({(snapshots[i].series, snapshots[i].tag.label) for i in found}) > 1
    raise UsageError(
        f"{len(found)} snapshots are called {name!r:.200}",
        remedy=f"write {_with_average(snapshots[found[0]])!r:.200}, or pass --raw or --key"
        if several
        else "give more of their paths",
    )


def _with_average(snapshot: Snapshot) -> str:
    """The only way to call one of several averages in a file."""
    return f"{snapshot.name} {snapshot.tag.label}"


def _ends(path: str) -> set[str]:
    """A path, and what stands behind each slash in it."""
    return {path} | {path[at + 1 :] for at, c in enumerate(path) if c == "/"}


def _read(path: Path) -> dict[str, float]:
    """The weights in a file by the names of snapshots."""
    raw = read_small(path, _MOST_BYTES, _HELP)
    try:
        text = raw.decode("utf-8-sig")
        return _of_json(text) if text.lstrip()[:1] == "{" else _of_lines(text)
    except PhemaError as error:
        raise InputError(error.what, where=path, remedy=error.remedy or _HELP) from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError("does not hold weights", where=path, remedy=_HELP) from error


def _of_lines(text: str) -> dict[str, float]:
    """Weights in lines of ``snapshot,weight``; these words may be the first line."""
    weights: dict[str, float] = {}
    rows = (row for row in csv.reader(text.splitlines(), skipinitialspace=True) if any(row))
    for number, row in enumerate(rows):
        if len(row) != 2:  # noqa: PLR2004 - a name and a weight
            raise InputError(f"{','.join(row)!r:.200} is not a line of snapshot,weight")
        name, weight = row[0].strip(), number_of(row[1])
        if number == 0 and row[1].strip().lower() == "weight":
            continue
        if weight is None:
            raise InputError(f"{row[1]!r:.80} is not a weight")
        _add(weights, name, weight)
    return weights


def _of_json(text: str) -> dict[str, float]:
    """Weights as ``phema weights --json`` prints them for one target, or by name."""
    content = json.loads(text)
    if "targets" not in content:
        # As pairs, since a name may stand there twice.
        entries = json.loads(text, object_pairs_hook=list)
    else:
        targets = content["targets"]
        if not isinstance(targets, list) or len(targets) != 1:
            raise InputError("holds the weights of several targets, or of none")
        try:
            entries = _of_sources(targets[0]["sources"])
        except (KeyError, TypeError) as error:
            raise InputError("does not hold weights") from error
    weights: dict[str, float] = {}
    for name, weight in entries:
        number = real(weight)
        if not isinstance(name, str) or number is None:
            raise InputError(f"{shown(weight)} is not a weight")
        _add(weights, name, number)
    return weights


def _of_sources(sources: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Names and weights of a target's sources; averages of one file are told apart by theirs."""
    often = Counter(source["name"] for source in sources)
    return [
        (f"{s['name']} {s['average']}" if often[s["name"]] > 1 else s["name"], s["weight"])
        for s in sources
    ]


def _add(weights: dict[str, float], name: str, weight: float) -> None:
    """Add a weight; an entry of 0 says nothing, so a name may have one of another series."""
    if weight == 0 and name in weights:
        return
    if weights.get(name):
        raise UsageError(f"gives {name!r:.200} two weights")
    weights[name] = weight
