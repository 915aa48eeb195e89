"""VAR: no average of weights, a frozen second model, and epochs counted from 1."""

from phema_cli.trainers.base import Reading, Series, StoredFile

NAME = "VAR"
SOURCE = "FoundationVision/VAR, train.py, trainer.py"

_WEIGHTS = "trainer.var_wo_ddp"


def read(file: StoredFile) -> Reading | None:
    """``vae_local`` does not train: its ``ema_vocab_hit_SV`` counts uses and is no average."""
    if _WEIGHTS not in file.dicts or "trainer.vae_local" not in file.dicts:
        return None
    raw = Series(file.dicts[_WEIGHTS], "raw", _WEIGHTS)
    notes = ("trainer.vae_local is left out: it is a frozen model",)
    return Reading((raw,), file.clock("epoch", unit="epochs"), notes=notes)
