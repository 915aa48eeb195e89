"""``torch.optim.swa_utils.AveragedModel``: ``n_averaged`` beside names below ``module.``."""

from phema_cli.trainers.base import Clock, Reading, Series, StoredFile, under

NAME = "AveragedModel"
SOURCE = "PyTorch, torch/optim/swa_utils.py"

_COUNT, _MODULE = "n_averaged", "module."


def read(file: StoredFile) -> Reading | None:
    """The first update copies the weights; the function that averages is not stored."""
    found, clock = [], None
    for within, tensors in file.dicts.items():
        own = [n for n in tensors if n != _COUNT]
        if _COUNT not in tensors or not own or not all(n.startswith(_MODULE) for n in own):
            continue
        updates = file.value(tensors[_COUNT])
        if updates is not None:
            clock = Clock(updates, "steps", _COUNT, weak=True)
        weights = under(tensors, _MODULE)
        hint = "exponential:beta=0.999,start=1"
        found.append(Series(weights, "average", within, updates=updates, hint=hint))
    return Reading(tuple(found), clock) if found else None
