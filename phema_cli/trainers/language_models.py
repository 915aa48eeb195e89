"""nanoGPT, litgpt, OLMo and OLMo-core: raw weights, each with its own keys and clock."""

import re

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, under, without

NAME = "nanoGPT, litgpt, OLMo"
SOURCE = (
    "karpathy/nanoGPT, train.py; Lightning-AI/litgpt, litgpt/pretrain.py; allenai/OLMo, "
    "olmo/checkpoint.py; allenai/OLMo-core, train/checkpoint.py"
)

_OLMO = re.compile(r"step(?P<step>\d+)(-unsharded)?")


def read(file: StoredFile) -> Reading | None:
    """None of them keeps an average."""
    return _nano_gpt(file) or _litgpt(file) or _olmo_core(file) or _olmo(file)


def _nano_gpt(file: StoredFile) -> Reading | None:
    """``iter_num`` is written before that iteration, so that it counts the iterations done."""
    if not {"model_args", "iter_num"} <= file.top.keys() or "model" not in file.dicts:
        return None
    return Reading((Series(file.dicts["model"], "raw", "model"),), file.clock("iter_num"))


def _litgpt(file: StoredFile) -> Reading | None:
    """``step_count`` counts updates, ``iter_num`` parts of batches."""
    if file.file_name.partition(".")[0] != "lit_model" or "step_count" not in file.top:
        return None
    raw = Series(file.dicts.get("model", {}), "raw", "model")
    return Reading((raw,), file.clock("step_count"))


def _olmo_core(file: StoredFile) -> Reading | None:
    """A distributed checkpoint of ``model.`` and ``optim.`` in a directory of the step."""
    if file.contents.format != "dcp" or file.name != "model_and_optim":
        return None
    found = _OLMO.fullmatch(file.folders[0]) if file.folders else None
    clock = Clock(float(found["step"]), "steps", "step", "folder") if found else None
    if "model" in file.dicts:
        return Reading((Series(file.dicts["model"], "raw", "model"),), clock)
    weights = without(file.dicts.get(".", {}), "optim.")
    own = under(weights, "model.")
    raw = Series(own, "raw", prefix="model.") if own else Series(weights, "raw")
    return Reading((raw,), clock)


def _olmo(file: StoredFile) -> Reading | None:
    """``model.pt`` in a directory of the step, ``optim.pt`` and ``train.pt`` beside it."""
    if not (file.has_beside("optim.pt") and file.has_beside("train.pt")):
        return None
    if file.file_name.startswith(("optim.", "train.")):
        return Reading(left_out="a trainer's own state")
    found = file.matches(_OLMO)
    clock = None if found is None else Clock(float(found["step"]), "steps", "step", "name")
    return Reading((Series(file.dicts.get(".", {}), "raw"),), clock)
