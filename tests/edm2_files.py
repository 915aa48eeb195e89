"""Network pickles of EDM2's shape, written and read by a persistence of our own."""

from __future__ import annotations

import pickle
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.libraries import loaded

#: what the pickles carry: source code of our own that rebuilds their objects.
SOURCE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, bias=False)
        self.gain = nn.Parameter(torch.zeros([]))

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.register_buffer("freqs", torch.linspace(0, 1, width))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.enc = nn.ModuleDict({"8x8_conv": Block(width), "8x8_block0": Block(width)})
        self.dec = nn.ModuleList([nn.Linear(width, width)])
        self.logvar = nn.Linear(width, 1)
        self.tied = nn.Linear(width, width, bias=False)
        self.tied.weight = self.dec[0].weight

class Encoder:
    def __init__(self):
        self.scale = 0.5

class Loss:
    P_mean = -0.4
"""


class EasyDict(dict):  # type: ignore[type-arg]
    """A dict of a class of its own, as configurations are kept in."""


EasyDict.__module__ = "dnnlib.util"
EasyDict.__qualname__ = "EasyDict"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    """What the code inside does when such a file is loaded: run it, and fill in the state."""
    module = types.ModuleType("carried")
    exec(meta["module_src"], module.__dict__)  # noqa: S102 - that is what the format is about
    made = persistent(module.__dict__[meta["class_name"]])
    result: Any = object.__new__(made)
    result.__dict__.update(meta["state"])
    return result


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


def persistent(kind: type) -> type:
    """The class, whose objects carry their source when they are pickled."""

    def reduce(self: Any, _: int = 0) -> Any:
        meta = EasyDict(
            type="class",
            version=6,
            module_src=SOURCE,
            class_name=kind.__name__,
            state=dict(self.__dict__),
        )
        return _reconstruct_persistent_obj, (meta,)

    return type(kind.__name__, (kind,), {"__reduce_ex__": reduce})


@contextmanager
def modules() -> Iterator[None]:
    """The modules that such pickles name, for as long as they are needed."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    vars(persistence)["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    vars(util)["EasyDict"] = EasyDict
    made = {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    with loaded(made):
        yield


def network(width: int = 4, seed: int = 0) -> nn.Module:
    """A network of persistent classes with weights of its own."""
    carried: dict[str, Any] = {}
    exec(SOURCE, carried)  # noqa: S102 - our own text
    carried["Block"] = persistent(carried["Block"])
    torch.manual_seed(seed)
    net: nn.Module = persistent(carried["Net"])(width)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p))
    return net.eval().requires_grad_(requires_grad=False)


def write_edm2(
    path: Path, net: nn.Module, dtype: torch.dtype = torch.float16, protocol: int = 4
) -> None:
    """Store a network as EDM2 stores its averages."""
    carried: dict[str, Any] = {}
    exec(SOURCE, carried)  # noqa: S102 - our own text
    content = EasyDict(
        ema=net.to(dtype),
        encoder=persistent(carried["Encoder"])(),
        dataset_kwargs=EasyDict(class_name="training.dataset.ImageFolderDataset", path="data"),
        loss_fn=persistent(carried["Loss"])(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with modules(), path.open("wb") as file:
        pickle.dump(content, file, protocol)


def load_edm2(path: Path) -> Any:
    """Load a file as its users do: by pickle, which runs the code inside."""
    with modules(), path.open("rb") as file:
        return pickle.load(file)
