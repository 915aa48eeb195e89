"""``phema weights``: solves only, and shows the weights and the figures."""

from typing import Annotated

from phema_cli.cli import options, render
from phema_cli.request import SOLVING, SOURCES, TARGETS, Request


@options.command
def weights(
    paths: options.Paths,
    *,
    request: Annotated[Request, TARGETS | SOLVING | SOURCES],
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Solve for targets and show the weights of the snapshots, without writing anything.

    The figures say how good the targets would be, before a tensor is averaged. expected_error is a
    fraction of the distance by which averaging moves the last weights. sigma_error is the error in
    sigma_rel that would do the same harm: good up to 1 %, fair up to 10 %, poor above.

    Examples:
      The snapshots that weigh most in the EMA of gamma 7:
        $ phema weights ckpts/ --gamma 7

      All of them, without reading tensors:
        $ phema weights ckpts/ --gamma 7 --no-sample --verbose

      Several targets by sigma_rel, as the paper's algorithm weighs them:
        $ phema weights ckpts/ --sigma-rel 0.05,0.10,...,0.20 --method projection

      The uniform average of the last fifth of training, for a script:
        $ phema weights ckpts/ --profile uniform:last=0.2 --json
    """
    from phema_cli.cli import listing
    from phema_cli.estimate.solve import measure, scan_for, solve_snapshots
    from phema_cli.estimate.targets import hints, make_targets, target_step

    scan = scan_for(paths, request)
    snapshots = scan.require()
    targets = make_targets(snapshots, request)
    measured = measure(scan, request)
    measured.tags.require()
    solution = solve_snapshots(snapshots, targets, measured, method=request.method)
    findings = [*scan.findings, *measured.tags.findings, *hints(snapshots, targets)]
    render.findings(findings, stderr=True, quiet=quiet)
    if json:
        step = target_step(snapshots, request.step)
        solved = zip(targets, solution.figures, solution.weights.T, strict=True)
        content = {
            "method": request.method,
            "evidence": measured.tags.entry(),
            "targets": [listing.target_entry(t, step, f, snapshots, w) for t, f, w in solved],
        }
        render.document("weights", content)
        return
    out = render.console()
    render.show_figures(targets, solution.figures, out)
    out.print()
    listing.show_weights(snapshots, solution.weights, targets, verbose=verbose)
