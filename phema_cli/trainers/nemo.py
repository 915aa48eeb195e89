"""NeMo's EMA callback: ``<name>-EMA.ckpt`` holds the average, ``<name>.ckpt`` the raw weights."""

from __future__ import annotations

from phema_cli.formats.base import StoredTensor
from phema_cli.trainers.base import Reading, Series, StoredFile, Tensors, escaped, text

NAME = "NeMo"
FILES = "`<name>-EMA.ckpt` beside `<name>.ckpt`, or one file with a list in `optimizer_states`"
CALL = "`phema inspect DIR`"
SOURCE = "NVIDIA/NeMo, nemo/collections/common/callbacks/ema.py"

_MARK, _WEIGHTS, _ENDING = "pytorch-lightning_version", "state_dict", "-EMA"
_STATE = ("optimizer_states", "0")
_HINT = "exponential:beta=0.999"


def read(file: StoredFile) -> Reading | None:
    """Of a pair of Lightning's checkpoints, which it is; or both in one."""
    if _MARK not in file.top or _WEIGHTS not in file.dicts:
        return None
    weights, law = file.dicts[_WEIGHTS], _law(file)
    if file.name.endswith(_ENDING):
        # The list in it is the average once more.
        average = Series(weights, "average", _WEIGHTS, law=law, hint=_HINT, label="EMA")
        return Reading((average,))
    raw = Series(weights, "raw", _WEIGHTS)
    if law is None:
        paired = file.has_beside(f"{escaped(file.name)}{_ENDING}.ckpt")
        return Reading((raw,)) if paired else None
    return _listed(file, raw, law)


def _law(file: StoredFile) -> str | None:
    """The law by what ``EMAOptimizer`` stores; the first of its updates follows step 1."""
    decay, every = (file.number(*_STATE, key) for key in ("decay", "every_n_steps"))
    if decay is None or every is None or file.get(*_STATE, "ema") is None:
        return None
    spacing = f",every={text(every)},start=1" if every > 1 else ""
    return f"exponential:beta={text(decay)}{spacing}"


def _listed(file: StoredFile, raw: Series, law: str) -> Reading:
    """The average as a list, in the order of the optimizer's parameters."""
    tensors = _tensors(file.get(*_STATE, "ema"))
    several = file.get(*_STATE, "opt", "param_groups", "1") or file.get(_STATE[0], "1")
    if several is not None or not tensors:
        note = "its average is left out: a list without names, in the order of several groups"
        return Reading((raw,), notes=(note,))
    average = Series(
        tensors, "average", ".".join((*_STATE, "ema")), law=law, unnamed=True, label="ema"
    )
    return Reading((average, raw))


def _tensors(found: object) -> Tensors:
    """The tensors of a list or tuple of nothing else, by their number."""
    entries = found if isinstance(found, list | tuple) else ()
    numbered = {str(k): t for k, t in enumerate(entries) if isinstance(t, StoredTensor)}
    return numbered if len(numbered) == len(entries) else {}
