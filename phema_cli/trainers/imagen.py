"""imagen-pytorch: a list of ema_pytorch's averages, one of each network of the cascade."""

from collections.abc import Iterator

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, Tensors, under

NAME = "imagen-pytorch"
SOURCE = "lucidrains/imagen-pytorch, imagen_pytorch/trainer.py"

KEYS = {"model", "version", "steps", "ema"}
_RAW, _AVERAGES = "model", "ema"
_HINT = "ema-pytorch:beta=0.9999,every=10"


def read(file: StoredFile) -> Reading | None:
    """The averages of networks that were trained, under the names of the whole model."""
    if not {_RAW, _AVERAGES} <= file.dicts.keys():
        return None
    found = list(_averages(file, file.dicts[_AVERAGES]))
    raw = Series(file.dicts[_RAW], "raw", _RAW)
    step = file.number("steps")
    if step is None and len(found) == 1:
        step = found[0].updates
    clock = None if step is None else Clock(step, "steps", "steps")
    return Reading((*found, raw), clock)


def _averages(file: StoredFile, tensors: Tensors) -> Iterator[Series]:
    """Each network's average, unless it was never updated."""
    for name in tensors:
        number, _, last = name.partition(".")
        if last != "initted" or not number.isdecimal():
            continue
        updates = file.value(tensors.get(f"{number}.step"))
        average = under(tensors, f"{number}.ema_model.")
        if updates == 0 or not average:
            continue
        yield Series(
            {f"unets.{number}.{n}": t for n, t in average.items()},
            "average",
            _AVERAGES,
            grows="ema-pytorch",
            updates=updates,
            hint=_HINT,
            label=f"{_AVERAGES}.{number}",
        )
