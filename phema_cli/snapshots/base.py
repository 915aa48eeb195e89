"""The types of this package: a snapshot, its tag, and findings about snapshots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phema_cli.errors import InputError, PhemaError
from phema_cli.formats.base import Checkpoint, Extent
from phema_cli.formats.entries import layout_of
from phema_cli.profiles import Profile
from phema_cli.trainers.base import Unit

#: where a part of a tag was read: the user's options or phema.toml, the file, its name; of a time
#: that nothing says, the order of the files.
Origin = Literal["command line", "phema.toml", "content", "name", "order"]

#: what has to be known of snapshots: times and laws of averages; times; or names alone.
Needs = Literal["laws", "times", "names"]
#: the law of a snapshot that nothing says one of, where none is needed.
UNKNOWN = "unknown"

#: the entry of packed averages that lack tensors which the raw weights beside them have.
PART_FIELD = "phema_part"
#: entries of a checkpoint's metadata that give its average, and its step.
METADATA_FIELDS = ("gamma", "sigma_rel", "step", "global_step", "optimization_step")


@dataclass(frozen=True, slots=True)
class Tag:
    """What a snapshot is an average of, and when it was stored.

    Attributes:
        profile: how each moment of training weighs in it. Its end is the time, which differs from
            ``step`` if the trainer counts otherwise.
        step: training time as the trainer counts it, in any unit proportional to updates.
        gamma: exponent of the power function, as set in the trainer; None for other averages.
        profile_origin: where gamma, or the law of another average, was read.
        step_origin: where the step was read.
        unit: what the trainer counts.
        law: how the average weighs the steps, in the words of ``--average``.
        overrules: the law in the file, if the user gives another one.
    """

    profile: Profile
    step: float
    gamma: float | None
    profile_origin: Origin
    step_origin: Origin
    unit: Unit = "steps"
    law: str = ""
    overrules: str | None = None

    def __repr__(self) -> str:
        """``<Tag gamma 5 at step 500>``."""
        return f"<Tag {self.label} at step {self.step:.10g}>"

    @property
    def label(self) -> str:
        """The name of the average: ``gamma 5``, ``exponential:beta=0.999``, ``raw``."""
        if self.gamma is not None:
            return f"gamma {self.gamma:.10g}"
        return self.law or self.profile.label


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stored average, or raw weights: a checkpoint and its tag.

    Attributes:
        name: path relative to the directory that was scanned, with ``/``.
        checkpoint: extents of its tensors.
        tag: average and step.
        trainers: names of the trainers whose file it is in.
        series: what ``--key`` calls it.
        index: its number among the averages, if names count these.
        partial: whether it averages a part of the model, beside the whole raw model.
        folder: the directory that it is, by the name of the file in it; None of other files.
        root: the directory that its name is relative to, as the user gave it.
    """

    name: str
    checkpoint: Checkpoint
    tag: Tag
    trainers: tuple[str, ...] = ()
    series: str = "."
    index: int | None = None
    partial: bool = False
    folder: Path | None = None
    root: Path = Path()

    def __repr__(self) -> str:
        """``<Snapshot ema-step0000500-gamma5.safetensors: gamma 5 at step 500>``."""
        return f"<Snapshot {self.name}: {self.tag.label} at step {self.tag.step:.10g}>"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the user should know about the inputs.

    Attributes:
        level: ``error`` stops a synthesis, ``warning`` may harm it, ``notice`` is for information.
        error: what, where and the remedy.
        unused: the option that has nothing to do here, by its field of ``Config``.
    """

    level: Literal["error", "warning", "notice"]
    error: PhemaError
    unused: str = ""

    def __repr__(self) -> str:
        """``<Finding error: what is wrong>``, as a command prints it."""
        return f"<Finding {self.level}: {self.error}>"


@dataclass(frozen=True, slots=True)
class Untagged:
    """A snapshot that lacks only its law.

    Attributes:
        snapshot: with the tag of raw weights.
        error: the finding that its law is not known.
    """

    snapshot: Snapshot
    error: Finding


class LeftOutError(InputError):
    """The reason why a file or a series is not used, which is not a fault."""


class UnknownSpacingError(InputError):
    """Nothing says how many steps lie between two updates of an average."""


def notice(what: str, where: str | None = None, remedy: str | None = None) -> Finding:
    """A finding for information."""
    return Finding("notice", InputError(what, where=where, remedy=remedy))


def warning(what: str, where: str | None = None, remedy: str | None = None) -> Finding:
    """A finding about what may harm a synthesis."""
    return Finding("warning", InputError(what, where=where, remedy=remedy))


def left_out(why: str, where: str | None = None) -> Finding:
    """The notice that a file, or a series in it, is not used."""
    return Finding("notice", LeftOutError(f"left out: {why}", where=where))


def unused(option: str, why: str) -> Finding:
    """The notice that an option, by its field of ``Config``, has nothing to do here."""
    what = f"--{option.replace('_', '-')} is not used: {why}"
    return Finding("notice", InputError(what), unused=option)


def finding_of(error: PhemaError, where: str) -> Finding:
    """An error of one file as a finding: a notice if the file is left out."""
    if isinstance(error, LeftOutError):
        return left_out(error.what, where)
    return Finding("error", error.at(where))


def reference(snapshots: Sequence[Snapshot]) -> Snapshot:
    """The newest snapshot of the whole model, else the newest: outputs have its tensors and types.

    Args:
        snapshots: oldest first.
    """
    return next((s for s in reversed(snapshots) if not s.partial), snapshots[-1])


def distinct(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """The first of all that have the same tensors: what headers say of it they say of the rest."""
    first: dict[object, Snapshot] = {}
    for snapshot in snapshots:
        first.setdefault(layout_of(snapshot.checkpoint.tensors), snapshot)
    return list(first.values())


def is_float(extent: Extent) -> bool:
    """Whether a tensor can be averaged; a layer's ``_extra_state`` is never a number."""
    return extent.dtype.kind == "float" and not extent.name.endswith("_extra_state")


def snapshot_name(prefix: str, step: float, gamma: float) -> str:
    """``<prefix>-step0001000-gamma5``: the name, without ending, of a snapshot."""
    sign = "=" if gamma < 0 else ""
    return f"{step_name(prefix, step)}-gamma{sign}{gamma:.6g}"


def step_name(prefix: str, step: float) -> str:
    """``<prefix>-step0001000``: how the names of all files that phema writes begin."""
    when = f"{int(step):07d}" if float(step).is_integer() else f"{step:.10g}"
    return f"{prefix}-step{when}"
