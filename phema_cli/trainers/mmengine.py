"""MMEngine's EMAHook: it stores the average as ``state_dict``, the raw weights beside it."""

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, under

NAME = "MMEngine"
SOURCE = (
    "open-mmlab/mmengine, hooks/ema_hook.py, runner/runner.py, model/averaged_model.py; "
    "open-mmlab/mmdetection, mmdet/models/layers/ema.py"
)

_AVERAGE, _SWAPPED, _MODULE = "state_dict", "ema_state_dict", "module."
_GROWS = "ExpMomentumEMA"


def read(file: StoredFile) -> Reading | None:
    """The hook swaps the two when it saves; ``steps`` counts its updates."""
    done = file.number("meta", "iter")
    clock = Clock(done, "steps", "meta.iter") if done else None
    # The hook's dict has a counter, and all its other names are below ``module.``.
    names = file.dicts.get(_SWAPPED, {})
    swapped = "steps" in names and all(n == "steps" or n.startswith(_MODULE) for n in names)
    if _AVERAGE not in file.dicts or not swapped:
        return None if clock is None else Reading(clock=clock)
    raw, updates = file.dicts[_SWAPPED], file.number(_SWAPPED, "steps")
    # The runner's configuration as text; mmdetection's detectors use this class.
    grows = _GROWS in str(file.get("meta", "cfg"))
    average = Series(
        file.dicts[_AVERAGE],
        "average",
        _AVERAGE,
        updates=updates,
        grows="yolo" if grows else None,
        hint="yolo:beta=0.9998" if grows else "exponential:beta=0.9998,start=1",
    )
    if clock is None and updates is not None:
        clock = Clock(updates, "steps", f"{_SWAPPED}.steps", weak=True)
    return Reading((average, Series(under(raw, _MODULE), "raw", _SWAPPED)), clock)
