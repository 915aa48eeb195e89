"""LitEma of latent-diffusion: an average among the raw weights, its names without their dots."""

from collections.abc import Iterator

import numpy as np

from phema_cli.errors import InputError
from phema_cli.trainers.base import Reading, Series, StoredFile, Tensors, law_text, under, without

NAME = "LitEma"
SOURCE = "CompVis/latent-diffusion, ldm/modules/ema.py"

_MARKS = ("decay", "num_updates")


def read(file: StoredFile) -> Reading | None:
    """Both series of each dict with an average; num_updates is -1 without a warm-up."""
    series: list[Series] = []
    for within, tensors in file.dicts.items():
        ends = (n.removesuffix("num_updates") for n in tensors if n.endswith(".num_updates"))
        prefix = next((p for p in ends if f"{p}decay" in tensors), None)
        if prefix is not None:
            series += _both(file, within, tensors, prefix)
    return Reading(tuple(series)) if series else None


def _both(file: StoredFile, within: str, tensors: Tensors, prefix: str) -> Iterator[Series]:
    """The raw weights and the average, under the raw weights' names."""
    raw = without(tensors, prefix)
    average = {n: t for n, t in under(tensors, prefix).items() if n not in _MARKS}
    decay, updates = (file.value(tensors[f"{prefix}{mark}"]) for mark in _MARKS)
    if decay is None or updates is None:
        raise InputError("its decay or num_updates is not a number")
    grows = updates >= 0
    # The decay as it was written, before float32 rounded it.
    beta = float(str(np.float32(decay)))
    law = law_text("warmup" if grows else "exponential", beta=beta)
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


def _with_dots(average: Tensors, raw: Tensors) -> Tensors:
    """The average under the raw weights' names, which are those below the averaged module.

    Raises:
        InputError: no module has parameters of these names.
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
        "the names of its average have no dots, and the raw weights with the full names are not in "
        "the file",
        remedy="synthesize from files that have both",
    )
