"""The tag of a snapshot: what it is an average of, and when it was stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from phema_cli.profiles import Profile
from phema_cli.trainers.base import Unit

Origin = Literal["command line", "phema.toml", "content", "name"]

#: entries of a checkpoint's metadata that say its average, and its step.
METADATA_FIELDS = ("gamma", "sigma_rel", "step", "global_step", "optimization_step")


@dataclass(frozen=True, slots=True)
class Tag:
    """What is known of a snapshot's averaging.

    Attributes:
        profile: how each moment of training weighs in it. Its end is the time, which differs from
            ``step`` where the trainer counts otherwise.
        step: training time as the trainer counts it, in any unit proportional to updates.
        gamma: exponent of the power function as the trainer was told; None for other averages.
        profile_origin: where gamma, or what else the average is, was read.
        step_origin: where the step was read.
        unit: what the trainer counts.
        law: how the average weighs the steps, in the words of ``--average``.
        overrules: what the file says instead, where the user says otherwise.
    """

    profile: Profile
    step: float
    gamma: float | None
    profile_origin: Origin
    step_origin: Origin
    unit: Unit = "steps"
    law: str = ""
    overrules: str | None = None

    @property
    def label(self) -> str:
        """What the average is called: ``gamma 5``, ``exponential:beta=0.999``, ``raw``."""
        if self.gamma is not None:
            return f"gamma {self.gamma:.10g}"
        return self.law or self.profile.label


def snapshot_name(prefix: str, step: float, gamma: float) -> str:
    """``<prefix>-step0001000-gamma5``, the name without ending of what phema writes."""
    sign = "=" if gamma < 0 else ""
    return f"{step_name(prefix, step)}-gamma{sign}{gamma:.6g}"


def step_name(prefix: str, step: float) -> str:
    """``<prefix>-step0001000``, what the names of all that phema writes begin with."""
    when = f"{int(step):07d}" if float(step).is_integer() else f"{step:.10g}"
    return f"{prefix}-step{when}"
