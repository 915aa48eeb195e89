"""F5-TTS: ema_pytorch's average under ``ema_model_state_dict``."""

from phema_cli.trainers.base import Reading, StoredFile

NAME = "F5-TTS"
SOURCE = "SWivid/F5-TTS, src/f5_tts/model/trainer.py"

KEYS = {"update", "ema_model_state_dict"}


def read(file: StoredFile) -> Reading | None:
    """The clock is ``update``; ema_pytorch's own module reads the average."""
    clock = file.clock("update")
    hint = "ema-pytorch:beta=0.9999,every=10,update_after=100"
    return None if clock is None else Reading(clock=clock, hint=hint)
