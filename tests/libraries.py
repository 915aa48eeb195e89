"""What the libraries' own classes make of weights that are known after every step.

Each function gives an array like its argument: row k holds the average after step k, row 0 the
average before the first.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from phema_cli.profiles import gamma_from_sigma_rel
from tests.simulated import recursion

Rows = np.ndarray


class Holder(nn.Module):
    """A model that is one vector of weights."""

    def __init__(self, values: Rows) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))


def small_unet() -> nn.Module:
    """A diffusion model of diffusers', as small as it can be."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    made: nn.Module = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    return made


def replay(
    path: Rows, model: Holder, update: Callable[[int], None], read: Callable[[], Any]
) -> Rows:
    """Put the weights of each step into the model, update, and read the average."""
    rows = [path[0]]
    for step in range(1, len(path)):
        with torch.no_grad():
            model.w.copy_(torch.tensor(path[step]))
        update(step)
        rows.append(np.array(read().detach().double(), copy=True))
    return np.stack(rows)


def _place(package: str) -> str:
    """Where a package lies, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return spec.submodule_search_locations[0]


@contextlib.contextmanager
def stand_ins(*names: str, **members: Any) -> Iterator[None]:
    """Empty modules for what a library imports and does not need here."""
    made = {}
    for name in names:
        if name in sys.modules or is_there(name):
            continue
        made[name] = types.ModuleType(name)
        made[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        made[name].__path__ = []
        vars(made[name]).update(members)
    with loaded(made):
        yield


@contextlib.contextmanager
def loaded(made: Mapping[str, types.ModuleType]) -> Iterator[None]:
    """Modules that can be imported for as long as they are needed, by their names."""
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def is_there(name: str) -> bool:
    """Whether a library can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def bare_timm() -> Iterator[None]:
    """Timm's utilities without its models, which need torchvision."""
    place = Path(_place("timm"))
    before = {n: m for n, m in sys.modules.items() if n == "timm" or n.startswith("timm.")}
    for name, path in (("timm", place), ("timm.utils", place / "utils")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    torchvision = ("torchvision", "torchvision.ops", "torchvision.ops.misc")
    try:
        with stand_ins(*torchvision, FrozenBatchNorm2d=type("FrozenBatchNorm2d", (), {})):
            yield
    finally:
        for name in [n for n in sys.modules if n == "timm" or n.startswith("timm.")]:
            del sys.modules[name]
        sys.modules.update(before)


def diffusers(path: Rows, every: int = 1, **settings: Any) -> Rows:
    """The ``EMAModel`` of diffusers, called at every N-th step."""
    from diffusers.training_utils import EMAModel

    model = Holder(path[0])
    ema = EMAModel(model.parameters(), **settings)

    def update(step: int) -> None:
        if step % every == 0:
            ema.step(model.parameters())

    return replay(path, model, update, lambda: ema.shadow_params[0])


def ema_pytorch(path: Rows, **settings: Any) -> Rows:
    """The ``EMA`` of ema-pytorch, called after every step; it leaves steps out itself."""
    from ema_pytorch import EMA

    model = Holder(path[0])
    ema = EMA(model, **settings)
    return replay(path, model, lambda _: ema.update(), lambda: ema.ema_model.w)


def karras(path: Rows, **settings: Any) -> Rows:
    """The ``KarrasEMA`` of ema-pytorch."""
    from ema_pytorch.post_hoc_ema import KarrasEMA

    model = Holder(path[0])
    ema = KarrasEMA(model, **settings)
    return replay(path, model, lambda _: ema.update(), lambda: ema.ema_model.w)


def timm(path: Rows, **settings: Any) -> Rows:
    """The ``ModelEmaV3`` of timm, told the number of the step as timm's training script does."""
    with bare_timm():
        from timm.utils.model_ema import ModelEmaV3
    model = Holder(path[0])
    ema = ModelEmaV3(model, **settings)
    return replay(path, model, lambda n: ema.update(model, step=n), lambda: ema.module.w)


def torch_ema(path: Rows, **settings: Any) -> Rows:
    """The ``ExponentialMovingAverage`` of torch_ema."""
    library: types.ModuleType = pytest.importorskip("torch_ema")
    model = Holder(path[0])
    ema = library.ExponentialMovingAverage(model.parameters(), **settings)
    return replay(path, model, lambda _: ema.update(), lambda: ema.shadow_params[0])


def averaged_model(path: Rows, beta: float | None = None) -> Rows:
    """PyTorch's ``AveragedModel``: an EMA, or the plain mean."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = Holder(path[0])
    how = {} if beta is None else {"multi_avg_fn": get_ema_multi_avg_fn(beta)}
    ema = AveragedModel(model, **how)
    return replay(path, model, lambda _: ema.update_parameters(model), lambda: ema.module.w)


def k_diffusion(path: Rows, **settings: Any) -> Rows:
    """The ``EMAWarmup`` of k-diffusion, called as its training script does.

    The class alone is taken out of the module, whose imports need torchvision.
    """
    tree = ast.parse(Path(_place("k_diffusion"), "utils.py").read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "EMAWarmup"]
    names: dict[str, Any] = {}
    exec(compile(tree, "utils.py", "exec"), names)  # noqa: S102 - the library's own class
    schedule = names["EMAWarmup"](**settings)

    def decay(_: int) -> float:
        value: float = schedule.get_value()
        schedule.step()
        return value

    return recursion(path, decay)


def tracker(path: Rows, gamma: float) -> Rows:
    """The tracker's own ``PowerEMA``, in float32."""
    from phema_cli import PowerEMA

    model = Holder(path[0])
    ema = PowerEMA(model, (gamma,))
    return replay(path, model, lambda _: ema.update(), lambda: ema.average(gamma)["w"])


def edm(path: Rows, halflife: float, ratio: float, batch: int) -> Rows:
    """The loop of NVlabs/edm, whose count of images rises after the update."""
    return recursion(
        path,
        lambda n: 0.5 ** (batch / max(min(halflife, (n - 1) * batch * ratio), 1e-8)),
    )


def sparse(path: Rows, decay: Callable[[int], float], every: int = 1, start: int = 0) -> Rows:
    """A copy up to ``start``; then each N-th step after it is an update, whose decay this gives."""

    def each(step: int) -> float | None:
        if step <= start:
            return 0.0
        return None if (step - start) % every else decay(step - start)

    return recursion(path, each)


#: a law, and by what and with which settings it is made.
REPLAYS: list[tuple[str, Callable[..., Rows], dict[str, Any]]] = [
    ("diffusers:beta=0.9999", diffusers, {}),
    ("diffusers:beta=0.9,update_after=30", diffusers, {"decay": 0.9, "update_after_step": 30}),
    (
        "diffusers:beta=0.9,min=0.5,update_after=-1",
        diffusers,
        {"decay": 0.9, "min_decay": 0.5, "update_after_step": -1},
    ),
    ("diffusers:beta=0.6,min=0.8", diffusers, {"decay": 0.6, "min_decay": 0.8}),
    ("diffusers:beta=0.9999,warmup=1", diffusers, {"use_ema_warmup": True}),
    (
        "diffusers:beta=0.97,warmup=1,inv_gamma=3,power=0.75,min=0.4,update_after=7",
        diffusers,
        {
            "decay": 0.97,
            "use_ema_warmup": True,
            "inv_gamma": 3,
            "power": 0.75,
            "min_decay": 0.4,
            "update_after_step": 7,
        },
    ),
    (
        "diffusers:beta=0.9999,warmup=1,power=1,inv_gamma=8",
        diffusers,
        {"use_ema_warmup": True, "power": 1, "inv_gamma": 8},
    ),
    (
        "diffusers:beta=0.99,every=10,update_after=2",
        diffusers,
        {"every": 10, "decay": 0.99, "update_after_step": 2},
    ),
    ("ema-pytorch:beta=0.9999", ema_pytorch, {}),
    ("ema-pytorch:beta=0.995,every=10", ema_pytorch, {"beta": 0.995}),
    (
        "ema-pytorch:beta=0.9,every=1,update_after=0",
        ema_pytorch,
        {"beta": 0.9, "update_every": 1, "update_after_step": 0},
    ),
    (
        "ema-pytorch:beta=0.95,every=3,update_after=20,power=0.75,inv_gamma=2,min=0.3",
        ema_pytorch,
        {
            "beta": 0.95,
            "update_every": 3,
            "update_after_step": 20,
            "power": 0.75,
            "inv_gamma": 2,
            "min_value": 0.3,
        },
    ),
    (
        "ema-pytorch:beta=0.5,min=0.7,every=1,update_after=5",
        ema_pytorch,
        {"beta": 0.5, "min_value": 0.7, "update_every": 1, "update_after_step": 5},
    ),
    ("ema-pytorch:gamma=6.94,every=1", karras, {"gamma": 6.94, "update_every": 1}),
    ("ema-pytorch:gamma=16.97,every=3", karras, {"gamma": 16.97, "update_every": 3}),
    ("ema-pytorch:sigma_rel=0.05,every=10", karras, {"sigma_rel": 0.05, "update_every": 10}),
    ("timm:beta=0.9", timm, {"decay": 0.9}),
    ("timm:beta=0.9,update_after=25", timm, {"decay": 0.9, "update_after_step": 25}),
    (
        "timm:beta=0.98,warmup=1,gamma=2,power=0.75,min=0.2,update_after=4",
        timm,
        {
            "decay": 0.98,
            "use_warmup": True,
            "warmup_gamma": 2,
            "warmup_power": 0.75,
            "min_decay": 0.2,
            "update_after_step": 4,
        },
    ),
    ("k-diffusion", k_diffusion, {}),
    (
        "k-diffusion:power=2/3,beta=0.97,start=12",
        k_diffusion,
        {"power": 2 / 3, "max_value": 0.97, "start_at": 12},
    ),
    (
        "k-diffusion:power=0.75,inv_gamma=4,min=0.3,start=12",
        k_diffusion,
        {"power": 0.75, "inv_gamma": 4, "min_value": 0.3, "start_at": 12},
    ),
    ("warmup:beta=0.9999", torch_ema, {"decay": 0.9999}),
    ("warmup:beta=0.95", torch_ema, {"decay": 0.95}),
    ("exponential:beta=0.98", torch_ema, {"decay": 0.98, "use_num_updates": False}),
    ("exponential:beta=0.98,start=1", averaged_model, {"beta": 0.98}),
    ("power:gamma=0", averaged_model, {}),
    ("power:gamma=5", tracker, {"gamma": 5}),
    ("power:sigma_rel=0.25", tracker, {"gamma": gamma_from_sigma_rel(0.25)}),
    (
        "rampup:halflife=1500,ratio=0.1,batch=64",
        edm,
        {"halflife": 1500, "ratio": 0.1, "batch": 64},
    ),
    ("rampup:halflife=1e9", edm, {"halflife": 1e9, "ratio": 0.05, "batch": 1}),
    # By the recursion alone: libraries that are not installed, sparse updates, a later start.
    ("warmup:beta=0.97", sparse, {"decay": lambda n: min(0.97, (1 + n) / (10 + n))}),
    (
        "k-diffusion:power=0.75",
        sparse,
        {"decay": lambda n: 1 - n**-0.75},
    ),
    ("power:halflife=0.05", sparse, {"decay": lambda n: 2 ** (-1 / (0.05 * n))}),
    ("power:halflife=1", sparse, {"decay": lambda n: 2 ** (-1 / n)}),
    (
        "power:halflife=0.05,every=3,start=20",
        sparse,
        {"decay": lambda n: 2 ** (-1 / (0.05 * n)), "every": 3, "start": 20},
    ),
    ("power:gamma=16,every=10", sparse, {"decay": lambda n: (1 - 1 / n) ** 17, "every": 10}),
    ("power:gamma=5,start=50", sparse, {"decay": lambda n: (1 - 1 / n) ** 6, "start": 50}),
    ("exponential:halflife=30,every=3", sparse, {"decay": lambda _: 0.5**0.1, "every": 3}),
    (
        "exponential:beta=0.9,every=3,start=20",
        sparse,
        {"decay": lambda _: 0.9, "every": 3, "start": 20},
    ),
    (
        "warmup:beta=0.9,every=10",
        sparse,
        {"decay": lambda n: min(0.9, (1 + n / 10) / (10 + n / 10)), "every": 10},
    ),
    (
        "onetrainer:beta=0.97,every=5",
        sparse,
        {"decay": lambda n: min(0.97, n / (9 + n)), "every": 5},
    ),
    ("yolo:beta=0.98,tau=50", sparse, {"decay": lambda n: 0.98 * (1 - math.exp(-n / 50))}),
    (
        "yolo:beta=0.9999,tau=20,every=3",
        sparse,
        {"decay": lambda n: 0.9999 * (1 - math.exp(-n / 60)), "every": 3},
    ),
    (
        "warmup:beta=0.9,start=99",
        sparse,
        {"decay": lambda n: min(0.9, (1 + n) / (10 + n)), "start": 99},
    ),
    (
        "rampup:halflife=60,ratio=0.2,every=3",
        sparse,
        {"decay": lambda n: 0.5 ** (1 / min(60, (n - 1) * 0.2)), "every": 3},
    ),
]
