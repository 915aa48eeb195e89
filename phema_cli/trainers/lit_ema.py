"""LitEma of latent-diffusion: an average among the raw weights, its names without their dots."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from phema_cli.errors import InputError
from phema_cli.trainers.base import Reading, Series, StoredFile, Tensors, text, under, without

NAME = "LitEma"
FILES = "any `.ckpt` with `model_ema.decay` and `model_ema.num_updates` among its tensors"
CALL = "`phema inspect DIR`"
SOURCE = "CompVis/latent-diffusion, ldm/modules/ema.py"

_MARKS = ("decay", "num_updates")


def read(file: StoredFile) -> Reading | None:
    """Both series of each dict in which an average lies; num_updates is -1 without a warm-up."""
    series: list[Series] = []
    for within, tensors in file.dicts.items():
        prefix = _prefix(tensors)
        if prefix is not None:
            series += _both(file, within, tensors, prefix)
    return Reading(tuple(series)) if series else None


def _prefix(tensors: Tensors) -> str | None:
    """What the names of the average begin with."""
    for name in tensors:
        if name.endswith(".num_updates"):
            prefix = name.removesuffix("num_updates")
            if all(f"{prefix}{mark}" in tensors for mark in _MARKS):
                return prefix
    return None


def _both(file: StoredFile, within: str, tensors: Tensors, prefix: str) -> Iterator[Series]:
    """The raw weights and the average, under the raw weights' names."""
    raw = without(tensors, prefix)
    average = {n: t for n, t in under(tensors, prefix).items() if n not in _MARKS}
    decay, updates = (file.value(tensors[f"{prefix}{mark}"]) for mark in _MARKS)
    if decay is None or updates is None:
        raise InputError("its decay or num_updates is no number")
    grows = updates >= 0
    law = f"{'warmup' if grows else 'exponential'}:beta={_decimal(decay)}"
    if raw:
        yield Series(raw, "raw", within)
    yield Series(
        _with_dots(average, raw),
        "average",
        within,
        prefix,
        law=law,
        grows="warmup" if grows else None,
        updates=updates if grows else None,
    )


def _decimal(decay: float) -> str:
    """The decay as it was written, before float32 held it."""
    return text(float(str(np.float32(decay))))


def _with_dots(average: Tensors, raw: Tensors) -> Tensors:
    """The average under the raw weights' names: those below the module that was averaged.

    Raises:
        InputError: the names are not those of any module's parameters without dots.
    """
    first = next(iter(average), "")
    modules = {n[: i + 1] for n in raw for i, c in enumerate(n) if c == "."} | {""}
    endings = {n: n.replace(".", "") for n in raw}
    for module in sorted(modules, key=len):
        if not any(n.startswith(module) and endings[n].endswith(first) for n in raw):
            continue
        known = {n[len(module) :].replace(".", ""): n for n in raw if n.startswith(module)}
        if all(name in known for name in average):
            return {known[name]: tensor for name, tensor in average.items()}
    raise InputError(
        "its average has names without dots, and the weights that they belong to are not beside it",
        remedy="synthesize from files that hold both",
    )
