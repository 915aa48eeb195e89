"""NVIDIA Cosmos: a power EMA in ``net_ema.`` beside ``net.``, or under ``ema`` without dots."""

from __future__ import annotations

from phema_cli.trainers.base import Reading, Series, StoredFile, under

NAME = "Cosmos"
FILES = "`iter_000001000.pt` with `net.` and `net_ema.`, or `model.model` and `model.ema`"
CALL = "`--average power:sigma_rel=0.1`, as `ema.rate` was"
SOURCE = "nvidia-cosmos/cosmos-predict1 and cosmos-predict2, imaginaire/utils/ema.py"

_RAW, _AVERAGE = "net.", "net_ema."
_HINT = "power:sigma_rel=0.1"


def read(file: StoredFile) -> Reading | None:
    """The width of the average stands in the configuration alone."""
    for within, tensors in file.dicts.items():
        average = under(tensors, _AVERAGE)
        if average and (raw := under(tensors, _RAW)):
            named = {f"{_RAW}{n}": t for n, t in average.items()}
            whole = {f"{_RAW}{n}": t for n, t in raw.items()}
            return Reading(
                (
                    Series(named, "average", within, _AVERAGE, hint=_HINT),
                    Series(whole, "raw", within, _RAW),
                )
            )
    if not {"model.model", "model.ema"} <= file.dicts.keys():
        return None
    raw, dashed = file.dicts["model.model"], file.dicts["model.ema"]
    names = {n.replace(".", "-"): n for n in raw}
    if not all(n in names for n in dashed):
        return None
    average = {names[n]: t for n, t in dashed.items()}
    return Reading(
        (Series(average, "average", "model.ema", hint=_HINT), Series(raw, "raw", "model.model"))
    )
