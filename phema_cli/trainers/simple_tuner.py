"""SimpleTuner: diffusers' average, of LoRAs in ``ema/``, and as numbered tensors in one dict."""

import re

from phema_cli.trainers.base import Clock, Reading, Role, Series, StoredFile
from phema_cli.trainers.diffusers import law_of

NAME = "SimpleTuner"
SOURCE = "bghira/SimpleTuner, simpletuner/helpers/training/ema.py, save_hooks.py"

_LIST = re.compile(r"shadow_params\.(?P<number>\d+)")
_LORA, _AVERAGE = "pytorch_lora_weights", "ema"
_FILES = (_LORA, "diffusion_pytorch_model")
#: the default of its command line.
_HINT = "diffusers:beta=0.995"


def read(file: StoredFile) -> Reading | None:
    """``training_state.json``, in the directory or above it, has the step."""
    if "shadow_params.0" in file.top and "optimization_step" in file.top:
        return _listed(file)
    if not file.file_name.startswith(_FILES):
        return None
    state = file.json("training_state.json") or file.json("..", "training_state.json")
    step = file.value(state.get("global_step"))
    if "exhausted_backends" not in state or step is None:
        return None
    clock = Clock(step, "steps", "training_state.json")
    if not file.file_name.startswith(_LORA) or "." not in file.dicts:
        # diffusers' own module reads what it writes.
        return Reading(clock=clock)
    role: Role = "average" if file.name == _AVERAGE else "raw"
    label = _AVERAGE if role == "average" else None
    return Reading((Series(file.dicts["."], role, hint=_HINT, label=label),), clock)


def _listed(file: StoredFile) -> Reading:
    """Tensors in the model's order; most often a file beside them has them by name."""
    named = "optimization_step" in file.json("config.json")
    if named or file.has_beside(f"../{_AVERAGE}/{_LORA}*"):
        return Reading(left_out="the average without names: a file beside it has the names")
    found = [(int(m["number"]), t) for n, t in file.dicts["."].items() if (m := _LIST.fullmatch(n))]
    tensors = {str(number): t for number, t in sorted(found, key=lambda entry: entry[0])}
    law = law_of(file.top)
    average = Series(tensors, "average", law=law, unnamed=True, label="shadow_params")
    return Reading((average,), file.clock("optimization_step"))
