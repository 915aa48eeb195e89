"""From a series, its law and its time to a tagged snapshot."""

from __future__ import annotations

from collections.abc import Sequence

from phema_cli.errors import InputError, PhemaError, UsageError
from phema_cli.formats.base import Checkpoint
from phema_cli.profiles import Law
from phema_cli.request import Config
from phema_cli.snapshots.consistency import Finding, Snapshot
from phema_cli.snapshots.naming import give_names
from phema_cli.snapshots.reading import notice, read_checkpoint
from phema_cli.snapshots.resolve import LeftOutError, Member
from phema_cli.snapshots.tags import Tag
from phema_cli.snapshots.times import Time
from phema_cli.trainers.base import Clock, Series
from phema_cli.trainers.names import has_number


def make_snapshot(
    member: Member, time: Time | PhemaError, config: Config, *, counters: bool = False
) -> Snapshot:
    """The snapshot that a series is.

    Raises:
        PhemaError: what stands against it.
    """
    if isinstance(time, LeftOutError):
        raise time
    if member.error is not None:
        raise member.error
    if isinstance(time, PhemaError):
        raise time
    if member.law is None:
        raise AssertionError("a series without an error has a law")
    candidate, one, clock = member.item.candidate, member.series, time.clock
    _check_unit(member.law, clock, counted=counters and clock.weak)
    try:
        profile = member.law.profile(clock.value)
    except UsageError as error:
        raise InputError(error.what, remedy=error.remedy) from error
    _check_elements(one)
    contents = member.item.file.contents
    checkpoint = contents.checkpoint(one.tensors, one.place, unnamed=one.unnamed)
    if one.unnamed:
        checkpoint = give_names(checkpoint, _reference(member, config))
    tag = Tag(
        profile,
        clock.value,
        member.law.gamma,
        member.origin,
        time.origin,
        clock.unit,
        member.law.text,
        member.overrules,
    )
    trainers, partial = member.item.reading.trainers, _is_partial(member, checkpoint)
    return Snapshot(candidate.name, checkpoint, tag, trainers, one.key, partial)


def _check_unit(law: Law, clock: Clock, *, counted: bool) -> None:
    """Refuse a decay per step where time counts something else."""
    with_images = clock.unit == "images" and "batch" in dict(law.values)
    plain = clock.unit == "steps" and not counted
    if plain or with_images or law.name in {"power", "raw", "uniform"}:
        return
    if counted:
        raise InputError(
            f"its average, {law.text}, counts steps, and {clock.field} {clock.value:.10g} in its "
            "name counts epochs or files",
            remedy="pass --steps-per-epoch if epochs, or --pattern with a group step",
            option="--steps-per-epoch N",
        )
    epochs = clock.unit == "epochs"
    raise InputError(
        f"its average, {law.text}, counts steps, and its time {clock.unit}",
        remedy="pass --steps-per-epoch" if epochs else "pass --pattern with a group step",
        option="--steps-per-epoch N" if epochs else None,
    )


def _check_elements(series: Series) -> None:
    """Refuse weights that are cut up: tensors have no elements then, or one holds many."""
    for name, tensor in series.tensors.items():
        # What DeepSpeed and FSDP leave of it; a model of its own may have none of shape (0, 3).
        if tensor.dtype.kind == "float" and tensor.shape == (0,):
            raise InputError(
                f"tensor {name:.200} has no elements: the weights are cut up among other files",
                remedy="gather them with the tool of the trainer that wrote it",
            )
        if name.endswith("flat_param"):
            raise InputError(
                f"tensor {name:.200} is one of FSDP's flat parameters, of a part of the model each",
                remedy="save it with FSDP's StateDictType.FULL_STATE_DICT",
            )


def _is_partial(member: Member, checkpoint: Checkpoint) -> bool:
    """Whether an average lacks tensors of the raw weights beside it."""
    if member.series.role != "average":
        return False
    whole = [s.tensors for s in member.item.reading.series if s.role == "raw"]
    # Lists are of parameters, without what else a model holds.
    listed = member.series.part or member.series.unnamed
    return listed or any(not tensors.keys() <= checkpoint.tensors.keys() for tensors in whole)


def _reference(member: Member, config: Config) -> Checkpoint | None:
    """The state dict that names a list: the user's, else the raw weights in the same file."""
    if config.names_from is not None:
        return read_checkpoint(config.names_from)
    raw = next((s for s in member.item.reading.series if s.role == "raw"), None)
    if raw is None or raw.unnamed:
        return None
    return member.item.file.contents.checkpoint(raw.tensors)


def without_doubles(
    snapshots: Sequence[Snapshot], members: Sequence[Member]
) -> tuple[list[Snapshot], list[Finding]]:
    """Leave out files without a number that hold what a numbered one holds, as ``last`` does."""
    numbered = {m.item.candidate.name: has_number(m.item.file.name) for m in members}
    taken = {(s.series, s.tag.label, s.tag.step): s.name for s in snapshots if numbered[s.name]}
    kept: list[Snapshot] = []
    findings: list[Finding] = []
    for snapshot in snapshots:
        other = taken.get((snapshot.series, snapshot.tag.label, snapshot.tag.step))
        if numbered[snapshot.name] or other is None:
            kept.append(snapshot)
        else:
            findings.append(notice(f"left out: of the same time as {other}", snapshot.name))
    return kept, findings
