"""DeepSpeed: the engine's own files, with ZeRO's beside them."""

import re

from phema_cli.errors import InputError
from phema_cli.trainers.base import Reading, Series, StoredFile

NAME = "DeepSpeed"
SOURCE = "deepspeedai/DeepSpeed, runtime/engine.py, utils/zero_to_fp32.py"

_MODEL = re.compile(r"(?P<zero3>zero_pp_rank_\d+_)?mp_rank_(?P<rank>\d+)_model_states")
_ZERO3 = "run DeepSpeed's zero_to_fp32.py, and give phema the file that it writes"


def read(file: StoredFile) -> Reading | None:
    """The whole model is ``module``; with ZeRO-3 it is empty, and the weights are split."""
    if "ds_version" not in file.top and "ds_config" not in file.top:
        return None
    named = file.matches(_MODEL) or {}
    if "module" not in file.top:
        return Reading(left_out="a trainer's own state")
    module = file.dicts.get("module", {})
    if named.get("zero3") or (module and all(0 in t.shape for t in module.values())):
        raise InputError("its tensors are empty: ZeRO-3 splits weights among files", remedy=_ZERO3)
    if (file.number("mp_world_size") or 1) > 1 or int(named.get("rank", 0)) > 0:
        raise InputError(
            "has only the weights of one rank of a parallel model",
            remedy="gather all ranks with DeepSpeed's ds_to_universal.py or its exporter",
        )
    return Reading((Series(module, "raw", "module"),), file.clock("global_steps"))
