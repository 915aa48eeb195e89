"""Which targets are reached how well: figures by sigma_rel, as a bar and as JSON entries."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from phema_cli.cli import render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phema_cli.solver import Figures

_BARS = {"good": "█", "fair": "▒", "poor": "░"}
_ASCII_BARS = {"good": "#", "fair": "+", "poor": "."}
_MEANINGS = {
    "good": "expected error as if sigma_rel were off by at most 1 %",
    "fair": "by at most 10 %",
    "poor": "by more",
}


def entries(reach: Mapping[float, Figures]) -> list[dict[str, Any]]:
    """Figures by sigma_rel in a JSON document."""
    from phema_cli.profiles import gamma_from_sigma_rel

    return [
        {"sigma_rel": s, "gamma": gamma_from_sigma_rel(s), **asdict(f), "verdict": f.verdict}
        for s, f in reach.items()
    ]


def show(reach: Mapping[float, Figures], step: float, method: str) -> None:
    """Draw the reachable range of sigma_rel, one cell a target.

    Args:
        reach: figures by sigma_rel, ascending.
        step: time of the targets, as the trainer counts.
        method: how they were solved.
    """
    from phema_cli.profiles import gamma_from_sigma_rel

    out = render.console()
    bars = _BARS if render.supports_unicode() else _ASCII_BARS
    signs = {v: f"[{render.STYLES[v]}]{bar}[/]" for v, bar in bars.items()}
    ticks = {i: s for i, s in enumerate(reach) if i == 0 or round(s * 1000) % 50 == 0}
    out.print(f"[bold]Targets at step {step:.10g}[/] by method {method}")
    out.print("  sigma_rel  " + _scale({i: f"{s:.2f}" for i, s in ticks.items()}))
    out.print("             " + "".join(signs[f.verdict] for f in reach.values()))
    out.print(
        "  gamma      " + _scale({i: f"{gamma_from_sigma_rel(s):.2g}" for i, s in ticks.items()})
    )
    for verdict, meaning in _MEANINGS.items():
        ranges = [
            f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
            for low, high in spans(reach, (verdict,))
        ]
        name = f"[{render.STYLES[verdict]}]{bars[verdict]} {verdict}[/]"
        out.print(f"  {name}  {', '.join(ranges) or 'none'}  [dim]{meaning}[/]")
    out.print()


def _scale(labels: Mapping[int, str]) -> str:
    """Labels, each beginning at its cell; one that would touch its neighbour is left out."""
    text = ""
    for at, label in labels.items():
        if len(text) < at or at == 0:
            text += " " * (at - len(text)) + label
    return text


def spans(reach: Mapping[float, Figures], verdicts: Sequence[str]) -> list[tuple[float, float]]:
    """First and last sigma_rel of each run of neighbours that have one of the verdicts."""
    runs = groupby(reach, key=lambda sigma_rel: reach[sigma_rel].verdict in verdicts)
    members = [list(run) for has_one, run in runs if has_one]
    return [(run[0], run[-1]) for run in members]
