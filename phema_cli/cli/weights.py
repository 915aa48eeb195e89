"""``phema weights``: solves only, and shows the weights and the figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from phema_cli.cli import listing, options, render
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
    """Solve for targets and show the weights of the snapshots; writes nothing.

    The figures say how good the targets would be, before a tensor is averaged. expected_error is a
    fraction of the distance by which averaging moves the last weights, sigma_error the error in
    sigma_rel that would do the same harm: good up to 1 %, fair up to 10 %, poor above.

    Examples:
      The snapshots that weigh most in the EMA of gamma 7:
        $ phema weights ckpts/ --gamma 7

      All of them, without a look at the tensors:
        $ phema weights ckpts/ --gamma 7 --no-sample --verbose

      Several targets by sigma_rel, as the paper's algorithm weighs them:
        $ phema weights ckpts/ --sigma-rel 0.05,0.10,...,0.20 --method projection

      The uniform average of the last fifth of training, for a script:
        $ phema weights ckpts/ --profile uniform:last=0.2 --json
    """
    from phema_cli.estimate.proposal import scan_for
    from phema_cli.estimate.solve import make_targets, measure, solve_snapshots, target_step
    from phema_cli.profiles import describe
    from phema_cli.synthesis.provenance import source_entry

    scan = scan_for(paths, request)
    snapshots = scan.require()
    targets = make_targets(snapshots, request)
    end = target_step(snapshots, request.step)
    measured = measure(scan, request)
    measured.tags.require()
    solution = solve_snapshots(snapshots, targets, measured, method=request.method)
    if json:
        content = [
            {
                **describe(t, end),
                **asdict(f),
                "verdict": f.verdict,
                "sources": [
                    source_entry(s) | {"weight": float(w)}
                    for s, w in zip(snapshots, solution.weights[:, k], strict=True)
                ],
            }
            for k, (t, f) in enumerate(zip(targets, solution.figures, strict=True))
        ]
        document = {"method": request.method, "evidence": measured.tags.entry()}
        render.document("weights", document | {"targets": content})
        return
    render.findings([*scan.findings, *measured.tags.findings], stderr=True, quiet=quiet)
    out = render.console()
    render.show(render.figures_table(targets, solution.figures), out)
    out.print()
    listing.show_weights(snapshots, solution.weights, targets, verbose=verbose)
