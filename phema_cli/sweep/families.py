"""Families of averages that differ by one length, in which a sweep searches for the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phema_cli.errors import UsageError
from phema_cli.profiles import SIGMA_REL_LIMIT
from phema_cli.request import GRID
from phema_cli.solver.search import Limits
from phema_cli.sweep.request import CHECKPOINTS

SIGMA_REL = "sigma_rel"
#: what ``--search`` takes, beside ``decay:last,shape=...``.
SEARCHED = (SIGMA_REL, "uniform:last", "decay:last", "exponential:halflife", CHECKPOINTS)
#: lengths that are looked at to see what the snapshots allow, as parts of the run: of windows and
#: of half-lives. Windows of all of it, and half-lives above a third, reach back to the beginning.
_WINDOWS, _HALFLIVES, _LOOKED_AT = (0.002, 1.0), (0.002, 0.35), 41
#: sigma_rel beyond ``GRID`` that is looked at too.
_SHORT, _LONG = (0.004, 0.005, 0.006, 0.008), 0.2885
#: standard deviation of a window over its length.
_WINDOW = 1 / math.sqrt(12)


@dataclass(frozen=True, slots=True)
class Family:
    """Averages that differ by one length.

    Attributes:
        name: ``sigma_rel``, or what a profile says before its length: ``uniform:last``, with what
            else it says behind a comma: ``decay:last,shape=sqrt``.
        end: time of the targets, in steps.
        steps: whether windows are counted in steps, instead of as parts of the run.
    """

    name: str
    end: float
    steps: bool = False

    @property
    def kind(self) -> str:
        """What comes before the colon."""
        return self.name.partition(":")[0]

    @property
    def label(self) -> str:
        """What axes and tables call the length, with its unit."""
        if self.name == SIGMA_REL:
            return "\N{GREEK SMALL LETTER SIGMA}_rel"
        if self.name == CHECKPOINTS:
            return "last checkpoints"
        if self.kind == "exponential":
            return "half-life, steps"
        shape = self.name.partition("=")[2]
        window = f"window of {shape} decay" if shape else "window"
        return f"{window}, {'steps' if self.steps else 'part of the run'}"

    def text(self, scale: float) -> str:
        """The profile of that length, as ``--profile`` takes it."""
        key, _, more = self.name.partition(",")
        number = f"{scale:.0f}" if self.name == CHECKPOINTS else f"{scale:.6g}"
        unit = "steps" if self.steps else ""
        return f"{key}={number}{unit}{',' if more else ''}{more}"

    def said(self, scale: float) -> str:
        """A length in a sentence: ``sigma_rel 0.05``, ``uniform:last=0.2``."""
        return f"sigma_rel {scale:.4g}" if self.name == SIGMA_REL else self.text(scale)

    def width(self, scale: float, checkpoints: int = 1) -> float:
        """The sigma_rel of a power function that reaches back about as far."""
        if self.name == SIGMA_REL:
            return scale
        if self.kind == "exponential":
            return scale / math.log(2) / self.end
        if self.name == CHECKPOINTS:
            return _WINDOW * scale / checkpoints
        return _WINDOW * (scale / self.end if self.steps else scale)

    def looked_at(self, checkpoints: int) -> tuple[float, ...]:
        """Lengths to ask the snapshots for, ascending."""
        if self.name == SIGMA_REL:
            return (*_SHORT, *GRID, _LONG)
        if self.name == CHECKPOINTS:
            return tuple(float(i) for i in range(1, checkpoints + 1))
        part = _HALFLIVES if self.kind == "exponential" else _WINDOWS
        low, high = (end * (self.end if self._counts_steps else 1.0) for end in part)
        scales = [float(f"{s:.4g}") for s in np.geomspace(low, high, _LOOKED_AT)]
        return tuple(s for s in scales if s >= 1 or not self._counts_steps)

    @property
    def _counts_steps(self) -> bool:
        return self.steps or self.kind == "exponential"

    def limits(self, scales: Sequence[float]) -> Limits:
        """Limits of a search that may use these lengths."""
        high = max(scales)
        if self.name == SIGMA_REL:
            high = min(high, SIGMA_REL_LIMIT * 0.9999)
        return Limits(min(scales), high, whole=self.name == CHECKPOINTS)


def parse(text: str, end: float) -> tuple[Family, float] | None:
    """The family and the length of a profile as ``--profile`` writes it; None of one without."""
    kind, _, rest = text.partition(":")
    pairs = (part.partition("=") for part in rest.split(",") if "=" in part)
    parts = {key.strip(): value.strip() for key, _, value in pairs}
    try:
        if kind == "checkpoints" and set(parts) == {"last"}:
            return Family(CHECKPOINTS, end), float(parts["last"])
        if kind == "exponential" and len(parts) == 1:
            family = Family("exponential:halflife", end)
            if "beta" in parts:
                return family, math.log(2) / -math.log(float(parts["beta"]))
            return family, float(parts["halflife"])
        if kind in {"uniform", "cooldown", "decay"} and "last" in parts:
            return _window(kind, parts, end)
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    return None


def _window(kind: str, parts: dict[str, str], end: float) -> tuple[Family, float]:
    """The family of a window, by steps where it is given in steps, and its length."""
    last = parts["last"]
    length = float(last.removesuffix("steps"))
    steps = last.endswith("steps") or length > 1
    # A linear decay is a uniform window, whatever it is called.
    shape = parts.get("shape", "linear")
    name = "uniform:last" if kind != "decay" else "decay:last"
    name = name if shape == "linear" else f"{name},shape={shape}"
    return Family(name, end, steps), length


def in_unit_of(family: Family, other: Family, scale: float) -> float:
    """A length of ``other``, a family of the same name, as ``family`` counts it."""
    if family.steps == other.steps:
        return scale
    return scale * family.end if family.steps else scale / family.end


def find(text: str, end: float) -> Family:
    """The family that ``--search`` names.

    Raises:
        UsageError: there is none of that name.
    """
    name = text.replace(" ", "").removesuffix("=")
    if name == SIGMA_REL:
        return Family(name, end)
    key, comma, more = name.partition(",")
    found = parse(f"{key}=1{comma}{more}", end) if key in SEARCHED else None
    if found is None or found[0].name != name.removesuffix(",shape=linear"):
        raise UsageError(
            f"--search {text!r} is no family of one length",
            remedy=f"one of {', '.join(SEARCHED)}, decay:last,shape=sqrt",
        )
    return found[0]
