"""Pictures by matplotlib: the style of the house, and files that are the same for the same data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phema_cli.errors import StorageError, UsageError
from phema_cli.profiles import gamma_from_sigma_rel, sigma_rel_from_gamma

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: endings of pictures, and what of their metadata would differ from run to run.
ENDINGS: dict[str, dict[str, Any]] = {
    ".pdf": {"CreationDate": None},
    ".png": {},
    ".svg": {"Date": None},
}
#: inches: one column of a paper.
COLUMN = 3.4
#: M. Okabe and K. Ito's colours, which the colour-blind tell apart, without their yellow.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#7f7f7f",
)
FAINT = "0.6"
_DOTS_PER_INCH = 300
#: gammas to put at a sigma_rel axis, and the part of it that a number takes.
_GAMMAS = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000)
_ROOM = 0.06
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "0.3",
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "legend.borderaxespad": 0.2,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "savefig.dpi": _DOTS_PER_INCH,
    "svg.hashsalt": "phema",
    "xtick.color": "0.3",
    "xtick.labelcolor": "black",
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.color": "0.3",
    "ytick.labelcolor": "black",
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.4,
}


def check(path: Path, *, overwrite: bool) -> None:
    """Refuse a picture that could not be written, before the work for it begins.

    Raises:
        UsageError: matplotlib is missing, the ending is unknown, or the file exists and
            ``overwrite`` is false.
        StorageError: there is no such directory.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"no picture ends in {path.suffix!r}" if path.suffix else "has no ending",
            where=path,
            remedy=f"end it in {', '.join(ENDINGS)}",
        )
    try:
        import matplotlib.figure  # noqa: F401 - whether it can be
    except ImportError as error:
        raise UsageError(
            "pictures need matplotlib", where=path, remedy="pip install 'phema-cli[plot]'"
        ) from error
    if path.is_dir():
        raise UsageError("is a directory", where=path, remedy="name a file in it")
    if path.exists() and not overwrite:
        raise UsageError("exists already", where=path, remedy="pass --overwrite")
    if not path.parent.is_dir():
        raise StorageError("no such directory", where=path.parent, remedy="make it first")


@contextmanager
def picture(path: Path, size: tuple[float, float], *, overwrite: bool) -> Iterator[Figure]:
    """An empty figure; what is drawn on it is written to ``path`` at the end, whole or not at all.

    Args:
        path: its ending says the format.
        size: inches.
        overwrite: whether a file of that name is replaced.

    Errors as :func:`check`, and StorageError where it can't be written.
    """
    check(path, overwrite=overwrite)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write under another name, then rename."""
    ending = path.suffix.lower()
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with warnings.catch_warnings():
            # Names may have letters that the font lacks; it shows boxes for them.
            warnings.filterwarnings("ignore", message="Glyph ")
            figure.savefig(unfinished, format=ending[1:], metadata=ENDINGS[ending])
        os.replace(unfinished, path)  # noqa: PTH105 - as everywhere: replaces on every system
    except OSError as error:
        raise StorageError.wrap(error, path, "write") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def metric_picture(
    path: Path,
    points: Sequence[tuple[float, float]],
    best: tuple[float, float] | None,
    *,
    metric_label: str,
    overwrite: bool,
    part: tuple[float, float, float] | None = None,
) -> None:
    """A metric against sigma_rel, with the best marked.

    Args:
        path: where to; its ending says the format.
        points: sigma_rel and metric of each evaluation, in any order.
        best: the point to mark; it need not be one of ``points``.
        metric_label: what the metric is called, with its unit.
        overwrite: whether a file of that name is replaced.
        part: the least and the largest sigma_rel and the worst metric to show; all by default.

    Errors as :func:`picture`.
    """
    shown = np.array(sorted(points), dtype=float).reshape(-1, 2)
    shown = shown[np.isfinite(shown).all(axis=1)]
    with picture(path, (COLUMN, 2.4), overwrite=overwrite) as figure:
        axes = figure.subplots()
        axes.plot(*shown.T, "-o", color=COLOURS[0], markeredgecolor="white", markeredgewidth=0.5)
        if best is not None:
            axes.plot(*best, "o", color=COLOURS[1], markersize=6, zorder=3)
            found = f"sigma_rel {best[0]:.3g}, gamma {gamma_from_sigma_rel(best[0]):.3g}"
            axes.set_title(f"best: {best[1]:.4g} at {found}", color=COLOURS[1])
        axes.set_ylabel(metric_label)
        axes.margins(x=0.04, y=0.08)
        if best is not None and part is not None:
            low, high, edge = part
            room = 0.04 * (high - low)
            axes.set_xlim(low - room, high + room)
            axes.set_ylim(*sorted((best[1] + 0.08 * (best[1] - edge), edge)))
        sigma_axis(axes)


def sigma_axis(axes: Axes) -> None:
    """Label the horizontal axis as sigma_rel, and the upper edge with the gammas there."""
    low, high = axes.get_xlim()
    axes.set_xlim(low, high)
    axes.set_xlabel("sigma_rel")
    reached = [(sigma_rel_from_gamma(g), g) for g in _GAMMAS]
    inside = [(s, g) for s, g in reached if low <= s <= high]
    # From the longest average on, those that have room for their numbers.
    kept: list[tuple[float, float]] = []
    for sigma, gamma in inside:
        if not kept or kept[-1][0] - sigma > _ROOM * (high - low):
            kept.append((sigma, gamma))
    upper = axes.secondary_xaxis("top")
    upper.set_xticks([s for s, _ in kept], [f"{g:g}" for _, g in kept])
    upper.set_xlabel("gamma", labelpad=3)
    upper.spines["top"].set_visible(False)
    upper.tick_params(pad=1)
