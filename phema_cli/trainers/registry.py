"""The trainers that phema knows, a line each, and what all of them together say of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import cast

from phema_cli.formats.objects import refuse_beside, refuse_hidden
from phema_cli.profiles import Law, LawForm
from phema_cli.profiles import parse_law as parse
from phema_cli.trainers import generic
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, Tensors, Trainer
from phema_cli.trainers.nested import by_path, is_state_key

#: modules of this package: each is asked about every file, in this order. Of several that read one
#: dict the first counts.
_MODULES = (
    "phema",
    "tutorial",
    "edm",
    "deepspeed",
    "megatron",
    "torchtitan",
    "imagen",
    "ema_pytorch",
    "lit_ema",
    "torch_ema",
    "swa_utils",
    "simple_tuner",
    "diffusers",
    "timm",
    "k_diffusion",
    "cosmos",
    "composer",
    "mmengine",
    "mmcv",
    "fairseq",
    "var",
    "epochs",
    "dit",
    "guided_diffusion",
    "onetrainer",
    "kohya",
    "language_models",
    "lerobot",
    "nemo",
    "lightning",
    "stable_audio",
    "f5_tts",
    "denoising_diffusion",
    "hugging_face",
)
TRAINERS: tuple[Trainer, ...] = tuple(
    cast("Trainer", import_module(f"phema_cli.trainers.{name}")) for name in _MODULES
)

#: the decay laws that trainers have, by the name that ``--average`` takes.
LAWS: Mapping[str, LawForm] = {
    name: form for trainer in TRAINERS for name, form in getattr(trainer, "LAWS", {}).items()
}


def parse_law(text: str) -> Law:
    """The law that ``--average`` names, a trainer's own among them; raises ``UsageError``."""
    return parse(text, LAWS)


@dataclass(frozen=True, slots=True)
class FileReading:
    """What is known of a file.

    Attributes:
        trainers: names of those whose it is.
        series: the weights in it, an average under the names of the raw weights beside it.
        clock: when it was stored; None if nothing says so.
        epoch: the epoch that it says beside its steps.
        named: the time by its own name, where ``clock`` comes from its content.
        left_out: why it holds no weights.
        notes: what the user should know.
    """

    trainers: tuple[str, ...]
    series: tuple[Series, ...]
    clock: Clock | None
    epoch: Clock | None = None
    named: Clock | None = None
    left_out: str | None = None
    notes: tuple[str, ...] = ()


def read_file(file: StoredFile, *, keyed: bool = False) -> FileReading:
    """What all trainers together say of a file.

    Args:
        file: what was found.
        keyed: whether the user says which dict or prefix counts, so that none is looked for.

    Raises:
        InputError: one of them refuses it, or several networks could be meant.
    """
    content, path = file.contents.content, file.contents.path
    if not keyed:
        refuse_hidden(content, path, is_state_key)
    readings = [(t.NAME, r) for t in TRAINERS if (r := t.read(file)) is not None]
    names = tuple(name for name, _ in readings)
    left_out = next((r.left_out for _, r in readings if r.left_out is not None), None)
    if left_out is None and file.state_only:
        left_out = "a trainer's own state"
    if left_out is not None:
        return FileReading(names, (), None, left_out=left_out)
    series = _first_readers([r for _, r in readings])
    if not keyed:
        passed = {key for _, r in readings for key in r.passed}
        series += generic.series_of(file, series, passed)
    for one in series:
        refuse_beside(by_path(content, one.within), path, is_state_key)
    series = _raw_beside(series)
    series = [generic.labelled(file, s) for s in series]
    hint = next((r.hint for _, r in readings if r.hint is not None), None)
    if hint is not None:
        series = [replace(s, hint=hint) if s.role == "average" else s for s in series]
    clock, epoch, named = _clocks(file, [r for _, r in readings])
    notes = tuple(note for _, r in readings for note in r.notes)
    return FileReading(names, tuple(_aligned(series)), clock, epoch, named, notes=notes)


def _first_readers(readings: list[Reading]) -> list[Series]:
    """The series of the first trainer that reads a dict."""
    series: list[Series] = []
    for reading in readings:
        taken = {s.within for s in series}
        series += [s for s in reading.series if s.within not in taken and s.tensors]
    return series


def _raw_beside(series: list[Series]) -> list[Series]:
    """The series, where weights that nothing is known of are raw if an average lies beside."""
    averages = [s for s in series if s.role == "average" and not s.unnamed]
    return [
        replace(s, role="raw")
        if s.role == "unknown" and any(generic.align(a.tensors, s.tensors) for a in averages)
        else s
        for s in series
    ]


def _aligned(series: list[Series]) -> list[Series]:
    """The series with each average under the names of the raw weights that lie beside it."""
    raw = next((s for s in series if s.role == "raw" and not s.unnamed), None)
    if raw is None:
        return series
    return [_renamed(one, raw.tensors) for one in series]


def _renamed(one: Series, raw: Tensors) -> Series:
    """An average under the names of the raw weights, where they fit."""
    known = None
    if one.role == "average" and not one.unnamed:
        known = generic.align(one.tensors, raw)
    if known is None:
        return one
    return replace(one, tensors={known[n]: t for n, t in one.tensors.items() if n in known})


def _clocks(
    file: StoredFile, readings: list[Reading]
) -> tuple[Clock | None, Clock | None, Clock | None]:
    """When a file was stored, the epoch that it says, and its name's time for comparison.

    Content comes before names, and steps before epochs.
    """
    told = [r.clock for r in readings if r.clock is not None]
    step, epoch = generic.clock_of(file)
    named = generic.named_clock(file)
    strong = next((c for c in told if not c.weak and c.unit != "epochs"), None)
    epoch = next((c for c in told if c.unit == "epochs"), epoch) or generic.named_epoch(file)
    if step is not None and not step.value and epoch is not None and epoch.value:
        # It begins anew in every epoch.
        step = None
    own = named if named is not None and named.evidence == "name" else None
    if strong is not None or step is not None:
        return strong or step, epoch, own
    if named is not None and named.unit != "epochs" and not _counts_epochs(named, epoch):
        return named, epoch, None
    weak = next((c for c in told if c.weak), None)
    return epoch or named or weak, epoch, None


def _counts_epochs(named: Clock, epoch: Clock | None) -> bool:
    """Whether the number behind a word that may count anything is the file's own epoch."""
    if not named.weak or epoch is None:
        return False
    return abs(named.value - epoch.value) <= 1
