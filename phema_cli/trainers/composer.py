"""Composer: once its EMA has begun, ``state.model`` is the average; the raw weights are beside."""

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, Tensors
from phema_cli.trainers.nested import inside, tensors_of

NAME = "Composer"
SOURCE = "mosaicml/composer, algorithms/ema/ema.py, utils/checkpoint.py"

_WEIGHTS = "state.model"
_PARTS = ("named_parameters_dict", "named_buffers_dict")


def read(file: StoredFile) -> Reading | None:
    """Batches done are the clock; ``ema_weights_active`` says that the two were swapped."""
    if _WEIGHTS not in file.dicts or file.get("state", "timestamp") is None:
        return None
    done = file.number("state", "timestamp", "batch") or file.number(
        "state", "timestamp", "Timestamp", "batch"
    )
    clock = None if done is None else Clock(done, "steps", "state.timestamp.batch")
    weights = file.dicts[_WEIGHTS]
    raw = _raw_weights(file)
    if raw is None:
        return Reading((Series(weights, "unknown", _WEIGHTS),), clock)
    hint = "exponential:halflife=1000,start=1"
    average = Series(weights, "average", _WEIGHTS, hint=hint)
    return Reading((average, Series(raw, "raw", "state.algorithms")), clock)


def _raw_weights(file: StoredFile) -> Tensors | None:
    """The raw weights that the algorithm keeps while its average is in their place, or None."""
    algorithms = file.get("state", "algorithms")
    for entry in algorithms if isinstance(algorithms, list) else ():
        match entry:
            case (str(), {"ema_weights_active": True, "ema_model": dict(kept)}):
                parts = [group[0] for part in _PARTS if (group := tensors_of(inside(kept, part)))]
                return {n: t for part in parts for n, t in part.items()} or None
            case _:
                continue
    return None
