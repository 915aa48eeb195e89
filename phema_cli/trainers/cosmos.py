"""NVIDIA Cosmos: a power EMA in ``net_ema.`` beside ``net.``, or under ``ema`` without dots."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, under

NAME = "Cosmos"
SOURCE = "nvidia-cosmos/cosmos-predict1 and cosmos-predict2, imaginaire/utils/ema.py"

_RAW, _AVERAGE = "net.", "net_ema."
_NESTED = ("model.model", "model.ema")
_HINT = "power:sigma_rel=0.1"
_PART = re.compile(r"iter_(?P<step>\d{9,})_(?P<part>reg|ema)_model")
_RANK = re.compile(r"(?P<first>iter_\d{9,})(_RANK(?P<rank>\d))?")


def read(file: StoredFile) -> Reading | None:
    """Only the configuration has the width of the average."""
    return _one_dict(file) or _dashed(file) or _part(file)


def _one_dict(file: StoredFile) -> Reading | None:
    """Two series in one dict, by their prefixes."""
    for within, tensors in file.dicts.items():
        average = under(tensors, _AVERAGE)
        if average and (raw := under(tensors, _RAW)):
            average = {f"{_RAW}{n}": t for n, t in average.items()}
            raw = {f"{_RAW}{n}": t for n, t in raw.items()}
            first = Series(average, "average", within, _AVERAGE, hint=_HINT)
            return Reading((first, Series(raw, "raw", within, _RAW)))
    return None


def _dashed(file: StoredFile) -> Reading | None:
    """Two dicts; each rank keeps its own average, half as wide as that of the rank before."""
    if not set(_NESTED) <= file.dicts.keys():
        return None
    raw, dashed = (file.dicts[key] for key in _NESTED)
    names = {n.replace("_orig_mod.", "").replace(".", "-"): n for n in raw}
    names |= {n.replace(".", "-"): n for n in raw}
    if not all(n in names for n in dashed):
        return None
    average = {names[n]: t for n, t in dashed.items()}
    found = file.matches(_RANK) or {}
    rank = int(found.get("rank", 0))
    counted = rank or (found and file.has_beside(f"{found['first']}_RANK1.*"))
    series = Series(
        average,
        "average",
        _NESTED[1],
        index=rank if counted else None,
        first_index=0,
        hint=_HINT,
        part=len(average) < len(raw),
    )
    if rank:
        # All ranks store the same raw weights.
        return Reading((series,), ignored=_NESTED[:1])
    return Reading((series, Series(raw, "raw", _NESTED[0])))


def _part(file: StoredFile) -> Reading | None:
    """A file of the raw weights, or of the average."""
    found = file.matches(_PART)
    if found is None or "." not in file.dicts:
        return None
    clock, label = Clock(float(found["step"]), "steps", "iter", "name"), f"{found['part']}_model"
    if found["part"] == "reg":
        return Reading((Series(file.dicts["."], "raw", label=label),), clock)
    return Reading((Series(file.dicts["."], "average", hint=_HINT, label=label),), clock)
