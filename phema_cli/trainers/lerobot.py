"""LeRobot: ``pretrained_model`` and ``pretrained_model_ema`` in a directory of the step."""

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile
from phema_cli.trainers.diffusers import law_of

NAME = "LeRobot"
SOURCE = "huggingface/lerobot, common/train_utils.py, configs/default.py"

_RAW, _AVERAGE, _STATE = "pretrained_model", "pretrained_model_ema", "training_state"
_CLOCK = "training_step.json"
_DEFAULTS = {"use_ema_warmup": True, "power": 0.75, "decay": 0.9999}


def read(file: StoredFile) -> Reading | None:
    """The step is in ``training_step.json``, and it is the directory's name."""
    if file.name not in {_RAW, _AVERAGE}:
        return _left_out(file)
    if "." not in file.dicts:
        return None
    state = file.json("..", _STATE, _CLOCK)
    step = file.value(state.get("step"))
    clock = None if step is None else Clock(step, "steps", _CLOCK)
    if clock is None and file.folders and file.folders[0].isdigit():
        clock = Clock(float(file.folders[0]), "steps", "step", "folder")
    tensors = file.dicts["."]
    if file.name == _RAW:
        return Reading((Series(tensors, "raw", label=_RAW),), clock)
    law = _law(file, file.value(state.get("grad_accum_steps")) or 1)
    hint = "diffusers:beta=0.9999,warmup=1,power=0.75"
    return Reading((Series(tensors, "average", law=law, hint=hint, label=_AVERAGE),), clock)


def _left_out(file: StoredFile) -> Reading | None:
    """Files beside the weights: the average as a list, and the processing of observations."""
    above = file.folders[:1]
    if above == (_STATE,) and file.has_beside(_CLOCK):
        return Reading(left_out="a trainer's own state")
    if above and above[0] in {_RAW, _AVERAGE} and file.name.startswith("policy_"):
        return Reading(left_out="it processes observations and actions")
    return None


def _law(file: StoredFile, batches: float) -> str | None:
    """Diffusers' law by the settings of the training.

    A constant decay is a floor and a cap. Steps count batches; ``batches`` of them make an update.
    """
    config = file.json("train_config.json") or file.json("..", _RAW, "train_config.json")
    given = config.get("ema")
    if not isinstance(given, dict):
        return None
    settings = _DEFAULTS | {k: v for k, v in given.items() if v is not None}
    constant = given.get("decay")
    if constant is not None:
        settings["min_decay"] = constant
    elif "max_decay" in settings:
        settings["decay"] = settings["max_decay"]
    return law_of(settings, every=batches if batches > 1 else None)
