"""The curve of a sweep as SVG inside a page: its colours are the page's, light and dark."""

import html
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from phema_cli.cli import render
from phema_cli.cli.axis import Axis, linear_axis, log_axis, tick_labels
from phema_cli.cli.sweep_curve import View

#: the picture, and the edges of the drawing in it; the axes' numbers and names lie beyond.
_WIDTH, _HEIGHT = 720.0, 380.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 84.0, 704.0, 52.0, 324.0
#: pixels between the outer points and the edges, and from which a band has room for its name.
_BESIDE, _WORD = 18.0, 50.0
_TICKS_ACROSS, _TICKS_UP = 7, 6


def escaped(text: object) -> str:
    """Text from outside, in a page."""
    return html.escape(render.printable(text), quote=True)


@dataclass(frozen=True, slots=True)
class _Place:
    """The axes, and where their numbers are in the drawing."""

    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        """Pixels from the left."""
        room = _RIGHT - _LEFT - 2 * _BESIDE
        return _LEFT + _BESIDE + float(self.x.part(np.array(value))) * room

    def down(self, value: float) -> float:
        """Pixels from the top."""
        part = float(self.y.part(np.array(value)))
        return _BOTTOM - part * (_BOTTOM - _TOP)


def svg(view: View) -> str:
    """The drawing; it has a name for those who can't see it."""
    place = _Place(log_axis(view.scale, _TICKS_ACROSS), linear_axis(view.heights, _TICKS_UP))
    best = escaped(f"best: {view.metric[view.best]:.6g} at {view.said(view.best)}")
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{best}">',
        *_bands(view, place),
        *_axes(view, place),
        *_levels(view, place),
        *_curve(view, place),
        *_points(view, place),
        "</svg>",
    ]
    return "\n".join(parts)


def _text(x: float, y: float, kind: str, words: str) -> str:
    """Words at a place, in a style of the page."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escaped(words)}</text>'


def _bands(view: View, place: _Place) -> Iterator[str]:
    """How good the targets were expected to be."""
    bands = view.bands()
    for i, (low, high, verdict) in enumerate(bands):
        left = _LEFT if i == 0 else place.across(low)
        right = _RIGHT if i == len(bands) - 1 else place.across(high)
        yield (
            f'<rect class="{escaped(verdict)}" x="{left:.1f}" y="{_TOP:.1f}" '
            f'width="{right - left:.1f}" height="{_BOTTOM - _TOP:.1f}"/>'
        )
        if right - left > _WORD:
            yield _text((left + right) / 2, _TOP - 8, "faint middle", verdict)


def _axes(view: View, place: _Place) -> Iterator[str]:
    """The axes with their numbers and names."""
    for tick, number in zip(place.y.ticks, tick_labels(place.y.ticks), strict=True):
        y = place.down(tick)
        yield f'<path class="grid" d="M{_LEFT:.1f} {y:.1f}H{_RIGHT:.1f}"/>'
        yield _text(_LEFT - 8, y + 4, "end", number)
    for tick, number in zip(place.x.ticks, tick_labels(place.x.ticks), strict=True):
        x = place.across(tick)
        yield f'<path class="axis" d="M{x:.1f} {_BOTTOM:.1f}v5"/>'
        yield _text(x, _BOTTOM + 19, "middle", number)
    yield f'<path class="axis" d="M{_LEFT:.1f} {_BOTTOM:.1f}H{_RIGHT:.1f}"/>'
    yield _text((_LEFT + _RIGHT) / 2, _HEIGHT - 10, "middle", view.family.label)
    yield f'<text x="4" y="18">{escaped(view.name)}</text>'


def _levels(view: View, place: _Place) -> Iterator[str]:
    """The baselines that have no length."""
    for _, level in view.levels:
        yield f'<path class="level" d="M{_LEFT:.1f} {place.down(level):.1f}H{_RIGHT:.1f}"/>'
    for name, level, side in view.named_levels():
        x, anchor = {
            "left": (_LEFT + 4, "start"),
            "center": ((_LEFT + _RIGHT) / 2, "middle"),
        }.get(side, (_RIGHT - 4, "end"))
        yield _text(x, place.down(level) - 4, f"faint {anchor}", name)


def _curve(view: View, place: _Place) -> Iterator[str]:
    """The line through the points, or fitted to them, with gaps where it is not shown."""
    pen, steps = "M", []
    for x, y in zip(*view.line(), strict=True):
        if not np.isfinite(y):
            pen = "M"
            continue
        # What is beyond the drawing by the height of an end of the fit stays in it.
        down = min(max(place.down(float(y)), _TOP), _BOTTOM)
        steps.append(f"{pen}{place.across(float(x)):.1f} {down:.1f}")
        pen = "L"
    yield f'<path class="curve" d="{" ".join(steps)}"/>'


def _points(view: View, place: _Place) -> Iterator[str]:
    """The evaluations as rings, with their errors, each with a text for a pointer over it."""
    for i in range(len(view.scale)):
        x, metric = place.across(float(view.scale[i])), float(view.metric[i])
        text = escaped(f"{view.records[i].profile}: {metric:.7g}")
        if view.beyond[i]:
            y, tip = (_TOP + 9, -7) if view.is_open_above else (_BOTTOM - 9, 7)
            yield (
                f'<path class="beyond" d="M{x - 4:.1f} {y:.1f}h8l-4 {tip}z">'
                f"<title>{text}</title></path>"
            )
            continue
        y, error = place.down(metric), float(view.error[i])
        if np.isfinite(error):
            low, high = place.down(metric - error), place.down(metric + error)
            yield f'<path class="error" d="M{x:.1f} {high:.1f}V{low:.1f}"/>'
        kind = "point good" if view.as_good[i] else "point"
        at = f'cx="{x:.1f}" cy="{y:.1f}"'
        yield f'<circle class="{kind}" {at} r="4"><title>{text}</title></circle>'
        if i == view.best:
            yield f'<circle class="best" {at} r="9"/>'
