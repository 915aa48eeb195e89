"""The tag of a candidate: from what the user says, its metadata, its configuration, its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from phema_cli.formats.base import Checkpoint
from phema_cli.profiles import PowerProfile, Profile, parse_profile
from phema_cli.snapshots.averages import average_in, described
from phema_cli.snapshots.config import Config
from phema_cli.snapshots.files import Candidate
from phema_cli.snapshots.layouts import Layout, sparse_profile
from phema_cli.snapshots.tags import (
    AVERAGE_FIELDS,
    STEP_FIELDS,
    Reading,
    Readings,
    Tag,
    match_pattern,
    read_name,
)


def read_tag(
    candidate: Candidate,
    checkpoint: Checkpoint,
    layout: Layout | None,
    said: Config,
    local: Config,
) -> Tag | str:
    """The tag of a candidate, or why the file is left out.

    Args:
        candidate: the file.
        checkpoint: what it holds.
        layout: the trainer's that it was recognised as.
        said: the command line.
        local: the directory's phema.toml.

    Raises:
        InputError: the average or the step is said nowhere, or twice and differently.
    """
    readings = Readings()
    config = said.over(local)
    row = local.snapshots.get(candidate.relative.as_posix()) or local.snapshots.get(candidate.name)
    if row:
        readings.add(row, "phema.toml")
    pattern_of = said if said.pattern else local
    gammas_of = said if said.gammas else local
    per_epoch = config.steps_per_epoch
    if pattern_of.pattern:
        fields = match_pattern(pattern_of.pattern, candidate.relative)
        if fields is None and row is None:
            return "it does not match --pattern"
        readings.add(fields or {}, pattern_of.origin, gammas_of.gammas, per_epoch)
    step_was_said = bool(readings.step)
    names = _names([*candidate.folders], candidate.stem, layout)
    wanted = _open(readings)
    metadata = described(checkpoint)
    stored = _stored(metadata)
    readings.add({k: v for k, v in stored.items() if k in wanted}, "metadata", (), per_epoch)
    if "average" in wanted and (found := average_in(metadata, checkpoint.key)) is not None:
        readings.average.append((found, "metadata"))
    _add(readings, names, wanted, gammas_of, per_epoch)
    # Steps say more than epochs: these count where nothing else does.
    if not readings.step and "epoch" in metadata:
        readings.add({"epoch": metadata["epoch"]}, "metadata", (), per_epoch)
    if not readings.averaged and len(gammas_of.gammas) == 1:
        readings.gamma.append(Reading(gammas_of.gammas[0], 0.0, gammas_of.origin))
    if not readings.averaged and config.average is not None:
        average_of = said if said.average else local
        readings.average.append((parse_profile(config.average), average_of.origin))
    _add(readings, read_name([candidate.root]), _open(readings), gammas_of, per_epoch)
    tag = readings.tag(_clock(layout, config.update_every, step_was_said))
    return "step 0 holds no average yet" if tag is None else tag


def _clock(
    layout: Layout | None, every: int | None, step_was_said: bool
) -> Callable[[float, float], Profile]:
    """The profile of a gamma and a step; a step that the user says is the time itself."""
    sparse = layout is not None and layout.sparse and not step_was_said
    return partial(sparse_profile, every=every or 1) if sparse or every else PowerProfile


def _stored(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tag's entries of the metadata; of several steps the most exact."""
    found = {k: metadata[k] for k in AVERAGE_FIELDS if k in metadata}
    step = next((k for k in STEP_FIELDS if k in metadata), None)
    return found if step is None else found | {step: metadata[step]}


def _names(folders: Iterable[str], stem: str, layout: Layout | None) -> dict[str, list[str]]:
    """Fields in the names of the file and its directories."""
    if layout is None:
        return read_name([stem, *folders])
    found = read_name(folders)
    for field, text in layout.fields(stem).items():
        found.setdefault(field, []).insert(0, text)
    return found


_AVERAGES = {*AVERAGE_FIELDS, "beta", "average", "index"}
_STEPS = {*STEP_FIELDS, "update", "kimg", "epoch"}


def _open(readings: Readings) -> set[str]:
    """Fields that still have to be read; what was said explicitly needs no other reading."""
    fields = set() if readings.averaged else _AVERAGES
    return fields if readings.step else fields | _STEPS


def _add(
    readings: Readings,
    found: Mapping[str, list[str]],
    wanted: set[str],
    gammas_of: Config,
    per_epoch: float | None,
) -> None:
    """Add what names say, value by value."""
    for field, texts in found.items():
        for text in texts if field in wanted else ():
            origin = gammas_of.origin if field == "index" else "name"
            readings.add({field: text}, origin, gammas_of.gammas, per_epoch)
