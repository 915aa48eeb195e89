"""NeMo's EMA callback: ``<name>-EMA.ckpt`` holds the average, ``<name>.ckpt`` the raw weights."""

from glob import escape

from phema_cli.trainers.base import Reading, Series, StoredFile, law_text
from phema_cli.trainers.nested import tensors_of

NAME = "NeMo"
SOURCE = "NVIDIA/NeMo, nemo/collections/common/callbacks/ema.py"

KEYS = {"pytorch-lightning_version"}
_WEIGHTS, _ENDING = "state_dict", "-EMA"
_STATE = ("optimizer_states", "0")
_HINT = "exponential:beta=0.999"


def read(file: StoredFile) -> Reading | None:
    """Lightning's checkpoints, the average in a file of its own or in the optimizer's state."""
    if _WEIGHTS not in file.dicts:
        return None
    weights, law = file.dicts[_WEIGHTS], _law(file)
    if file.name.endswith(_ENDING):
        # The list in its optimizer's state is the same average.
        average = Series(weights, "average", _WEIGHTS, law=law, hint=_HINT, label="EMA")
        return Reading((average,))
    raw = Series(weights, "raw", _WEIGHTS)
    if law is None:
        paired = file.has_beside(f"{escape(file.name)}{_ENDING}.ckpt")
        return Reading((raw,)) if paired else None
    listed = file.get(*_STATE, "ema")
    group = tensors_of(list(listed)) if isinstance(listed, list | tuple) else None
    several = file.get(*_STATE, "opt", "param_groups", "1") or file.get(_STATE[0], "1")
    if several is not None or group is None:
        note = "its average is left out: a list without names, in the order of several groups"
        return Reading((raw,), notes=(note,))
    within = ".".join((*_STATE, "ema"))
    average = Series(group[0], "average", within, law=law, unnamed=True, label="ema")
    return Reading((average, raw))


def _law(file: StoredFile) -> str | None:
    """The law in the state of ``EMAOptimizer``, whose first update follows step 1."""
    decay, every = (file.number(*_STATE, key) for key in ("decay", "every_n_steps"))
    if decay is None or every is None or file.get(*_STATE, "ema") is None:
        return None
    spacing = {"every": every, "start": 1.0} if every > 1 else {}
    return law_text("exponential", beta=decay, **spacing)
