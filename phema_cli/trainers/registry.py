"""The trainers that phema knows, one line each, and what all of them together know of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from phema_cli.formats.objects import refuse_beside
from phema_cli.profiles import Law, LawForm
from phema_cli.profiles import parse_law as parse
from phema_cli.trainers import generic
from phema_cli.trainers.base import Clock, Series, StoredFile, Trainer
from phema_cli.trainers.clocks import clocks_of
from phema_cli.trainers.nested import by_path, is_state_key

#: modules of this package, in the order in which they are asked about a file.
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
    "yolo",
    "icefall",
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
    law.name: law for trainer in TRAINERS if (law := getattr(trainer, "LAW", None)) is not None
}


def parse_law(text: str) -> Law:
    """The law in the words of ``--average``, of phema or of a trainer; raises ``UsageError``."""
    return parse(text, LAWS)


@dataclass(frozen=True, slots=True)
class FileReading:
    """What all trainers' modules together know of a file.

    Attributes:
        trainers: names of those whose file it is.
        series: the weights in it, an average under the names of the raw weights beside it.
        clock: when it was stored; None if nothing says so.
        epoch: the epoch that it gives beside its steps.
        named: the time by its own name, if ``clock`` comes from its content.
        left_out: why it is not used.
        notes: notices for the user.
    """

    trainers: tuple[str, ...]
    series: tuple[Series, ...] = ()
    clock: Clock | None = None
    epoch: Clock | None = None
    named: Clock | None = None
    left_out: str | None = None
    notes: tuple[str, ...] = ()


def read_file(file: StoredFile, *, keyed: bool = False) -> FileReading:
    """Ask each trainer's module what a file is, and put their answers together.

    Args:
        file: the file.
        keyed: whether the user names the dict or the prefix that counts, so that none is searched.

    Raises:
        InputError: a module refuses the file, or several networks could be meant.
        UnsafePickleError: weights have tensors beside them that an unknown object hides.
    """
    entries = file.top.keys()
    asked = (t for t in TRAINERS if getattr(t, "KEYS", set()) <= entries)
    answers = [(t.NAME, r) for t in asked if (r := t.read(file)) is not None]
    trainers, readings = tuple(name for name, _ in answers), [r for _, r in answers]
    left_out = next((r.left_out for r in readings if r.left_out is not None), None)
    if left_out is None and file.everything and not (file.dicts or file.lists):
        left_out = "a trainer's own state"
    if left_out is not None:
        return FileReading(trainers, left_out=left_out)
    series: list[Series] = []
    for reading in readings:
        # Of several modules that read one dict the first counts.
        read = {s.within for s in series}
        series += [s for s in reading.series if s.within not in read and s.tensors]
    if not keyed:
        series += generic.series_of(file, series, {key for r in readings for key in r.ignored})
    content, path = file.contents.content, file.contents.path
    for one in series:
        refuse_beside(by_path(content, one.within), path, is_state_key)
    hint = next((r.hint for r in readings if r.hint is not None), None)
    clock, epoch, named = clocks_of(file, [r.clock for r in readings if r.clock is not None])
    return FileReading(
        trainers,
        generic.completed(file, series, hint),
        clock,
        epoch,
        named,
        notes=tuple(note for r in readings for note in r.notes),
    )
