"""``phema plot``: profiles, weights and the reachable range, as a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import options, render
from phema_cli.errors import UsageError
from phema_cli.request import SOLVING, SOURCES, TARGETS, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phema_cli.cli.plot_picture import Plotted
    from phema_cli.estimate.solve import Measured
    from phema_cli.profiles import Profile
    from phema_cli.snapshots import Snapshot

_MOST_TARGETS = 8
#: sigma_rel of the reachable range as it is drawn: 0.0100, 0.0125, ..., 0.2875.
_REACH = tuple(round(0.0025 * i, 4) for i in range(4, 116))

Output = Annotated[
    Path | None,
    options.option(
        "--output",
        "-o",
        help="Picture to write: .png, .svg or .pdf. Not needed with --json.",
        metavar="FILE",
    ),
]
Width = Annotated[
    float,
    options.option(
        "--width", help="Width of the picture in inches.", min=3, max=20, metavar="INCHES"
    ),
]
Overwrite = Annotated[bool, options.option("--overwrite", help="Replace a picture that exists.")]


@options.command
def plot(
    paths: options.Paths,
    *,
    request: Annotated[Request, TARGETS | SOLVING | SOURCES],
    output: Output = None,
    width: Width = 7.0,
    overwrite: Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    r"""Draw target and achieved profiles, the weights, and the errors of the reachable range.

    Pictures need matplotlib: [bold]pip install "phema-cli\[plot]"[/]

    Examples:
      The EMA of gamma 7:
        $ phema plot ckpts/ --gamma 7 -o gamma7.svg

      Two targets, seven inches wide:
        $ phema plot ckpts/ --gamma 4,30 -o targets.pdf --width 7

      The curves as numbers:
        $ phema plot ckpts/ --sigma-rel 0.1 --json
    """
    from phema_cli.cli import pictures, plot_picture
    from phema_cli.estimate.solve import measure, scan_for
    from phema_cli.estimate.targets import hints, make_targets

    if output is not None:
        pictures.check(output, overwrite=overwrite)
    elif not json:
        raise UsageError(
            "a picture needs a file", remedy="pass -o FILE, or --json for the curves as numbers"
        )
    scan = scan_for(paths, request)
    snapshots = scan.require()
    targets = make_targets(snapshots, request)
    if output is not None and len(targets) > _MOST_TARGETS:
        raise UsageError(
            f"{len(targets)} targets do not fit into one picture",
            remedy=f"pass at most {_MOST_TARGETS}",
        )
    measured = measure(scan, request)
    measured.tags.require()
    plotted = _solve(snapshots, targets, measured, request)
    if output is not None:
        plot_picture.draw(plotted, output, width=width, overwrite=overwrite)
    findings = [*scan.findings, *measured.tags.findings, *hints(snapshots, targets)]
    render.findings(findings, stderr=True, quiet=quiet)
    if json:
        content = _document(plotted, request)
        render.document("plot", content | {"output": output and str(output)})
    else:
        render.line(output)


def _solve(
    snapshots: Sequence[Snapshot],
    targets: Sequence[Profile],
    measured: Measured,
    request: Request,
) -> Plotted:
    """The targets and the whole range, solved for in one call."""
    from phema_cli.cli.plot_picture import Panel, Plotted
    from phema_cli.estimate.solve import solve_snapshots
    from phema_cli.estimate.targets import make_targets
    from phema_cli.solver.curves import curves

    reach = make_targets(snapshots, Request(sigma_rel=_REACH, step=request.step))
    # Without a target it says so.
    wanted = [*targets, *reach] if targets else []
    solution = solve_snapshots(snapshots, wanted, measured, method=request.method, together=True)
    profiles = [s.tag.profile for s in snapshots]
    # All by the same quantity, so that they can be compared.
    dense = all(p.square_integrable for p in [*profiles, *targets])
    panels = [
        Panel(target, figures, curves(profiles, weights, target, dense=dense), weights)
        for target, figures, weights in zip(
            targets, solution.figures, solution.weights.T, strict=False
        )
    ]
    figures = solution.figures[len(targets) :]
    return Plotted(snapshots, panels, dict(zip(_REACH, figures, strict=True)))


def _document(plotted: Plotted, request: Request) -> dict[str, Any]:
    """The content of ``--json``."""
    from phema_cli.cli import listing, reachable
    from phema_cli.estimate.targets import target_step

    step = target_step(plotted.snapshots, request.step)
    return {
        "method": request.method,
        "unit": plotted.unit,
        "targets": [
            listing.target_entry(p.target, step, p.figures, plotted.snapshots, p.weights)
            | {"curves": asdict(p.curves) | {"difference": p.curves.difference}}
            for p in plotted.panels
        ],
        "reach": reachable.entries(plotted.reach),
    }
