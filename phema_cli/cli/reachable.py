"""Which targets are reached how well: figures by sigma_rel, as a bar and as JSON entries."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, pairwise
from typing import Any

from phema_cli.cli import render
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.solver import Figures
from phema_cli.solver.weights import HARMLESS

_BARS = {"good": "█", "fair": "▒", "poor": "░"}
_ASCII_BARS = {"good": "#", "fair": "+", "poor": "."}
#: blanks before the bar; cells of a piece of it, at least.
_MARGIN = " " * 13
_LEAST_CELLS = 20
_MEANINGS = {
    "good": "no worse than rounding to float16, or sigma_rel off by 1 %",
    "fair": "three times that, or off by 10 %",
    "poor": "worse",
}


def entry(figures: Figures) -> dict[str, Any]:
    """Figures in a JSON document."""
    return asdict(figures) | {"verdict": figures.verdict}


def entries(reach: Mapping[float, Figures]) -> list[dict[str, Any]]:
    """Figures by sigma_rel in a JSON document."""
    return [
        {"sigma_rel": s, "gamma": gamma_from_sigma_rel(s), **entry(f)} for s, f in reach.items()
    ]


def show(reach: Mapping[float, Figures], step: float, method: str) -> None:
    """Draw the reachable range of sigma_rel, one cell a target; in pieces where it has no room.

    Args:
        reach: figures by sigma_rel, ascending.
        step: time of the targets, as the trainer counts.
        method: how they were solved.
    """
    out = render.console()
    bars = _BARS if render.supports_unicode() else _ASCII_BARS
    out.print(f"[bold]Targets at step {step:.10g}[/] by method {method}")
    cells = list(reach)
    pieces = math.ceil(len(cells) / max(_LEAST_CELLS, out.width - len(_MARGIN)))
    length = math.ceil(len(cells) / pieces)
    for first in range(0, len(cells), length):
        for line in _bar(cells[first : first + length], reach, bars):
            out.print(line, soft_wrap=True)
    for verdict, meaning in _MEANINGS.items():
        ranges = [
            f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
            for low, high in spans(reach, (verdict,))
        ]
        name = f"[{render.STYLES[verdict]}]{bars[verdict]} {verdict}[/]"
        out.print(f"  {name}  {', '.join(ranges) or 'none'}  [dim]{meaning}[/]")
    out.print()


def _bar(
    shown: Sequence[float], reach: Mapping[float, Figures], bars: Mapping[str, str]
) -> list[str]:
    """Three lines: sigma_rel, a cell for each target that is shown, gamma."""
    signs = {v: f"[{render.STYLES[v]}]{bar}[/]" for v, bar in bars.items()}
    least = min(reach)
    ticks = [(i, s) for i, s in enumerate(shown) if s == least or round(s * 1000) % 50 == 0]
    gammas = [(i, gamma_from_sigma_rel(s)) for i, s in ticks]
    return [
        "  sigma_rel  " + render.in_places((i, f"{s:.2f}") for i, s in ticks),
        _MARGIN + "".join(signs[reach[s].verdict] for s in shown),
        "  gamma      " + render.in_places((i, f"{gamma:.2g}") for i, gamma in gammas),
    ]


def unmoved(reach: Mapping[float, Figures]) -> float | None:
    """The largest sigma_rel up to which averaging moves the weights by less than rounding does."""
    last = None
    for sigma_rel, figures in reach.items():
        if figures.moved is None or figures.moved > HARMLESS:
            break
        last = sigma_rel
    return last


def spans(reach: Mapping[float, Figures], verdicts: Sequence[str]) -> list[tuple[float, float]]:
    """First and last sigma_rel of each run of neighbours that have one of the verdicts."""
    runs = groupby(reach, key=lambda sigma_rel: reach[sigma_rel].verdict in verdicts)
    members = [list(run) for has_one, run in runs if has_one]
    return [(run[0], run[-1]) for run in members]


def bands(places: Sequence[float], verdicts: Iterable[str]) -> list[tuple[float, float, str]]:
    """Beginning, end and verdict of each range of one verdict; borders are halfway.

    Args:
        places: (n,) where targets lie, ascending; n is at least 1.
        verdicts: (n,) how good they are.
    """
    ends = [places[0], *((a + b) / 2 for a, b in pairwise(places)), places[-1]]
    parts = zip(pairwise(ends), verdicts, strict=True)
    runs = [(verdict, list(run)) for verdict, run in groupby(parts, key=lambda part: part[1])]
    return [(run[0][0][0], run[-1][0][1], verdict) for verdict, run in runs]
