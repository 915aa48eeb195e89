"""``phema plot``: profiles, weights and the reachable range, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from phema_cli.cli import options, render
from phema_cli.errors import UsageError
from phema_cli.request import SOLVING, SOURCES, TARGETS, Request

_MOST_TARGETS = 8

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
Overwrite = Annotated[bool, options.flag("--overwrite", help="Replace a picture that exists.")]


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

    Pictures need matplotlib: [bold]pip install 'phema-cli\[plot]'[/]

    Examples:
      The EMA of gamma 7:
        $ phema plot ckpts/ --gamma 7 -o gamma7.svg

      Two targets, seven inches wide:
        $ phema plot ckpts/ --gamma 4,30 -o targets.pdf --width 7

      The curves as numbers:
        $ phema plot ckpts/ --sigma-rel 0.1 --json
    """
    from phema_cli.cli import pictures, plot_picture
    from phema_cli.cli.plot_data import solve_plotted
    from phema_cli.estimate.proposal import scan_for

    if output is not None:
        pictures.check(output, overwrite=overwrite)
    elif not json:
        raise UsageError(
            "a picture needs a file", remedy="pass -o FILE, or --json for the curves as numbers"
        )
    scan = scan_for(paths, request)
    plotted = solve_plotted(scan, request)
    if output is not None and len(plotted.panels) > _MOST_TARGETS:
        raise UsageError(
            f"{len(plotted.panels)} targets are more than a picture holds",
            remedy=f"pass at most {_MOST_TARGETS}",
        )
    if output is not None:
        plot_picture.draw(plotted, output, width=width, overwrite=overwrite)
    if json:
        render.document("plot", plotted.document() | {"output": output and str(output)})
    else:
        render.findings(scan.findings, stderr=True, quiet=quiet)
        render.line(output)
