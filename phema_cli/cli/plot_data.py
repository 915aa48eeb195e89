"""What ``phema plot`` shows: solved targets, their curves, and the reachable range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phema_cli.profiles import Profile, describe, gamma_from_sigma_rel
from phema_cli.request import Request
from phema_cli.snapshots import Scan, Snapshot
from phema_cli.solver import Figures
from phema_cli.solver.curves import Curves, curves

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: sigma_rel of the reachable range as it is drawn: 0.0100, 0.0125, ..., 0.2875.
REACH = tuple(round(0.0025 * i, 4) for i in range(4, 116))


@dataclass(frozen=True, slots=True)
class Panel:
    """A target, how well it is met, and by what.

    Attributes:
        target: its profile.
        figures: of the weights.
        curves: target and achieved profile.
        weights: (n,) of the snapshots.
    """

    target: Profile
    figures: Figures
    curves: Curves
    weights: NDArray[np.float64]

    @property
    def sigma_rel(self) -> float | None:
        """Where it lies in the reachable range, or None where it is no power function."""
        found = describe(self.target)["sigma_rel"]
        return found if isinstance(found, float) else None


@dataclass(frozen=True, slots=True)
class Plotted:
    """All that is drawn.

    Attributes:
        snapshots: n, oldest first.
        step: of the targets, as the trainer counts.
        method: how the weights were solved.
        panels: one a target.
        reach: figures of the targets of ``REACH``.
    """

    snapshots: Sequence[Snapshot]
    step: float
    method: str
    panels: Sequence[Panel]
    reach: Sequence[Figures]

    @property
    def unit(self) -> str:
        """What the time counts: steps, images or epochs."""
        return self.snapshots[-1].tag.unit

    @property
    def series(self) -> dict[str, list[int]]:
        """Snapshots by what the average is, as indices."""
        found: dict[str, list[int]] = {}
        for i, snapshot in enumerate(self.snapshots):
            gamma = snapshot.tag.gamma
            label = snapshot.tag.label if gamma is None else f"gamma {gamma:.6g}"
            found.setdefault(label, []).append(i)
        return found

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) times of the snapshots."""
        return np.array([s.tag.profile.end for s in self.snapshots])

    def reached(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """sigma_rel, sigma_error and expected_error of range and targets, errors in per cent."""
        points = dict(zip(REACH, self.reach, strict=True))
        points |= {p.sigma_rel: p.figures for p in self.panels if p.sigma_rel is not None}
        sigma = sorted(points)
        shift = [points[s].sigma_error for s in sigma]
        error = [100 * points[s].expected_error for s in sigma]
        return np.array(sigma), np.array(shift, dtype=float), np.array(error)

    def document(self) -> dict[str, Any]:
        """The content of ``--json``."""
        from phema_cli.synthesis.provenance import source_entry

        return {
            "method": self.method,
            "unit": self.unit,
            "targets": [
                {
                    **describe(p.target, self.step),
                    **asdict(p.figures),
                    "verdict": p.figures.verdict,
                    "sources": [
                        source_entry(s) | {"weight": float(w)}
                        for s, w in zip(self.snapshots, p.weights, strict=True)
                    ],
                    "curves": {
                        "quantity": p.curves.quantity,
                        "times": p.curves.times.tolist(),
                        "target": p.curves.target.tolist(),
                        "achieved": p.curves.achieved.tolist(),
                        "difference": p.curves.difference.tolist(),
                    },
                }
                for p in self.panels
            ],
            "reach": [
                {
                    "sigma_rel": sigma,
                    "gamma": gamma_from_sigma_rel(sigma),
                    **asdict(f),
                    "verdict": f.verdict,
                }
                for sigma, f in zip(REACH, self.reach, strict=True)
            ],
        }


def solve_plotted(scan: Scan, request: Request) -> Plotted:
    """Solve for the targets and for the whole range in one call.

    Errors as :func:`phema_cli.estimate.solve.make_targets` and
    :func:`phema_cli.estimate.solve.solve_snapshots`.
    """
    from phema_cli.estimate.solve import make_targets, measure, solve_snapshots, target_step

    snapshots = scan.require()
    targets = make_targets(snapshots, request)
    reach = make_targets(snapshots, Request(sigma_rel=REACH, step=request.step))
    measured = measure(scan, request)
    measured.tags.require()
    wanted = [*targets, *reach] if targets else []
    solution = solve_snapshots(snapshots, wanted, measured, method=request.method, together=True)
    profiles = [s.tag.profile for s in snapshots]
    # All alike, so that they can be compared.
    dense = all(p.square_integrable for p in [*profiles, *targets])
    panels = [
        Panel(target, figures, curves(profiles, weights, target, dense=dense), weights)
        for target, figures, weights in zip(
            targets, solution.figures, solution.weights.T, strict=False
        )
    ]
    step = target_step(snapshots, request.step)
    return Plotted(snapshots, step, request.method, panels, solution.figures[len(targets) :])
