"""torch_ema and score_sde: a list of tensors, its decay and how often it was updated."""

from phema_cli.trainers.base import Reading, Series, StoredFile, law_text

NAME = "torch_ema"
SOURCE = "fadel/pytorch_ema, torch_ema/ema.py; yang-song/score_sde_pytorch, models/ema.py"


def read(file: StoredFile) -> Reading | None:
    """Lists in a dict that has a decay and a number of updates beside them."""
    found = []
    for key, tensors in file.lists.items():
        parent, _, last = key.rpartition(".")
        path = parent.split(".") if parent else []
        decay = file.number(*path, "decay")
        holder = file.get(*path)
        known = isinstance(holder, dict) and "num_updates" in holder and "min_decay" not in holder
        if last != "shadow_params" or decay is None or not known:
            continue
        updates = file.number(*path, "num_updates")
        # Without a count the decay never grows.
        name = "exponential" if updates is None else "warmup"
        found.append(
            Series(
                tensors,
                "average",
                key,
                law=law_text(name, beta=decay),
                grows=None if updates is None else name,
                updates=updates,
                unnamed=True,
                label=parent or None,
            )
        )
    # The library keeps the raw weights beside the average while the average is in use.
    ignored = tuple(f"{s.within.removesuffix('shadow_params')}collected_params" for s in found)
    return Reading(tuple(found), ignored=ignored) if found else None
