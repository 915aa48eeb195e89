"""Which targets are reached how well: drawn as a bar, and as entries of JSON documents."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from phema_cli.cli import render
from phema_cli.request import GRID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phema_cli.solver import Figures

_BARS = {"good": "█", "fair": "▒", "poor": "░"}
_ASCII_BARS = {"good": "#", "fair": "+", "poor": "."}


def entries(figures: Sequence[Figures]) -> list[dict[str, Any]]:
    """The targets of the grid in a JSON document."""
    from phema_cli.profiles import gamma_from_sigma_rel

    return [
        {"sigma_rel": s, "gamma": gamma_from_sigma_rel(s), **asdict(f), "verdict": f.verdict}
        for s, f in zip(GRID, figures, strict=True)
    ]


def show(figures: Sequence[Figures], step: float, method: str) -> None:
    """The reachable range of sigma_rel, drawn: one cell a target.

    Args:
        figures: one for each of the grid.
        step: time of the targets, as the trainer counts.
        method: how they were solved.
    """
    from phema_cli.profiles import gamma_from_sigma_rel

    out = render.console()
    out.print(f"[bold]Targets at step {step:.10g}[/] by method {method}")
    bars = _BARS if render.unicode() else _ASCII_BARS
    bar = "".join(f"[{render.STYLES[f.verdict]}]{bars[f.verdict]}[/]" for f in figures)
    ticks = [0, *(i for i, sigma in enumerate(GRID) if round(sigma * 1000) % 50 == 0)]
    out.print("  sigma_rel  " + _scale({i: f"{GRID[i]:.2f}" for i in ticks}))
    out.print("             " + bar)
    out.print("  gamma      " + _scale({i: f"{gamma_from_sigma_rel(GRID[i]):.2g}" for i in ticks}))
    for verdict, meaning in (
        ("good", "expected error as if sigma_rel were off by at most 1 %"),
        ("fair", "by at most 10 %"),
        ("poor", "by more"),
    ):
        style, shown = render.STYLES[verdict], _written(spans(figures, (verdict,)))
        out.print(f"  [{style}]{bars[verdict]} {verdict}[/]  {shown}  [dim]{meaning}[/]")
    out.print()


def _scale(labels: dict[int, str]) -> str:
    """Labels, each beginning at its cell; one that would touch its neighbour is left out."""
    text = ""
    for at, label in sorted(labels.items()):
        if len(text) < at or at == 0:
            text += " " * (at - len(text)) + label
    return text


def spans(figures: Sequence[Figures], verdicts: Sequence[str]) -> list[tuple[float, float]]:
    """Ranges of neighbouring targets of the grid that have one of the verdicts: first and last."""
    found, start = [], None
    for i, yes in enumerate([*(f.verdict in verdicts for f in figures), False]):
        if yes and start is None:
            start = i
        elif not yes and start is not None:
            found.append((GRID[start], GRID[i - 1]))
            start = None
    return found


def _written(ranges: Sequence[tuple[float, float]]) -> str:
    """Ranges as text."""
    parts = (f"{a:.3f}" if a == b else f"{a:.3f} to {b:.3f}" for a, b in ranges)
    return ", ".join(parts) or "none"
