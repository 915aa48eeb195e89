"""phema: post-hoc EMA reconstruction (Karras et al., arXiv:2312.02696).

``PowerEMA`` keeps power-function averages during training; ``scan``, ``solve`` and ``synthesize``
build the average of any other gamma afterwards. ``average`` hands it over tensor by tensor,
``load_into`` and ``swapped`` put it into a model. They are imported when they are first used, so
that ``import phema_cli`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phema_cli._version import __version__

if TYPE_CHECKING:
    from phema_cli.api import average, synthesize
    from phema_cli.integrations import load_into, swapped
    from phema_cli.snapshots import scan
    from phema_cli.solver import solve
    from phema_cli.tracker import PowerEMA

__all__ = [
    "PowerEMA",
    "__version__",
    "average",
    "load_into",
    "scan",
    "solve",
    "swapped",
    "synthesize",
]

_HOMES = {
    "PowerEMA": "phema_cli.tracker",
    "average": "phema_cli.api",
    "load_into": "phema_cli.integrations",
    "scan": "phema_cli.snapshots",
    "solve": "phema_cli.solver",
    "swapped": "phema_cli.integrations",
    "synthesize": "phema_cli.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module has under that name
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
