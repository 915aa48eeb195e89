"""Megatron-core's ``torch_dist`` checkpoints, and its older files of one rank each."""

import re

from phema_cli.errors import InputError
from phema_cli.trainers.base import Clock, Reading, Series, StoredFile

NAME = "Megatron-core"
SOURCE = "NVIDIA/Megatron-LM, megatron/training/checkpointing.py, core/dist_checkpointing"

_STATE = re.compile(
    r"(optimizer|chained_\d+|rng_state|rerun_state_machine|opt_param_scheduler|common_state)[./]?.*"
)
_RANK = re.compile(r"mp_rank_\d+(_\d+)*")
_LEGACY = ("model_optim_rng", "model_rng", "distrib_optim")


def read(file: StoredFile) -> Reading | None:
    """The model's tensors of a distributed checkpoint, without an optimizer's."""
    if file.file_name.startswith(_LEGACY) and any(map(_RANK.fullmatch, file.folders[:1])):
        raise InputError(
            "has only the weights of one rank of a parallel model",
            remedy="convert all ranks with Megatron's --ckpt-convert-format torch_dist",
        )
    if file.contents.format != "dcp" or "sharded_backend" not in file.json("metadata.json"):
        return None
    tensors = file.dicts.get(".", {})
    weights = {n: t for n, t in tensors.items() if not _STATE.fullmatch(n)}
    iteration = re.fullmatch(r"iter_(\d{7,})", file.name)
    clock = Clock(float(iteration[1]), "steps", "iter", "name") if iteration else None
    return Reading((Series(weights, "raw"),), clock)
