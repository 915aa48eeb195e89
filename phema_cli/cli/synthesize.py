"""``phema synthesize``: writes the checkpoints of the targets and prints their paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phema_cli.cli import options, render
from phema_cli.request import Request

if TYPE_CHECKING:
    from pathlib import Path

    from phema_cli.synthesis.recipe import Recipe


@options.command
def synthesize(
    paths: options.Paths,
    *,
    request: Request,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the EMA of each target gamma, and print the path of each, one a line.

    All targets are made in one pass over the snapshots, tensor by tensor; no checkpoint is held in
    memory. Outputs appear complete or not at all: after an interruption the same command goes on
    where it was. Integers and booleans are copied from the newest snapshot. Each output records
    its target, its sources and their weights, which phema verify checks.

    Exits with 1, before anything is written, where a target's expected_error is above --max-error;
    with 2 where an output exists and neither --overwrite nor --skip-existing is given.

    Examples:
      The EMA of gamma 7, in the working directory:
        $ phema synthesize --gamma 7 ckpts/

      Four lengths, in bfloat16, into a directory:
        $ phema synthesize -s 0.05,0.10,...,0.20 ckpts/ -o emas/ --dtype bf16

      A file for torch.load; no file if it were to be far from the true EMA:
        $ phema synthesize --gamma 7 ckpts/ -o ema.pt --max-error 0.01

      What would be done, at an earlier step, by a name of your own:
        $ phema synthesize -g 7 ckpts/ --step 500 -o 'at-{step}/ema.pt' --dry-run

      The plain mean of the last five checkpoints of one average:
        $ phema synthesize --profile checkpoints:last=5 ckpts/ --select '*gamma5*'

      The path of the result in a shell's variable:
        $ OUT=$(phema synthesize --profile decay:last=0.2 ckpts/ --quiet)
    """
    from phema_cli.estimate.solve import scan_for
    from phema_cli.snapshots.base import notice
    from phema_cli.synthesis.execute import execute
    from phema_cli.synthesis.recipe import make_recipe
    from phema_cli.synthesis.staging import check_outputs
    from phema_cli.system.ranks import joined

    with joined() as ranks:
        if not ranks.leads:
            execute(None, processes=True, ranks=ranks)
            return
        scan = scan_for(paths, request)
        recipe, outputs = make_recipe(scan, request)
        written = [] if recipe is None else [o.path for o in recipe.outputs]
        skipped = [path for path in outputs if path not in written]
        findings = [*scan.findings, *(recipe.findings if recipe else ())]
        # A dry run says that on stdout.
        told = () if request.dry_run else skipped
        findings += [notice("exists already, and is left as it is", str(p)) for p in told]
        render.findings(findings, stderr=True, quiet=quiet)
        if recipe is not None:
            check_outputs(recipe)
            if not (quiet or json or request.dry_run):
                out = render.console(stderr=True)
                render.show_figures(recipe.targets, recipe.figures, out)
            if not request.dry_run:
                total = (recipe.read_bytes + recipe.write_bytes) // ranks.size
                with render.progress("synthesizing", total, quiet=quiet) as progress:
                    execute(recipe, progress=progress, processes=True, ranks=ranks)
    if json:
        render.document("synthesize", _document(recipe, outputs, dry_run=request.dry_run))
    elif request.dry_run:
        _show_plan(recipe, skipped)
    else:
        for path in outputs:
            render.line(path)


def _document(recipe: Recipe | None, outputs: list[Path], *, dry_run: bool) -> dict[str, Any]:
    """The content of ``--json``."""
    from phema_cli.cli import reachable
    from phema_cli.profiles import describe
    from phema_cli.synthesis.provenance import source_entry

    content: dict[str, Any] = {"dry_run": dry_run, "outputs": [str(p) for p in outputs]}
    if recipe is None:
        return content | {"targets": []}
    return content | {
        "method": recipe.request.method,
        "evidence": recipe.tags.entry(),
        "format": recipe.format,
        "targets": [
            {
                "path": str(o.path),
                **describe(t, recipe.step),
                **reachable.entry(f),
                "files": [str(file.path) for file in o.files],
            }
            for o, t, f in zip(recipe.outputs, recipe.targets, recipe.figures, strict=True)
        ],
        "sources": [
            source_entry(s) | {"weights": [float(w) for w in row]}
            for s, row in zip(recipe.sources, recipe.weights, strict=True)
        ],
        "jobs": recipe.jobs,
        "read_bytes": recipe.read_bytes,
        "write_bytes": recipe.write_bytes,
        "peak_bytes": recipe.peak_bytes,
    }


def _show_plan(recipe: Recipe | None, skipped: list[Path]) -> None:
    """The plan of ``--dry-run``, on stdout."""
    from phema_cli.cli import listing

    for path in skipped:
        render.line(f"would skip {path}: it exists")
    if recipe is None:
        return
    err, out = render.console(stderr=True), render.console()
    render.show_figures(recipe.targets, recipe.figures, err)
    for output in recipe.outputs:
        shards = f" in {len(output.files)} shards" if output.index else ""
        out.print(
            f"would write {render.plain(output.path)} ({recipe.format}, "
            f"{render.size(output.size_bytes)}{shards})",
            soft_wrap=True,
        )
    copied = [t.name for t in recipe.tensors if not t.average]
    out.print(
        f"from {render.counted(len(recipe.sources), 'source')}, "
        f"{render.counted(len(recipe.tensors), 'tensor')}, "
        f"{len(copied)} of them copied"
    )
    out.print(
        f"reading {render.size(recipe.read_bytes)}, writing {render.size(recipe.write_bytes)}, "
        f"with {recipe.jobs} jobs in buffers of {render.size(recipe.peak_bytes)}"
    )
    listing.show_weights(recipe.sources, recipe.weights, recipe.targets, verbose=False)
