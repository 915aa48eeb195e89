"""F5-TTS: ema_pytorch's average under ``ema_model_state_dict``."""

from phema_cli.trainers.base import Reading, StoredFile

NAME = "F5-TTS"
FILES = "`model_1000.pt` of `model_state_dict` and `ema_model_state_dict`"
CALL = "`--average ema-pytorch:beta=0.9999,every=10,update_after=100`"
SOURCE = "SWivid/F5-TTS, src/f5_tts/model/trainer.py"


def read(file: StoredFile) -> Reading | None:
    """The clock is ``update``; ema_pytorch's own module reads the average."""
    clock = file.clock("update")
    if clock is None or "ema_model_state_dict" not in file.top:
        return None
    hint = "ema-pytorch:beta=0.9999,every=10,update_after=100"
    return Reading(clock=clock, hint=hint)
