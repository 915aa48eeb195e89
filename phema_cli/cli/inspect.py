"""``phema inspect``: which snapshots there are, and which targets they reach how well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from phema_cli.cli import options, render
from phema_cli.request import GRID, SOLVING, SOURCES, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phema_cli.estimate.evidence import TagCheck
    from phema_cli.snapshots import Finding, Scan
    from phema_cli.solver import Figures, Movement

#: rows of the table of movement, at most.
_MOVEMENT_ROWS = 12


@options.command
def inspect(
    paths: options.Paths,
    context: typer.Context,
    *,
    request: Annotated[Request, SOURCES | SOLVING],
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    r"""Show the snapshots found, what is wrong with them, and which targets can be reached.

    Reads headers, and a sample of the tensors to learn how they move and are rounded. The average
    and the step of a snapshot come from the command line, phema.toml, the file's metadata or its
    name, in this order. The bar shows for each sigma_rel how far a target would be from the true
    EMA, as the error in sigma_rel that would do the same harm.

    Exits with 3 if something prevents a synthesis, or with 4 if that is an unsafe pickle.

    Examples:
      What a directory of snapshots can give:
        $ phema inspect ckpts/

      Each snapshot, where its tag was read, and how the weights moved:
        $ phema inspect ckpts/ --verbose

      Names of your own, with an index that counts gammas:
        $ phema inspect odd/ --pattern '(?P<index>\d)_(?P<step>\d+)' --gammas 5,10

      Which targets there will be at an earlier step, for a script:
        $ phema inspect ckpts/ --step 500 --json
    """
    from phema_cli.cli import listing, reachable
    from phema_cli.estimate.solve import scan_for

    scan = scan_for(paths, request)
    findings = list(scan.findings)
    reach, movement, tags = _solve(scan, request, findings)
    errors = [f for f in findings if f.level == "error"]
    if json:
        content = {
            "snapshots": [listing.entry(s) for s in scan.snapshots],
            "findings": [
                {
                    "level": f.level,
                    "where": f.error.where,
                    "what": f.error.what,
                    "remedy": f.error.remedy,
                }
                for f in findings
            ],
            "method": request.method,
            "targets": reachable.entries(reach),
            "movement": _movement(movement),
            "evidence": tags.entry(),
        }
        render.document("inspect", content)
    else:
        listing.show(scan.snapshots, verbose)
        if reach:
            last = scan.snapshots[-1].tag.step
            reachable.show(reach, request.step or last, request.method)
        if movement is not None and verbose:
            _show_movement(movement)
        render.findings(findings, stderr=False, quiet=quiet)
        render.suggestion(context.obj, errors)
    if errors:
        raise typer.Exit(errors[0].error.exit_code)


def _solve(
    scan: Scan, request: Request, findings: list[Finding]
) -> tuple[Mapping[float, Figures], Movement | None, TagCheck]:
    """Figures of the reachable range, how the weights moved, and how far the tags are confirmed.

    Without figures something prevents a synthesis; it is added to the findings.
    """
    from phema_cli.cli.reachable import unmoved
    from phema_cli.errors import InputError
    from phema_cli.estimate.evidence import TagCheck
    from phema_cli.estimate.solve import measure, solve_snapshots
    from phema_cli.estimate.targets import make_targets
    from phema_cli.snapshots import Finding

    tags = TagCheck()
    if not scan.snapshots or any(f.level == "error" for f in findings):
        return {}, None, tags
    targets = make_targets(scan.snapshots, Request(sigma_rel=GRID, step=request.step))
    try:
        measured = measure(scan, request)
        tags = measured.tags
        findings += tags.findings
        if tags.state == "contradicted":
            return {}, None, tags
        solution = solve_snapshots(
            scan.snapshots, targets, measured, method=request.method, together=True
        )
    except InputError as error:
        findings.append(Finding("error", error))
        return {}, None, tags
    reach = dict(zip(GRID, solution.figures, strict=True))
    still = unmoved(reach)
    if still is not None:
        what = f"the weights hardly move at the end: every sigma_rel up to {still:g} gives the same"
        told = InputError(f"{what} weights, within the rounding of float16")
        findings.append(Finding("notice", told))
    return reach, solution.movement, tags


def _movement(movement: Movement | None) -> dict[str, Any] | None:
    """How the weights moved, in a JSON document."""
    if movement is None:
        return None
    return {
        "measured": movement.measured,
        "steps": movement.times,
        "drift": movement.drift,
        "blocks": movement.blocks,
        "roughness": movement.roughness,
        "jitter": movement.jitter,
        "rounding_rms": float(movement.rounding.variance**0.5),
    }


def _show_movement(movement: Movement) -> None:
    """Print how the weights moved."""
    import numpy as np

    out = render.console()
    if not movement.measured:
        out.print("[bold]Movement[/] assumed: a random walk in log time", end="\n\n")
        return
    out.print(
        "[bold]Movement[/] measured from a sample: RMS distance per square root of a step, and "
        "what differs between snapshots"
    )
    rows = np.unique(np.linspace(0, len(movement.times) - 1, _MOVEMENT_ROWS).astype(int))
    # The block of each time; blocks are known by their ends.
    blocks = np.searchsorted(movement.blocks * (1 + 1e-9), movement.times)[rows]
    columns = [
        ("step", [f"{time:.6g}" for time in movement.times[rows]]),
        ("drift", [f"{drift**0.5:.2e}" for drift in movement.drift[rows]]),
        ("roughness", [f"{roughness:.2f}" for roughness in movement.roughness[blocks]]),
        ("jitter", [f"{jitter:.3g} steps" for jitter in movement.jitter[blocks]]),
    ]
    render.show(columns, out, right=("step", "drift"))
    out.print(f"rounding of stored values: {movement.rounding.variance**0.5:.2e} RMS")
    out.print()
