"""``phema synthesize``: writes the checkpoints of the targets and prints their paths."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import groups, listing, options, parsing, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from phema_cli.snapshots import Scan
    from phema_cli.synthesis import Request
    from phema_cli.synthesis.ranks import Ranks
    from phema_cli.synthesis.recipe import Recipe


Output = Annotated[
    str | None,
    options.option(
        "--output",
        "-o",
        help="A file, a directory, or a name with {gamma}, {sigma_rel}, {profile}, {step}.",
        panel=options.OUTPUT,
        metavar="PATH",
    ),
]
MaxShardSize = Annotated[
    str | None,
    options.option(
        "--max-shard-size",
        help="Split outputs into shards of at most this size; 5GB by default.",
        panel=options.OUTPUT,
        metavar="SIZE",
    ),
]
MaxError = Annotated[
    float | None,
    options.option(
        "--max-error",
        help="Exit with 1 before writing when expected_error is above this.",
        panel=options.OUTPUT,
        metavar="X",
    ),
]
DryRun = Annotated[
    bool,
    options.flag("--dry-run", help="Show what would be done, write nothing.", panel=options.OUTPUT),
]
Overwrite = Annotated[
    bool, options.flag("--overwrite", help="Replace outputs that exist.", panel=options.OUTPUT)
]
SkipExisting = Annotated[
    bool,
    options.flag("--skip-existing", help="Leave outputs that exist alone.", panel=options.OUTPUT),
]
AllowNonfinite = Annotated[
    bool,
    options.flag("--allow-nonfinite", help="Average infinities and NaN instead of refusing."),
]


@groups.spread
def synthesize(
    paths: options.Paths,
    *,
    wanted: groups.Targets,
    solving: groups.Solving,
    output: Output = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    dtype: options.Dtype = None,
    max_shard_size: MaxShardSize = None,
    max_error: MaxError = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    sources: groups.Sources,
    copy: options.Copy = None,
    drop: options.Drop = None,
    jobs: options.Jobs = None,
    allow_nonfinite: AllowNonfinite = False,
    max_memory: options.MaxMemory = "256MiB",
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

      The path of the result in a shell's variable:
        $ OUT=$(phema synthesize --profile cooldown:last=0.2 ckpts/ --quiet)
    """
    from phema_cli.synthesis import Request, find_dtype
    from phema_cli.synthesis.execute import execute
    from phema_cli.synthesis.ranks import joined

    request = Request(
        gammas=wanted.gammas,
        sigma_rels=wanted.sigma_rels,
        profiles=wanted.profiles,
        step=solving.step,
        method=solving.method,
        sample=not solving.no_sample,
        output=output,
        form=format,
        dtype=find_dtype(dtype) if dtype else None,
        max_shard_bytes=parsing.size(max_shard_size),
        max_error=max_error,
        max_memory=parsing.size(max_memory) or 0,
        jobs=jobs,
        allow_nonfinite=allow_nonfinite,
        skip_existing=skip_existing,
    )
    find = partial(sources.scan, paths, sampled=not solving.no_sample, copy=copy, drop=drop)
    with joined() as ranks:
        if not ranks.leads:
            execute(None, processes=True, ranks=ranks)
            return
        shown = _Shown(quiet=quiet, figures=not (quiet or json or dry_run))
        recipe, outputs = _lead(ranks, find, request, shown, overwrite=overwrite, dry_run=dry_run)
    if json:
        render.document("synthesize", _document(recipe, outputs, dry_run=dry_run))
    elif dry_run:
        _show_plan(recipe, outputs)
    else:
        for path in outputs:
            render.line(path)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is said on stderr while the work goes on."""

    quiet: bool
    figures: bool


def _lead(
    ranks: Ranks,
    find: Callable[[], Scan],
    request: Request,
    shown: _Shown,
    *,
    overwrite: bool,
    dry_run: bool,
) -> tuple[Recipe | None, list[Path]]:
    """Decide, and have all ranks carry it out."""
    from phema_cli.synthesis import plan
    from phema_cli.synthesis.staging import check_outputs

    found = find()
    recipe, outputs = plan(found, request)
    said = recipe.tags.findings if recipe is not None else ()
    render.findings([*found.findings, *said], stderr=True, quiet=shown.quiet)
    if recipe is not None:
        check_outputs(recipe, overwrite)
    if recipe is not None and shown.figures:
        _show_figures(recipe)
    if recipe is not None and not dry_run:
        _carry_out(recipe, ranks, overwrite=overwrite, quiet=shown.quiet)
    return recipe, outputs


def _carry_out(recipe: Recipe, ranks: Ranks, *, overwrite: bool, quiet: bool) -> None:
    """Execute the recipe, or this rank's share of it."""
    from phema_cli.synthesis.execute import execute

    total = (recipe.read_bytes + recipe.write_bytes) // ranks.size
    with render.progress("synthesizing", total, quiet=quiet) as progress:
        execute(recipe, overwrite=overwrite, progress=progress, processes=True, ranks=ranks)


def _show_figures(recipe: Recipe) -> None:
    """How good each target will be, on stderr."""
    table = render.figures_table(recipe.targets, recipe.solution.figures)
    render.show(table, render.console(stderr=True))


def _document(recipe: Recipe | None, outputs: list[Path], *, dry_run: bool) -> dict[str, Any]:
    """The content of ``--json``."""
    from phema_cli.profiles import describe
    from phema_cli.synthesis.provenance import source_entry

    content: dict[str, Any] = {"dry_run": dry_run, "outputs": [str(p) for p in outputs]}
    if recipe is None:
        return content | {"targets": []}
    return content | {
        "method": recipe.method,
        "evidence": recipe.tags.entry(),
        "format": recipe.form,
        "targets": [
            {
                "path": str(o.path),
                **describe(t, recipe.step),
                **asdict(f),
                "verdict": f.verdict,
                "files": [str(file.path) for file in o.files],
            }
            for o, t, f in zip(recipe.outputs, recipe.targets, recipe.solution.figures, strict=True)
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


def _show_plan(recipe: Recipe | None, outputs: list[Path]) -> None:
    """The plan of ``--dry-run``, on stdout."""
    written = [] if recipe is None else [o.path for o in recipe.outputs]
    for path in outputs:
        if path not in written:
            render.line(f"would skip {path}: it exists")
    if recipe is None:
        return
    _show_figures(recipe)
    out = render.console()
    for output in recipe.outputs:
        shards = f" in {len(output.files)} shards" if output.index else ""
        out.print(
            f"would write {render.plain(output.path)} ({recipe.form}, "
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
