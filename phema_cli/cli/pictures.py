"""Pictures by matplotlib: their style, and files that are the same for the same data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phema_cli.errors import StorageError, UsageError
from phema_cli.profiles import sigma_rel_from_gamma
from phema_cli.system.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: endings of pictures, and the metadata to leave out because they differ from run to run.
_ENDINGS: dict[str, dict[str, Any]] = {
    ".pdf": {"CreationDate": None},
    ".png": {},
    ".svg": {"Date": None},
}
#: part of the axis that a band has at least which is named.
_NAMED = 0.05
#: inches: one column of a paper.
COLUMN = 3.4
#: the colours of M. Okabe and K. Ito, for the colour-blind too, without their yellow.
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
#: the colours of verdicts' bands.
BANDS = {"good": "#e2f3e6", "fair": "#fdf3d6", "poor": "#fbe3dc"}
#: sigma_rel as a formula.
SIGMA = r"$\sigma_{\mathrm{rel}}$"
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
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
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
    """Refuse a picture that could not be written, before there is work to lose.

    Raises:
        UsageError: matplotlib is missing, the ending is unknown, or the file exists and
            ``overwrite`` is false.
        StorageError: there is no such directory.
    """
    if path.suffix.lower() not in _ENDINGS:
        what = f"{path.suffix!r} is not a picture format" if path.suffix else "has no ending"
        raise UsageError(what, where=path, remedy=f"use {', '.join(_ENDINGS)}")
    try:
        import matplotlib.figure  # noqa: F401 - only whether it can be imported
    except ImportError as error:
        raise UsageError(
            "pictures need matplotlib", where=path, remedy='pip install "phema-cli[plot]"'
        ) from error
    if path.exists() and not path.is_dir() and not overwrite:
        raise UsageError("exists already", where=path, remedy="pass --overwrite")
    check_place(path)


def check_place(path: Path) -> None:
    """Refuse a file that could not be written.

    Raises:
        UsageError: it is a directory.
        StorageError: there is no such directory.
    """
    if path.is_dir():
        raise UsageError("is a directory", where=path, remedy="pass a file in it")
    if not path.parent.is_dir():
        raise StorageError("no such directory", where=path.parent, remedy="create it first")


@contextmanager
def picture(path: Path, size: tuple[float, float], *, overwrite: bool) -> Iterator[Figure]:
    """An empty figure; when the block ends it is written to ``path``, whole or not at all.

    Args:
        path: its ending says the format.
        size: inches.
        overwrite: whether a file of that name is replaced.

    Errors as :func:`check`, and StorageError where it can't be written.
    """
    check(path, overwrite=overwrite)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ending = path.suffix.lower()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names may have letters that the font lacks; it shows boxes for them.
        warnings.filterwarnings("ignore", message="Glyph ")
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        # Into bytes, so that lines end alike on every system.
        with whole(path) as unfinished, unfinished.open("wb") as stream:
            figure.savefig(stream, format=ending[1:], metadata=_ENDINGS[ending])


def plain(label: str) -> str:
    """A label from outside, without control characters or formulas."""
    return "".join(c if c.isprintable() else "?" for c in label).replace("$", r"\$")


def sigma_axis(axes: Axes) -> None:
    """Label the horizontal axis as sigma_rel, and the upper edge with the gammas there."""
    low, high = axes.get_xlim()
    axes.set_xlim(low, high)
    axes.set_xlabel(SIGMA)
    is_log = axes.get_xscale() == "log"

    def place(sigma: float) -> float:
        if is_log:
            return math.log(sigma / low) / math.log(high / low)
        return (sigma - low) / (high - low)

    # From the longest average on, the gammas whose numbers have room.
    ticks: list[tuple[float, int]] = []
    for gamma in _GAMMAS:
        sigma = sigma_rel_from_gamma(gamma)
        if low <= sigma <= high and (not ticks or place(ticks[-1][0]) - place(sigma) > _ROOM):
            ticks.append((sigma, gamma))
    upper = axes.secondary_xaxis("top")
    upper.set_xticks([s for s, _ in ticks], [str(g) for _, g in ticks])
    upper.set_xticks([], minor=True)
    upper.set_xlabel("$\\gamma$", labelpad=3)
    upper.spines["top"].set_visible(False)
    upper.tick_params(pad=1)


def draw_bands(axes: Axes, bands: Sequence[tuple[float, float, str]]) -> None:
    """How good targets are expected to be, behind all else, and named above the lower edge.

    Args:
        axes: whose limits are set.
        bands: ends and verdict of each, ascending; the first and the last go to the edges.
    """
    import numpy as np

    scale = axes.xaxis.get_transform()
    low, high = axes.get_xlim()
    for i, (start, end, verdict) in enumerate(bands):
        left, right = low if i == 0 else start, high if i == len(bands) - 1 else end
        if verdict not in BANDS:
            continue
        axes.axvspan(left, right, color=BANDS[verdict], linewidth=0, zorder=0)
        edges = scale.transform(np.array([low, left, right, high]))
        if edges[2] - edges[1] > _NAMED * (edges[3] - edges[0]):
            middle = float(scale.inverted().transform(edges[1:3].mean()))
            axes.text(
                *(middle, 0.01, verdict),
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=6,
                color="0.4",
            )
