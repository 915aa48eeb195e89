"""fairseq: the average in ``extra_state.ema``, the number of updates in the optimizer's history."""

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, law_text

NAME = "fairseq"
SOURCE = "facebookresearch/fairseq, checkpoint_utils.py, trainer.py, models/ema/ema.py"

KEYS = {"optimizer_history", "extra_state"}
_AVERAGE, _EXACT, _RAW = "extra_state.ema", "extra_state.ema_fp32_params", "model"


def read(file: StoredFile) -> Reading | None:
    """The last entry of ``optimizer_history`` has the clock."""
    if _RAW not in file.dicts:
        return None
    history = file.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else {}
    done = file.value(last.get("num_updates")) if isinstance(last, dict) else None
    clock = None if done is None else Clock(done, "steps", "num_updates")
    if _AVERAGE not in file.dicts:
        return Reading((Series(file.dicts[_RAW], "unknown", _RAW),), clock)
    hint = "exponential:beta=0.9999"
    # It stores the average of 16-bit parameters in 32 bits as well.
    tensors = {**file.dicts[_AVERAGE], **file.dicts.get(_EXACT, {})}
    average = Series(tensors, "average", _AVERAGE, law=_law(file), hint=hint)
    raw = Series(file.dicts[_RAW], "raw", _RAW)
    return Reading((average, raw), clock, ignored=(_EXACT,))


def _law(file: StoredFile) -> str | None:
    """A constant decay; up to ``ema_start_update`` the weights are copied."""
    decay = file.number("cfg", "ema", "ema_decay")
    if decay is None:
        return None
    every = file.number("cfg", "ema", "ema_update_freq") or 1
    start = file.number("cfg", "ema", "ema_start_update") or 0
    return law_text(
        "exponential",
        beta=decay,
        every=every if every > 1 else None,
        start=start - 1 if start > 1 else None,
    )
