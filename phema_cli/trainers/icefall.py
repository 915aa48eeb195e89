"""icefall: ``model_avg`` is the plain mean of the weights after every N-th batch."""

from phema_cli.trainers.base import Reading, Series, StoredFile, law_text

NAME = "icefall"
SOURCE = "k2-fsa/icefall, icefall/checkpoint.py, egs/librispeech/ASR/zipformer/train.py"

KEYS = {"model", "model_avg", "average_period", "batch_idx_train"}


def read(file: StoredFile) -> Reading | None:
    """The first update copies: the k-th decay is ``(k - 1)/k``, which is k-diffusion's with 1."""
    period = file.number("average_period")
    if period is None or not {"model", "model_avg"} <= file.dicts.keys():
        return None
    law = law_text("k-diffusion", power=1, every=period)
    average = Series(file.dicts["model_avg"], "average", "model_avg", law=law)
    raw = Series(file.dicts["model"], "raw", "model")
    return Reading((average, raw), file.clock("batch_idx_train"))
