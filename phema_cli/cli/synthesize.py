"""``phema synthesize``: writes the checkpoints of the targets and prints their paths."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import options, render

if TYPE_CHECKING:
    from phema_cli.synthesis.recipe import Recipe

_OUTPUT = "Output"

Output = Annotated[
    str | None,
    options.option(
        "--output",
        "-o",
        help="A file, a directory, or a name with {gamma}, {sigma_rel}, {profile}, {step}.",
        panel=_OUTPUT,
        metavar="PATH",
    ),
]
Format = Annotated[
    str | None,
    options.option(
        "--format",
        help="safetensors, torch or edm2; by the ending of -o by default, else safetensors.",
        panel=_OUTPUT,
        metavar="NAME",
    ),
]
Dtype = Annotated[
    str | None,
    options.option(
        "--dtype",
        help="Type of averaged tensors: float32, float16, bfloat16, ...; as stored by default.",
        panel=_OUTPUT,
        metavar="TYPE",
    ),
]
MaxShardSize = Annotated[
    str | None,
    options.option(
        "--max-shard-size",
        help="Split outputs into shards of at most this size; 5GB by default.",
        panel=_OUTPUT,
        metavar="SIZE",
    ),
]
MaxError = Annotated[
    float | None,
    options.option(
        "--max-error",
        help="Exit with 1 before writing when expected_error is above this.",
        panel=_OUTPUT,
        metavar="X",
    ),
]
DryRun = Annotated[
    bool, options.option("--dry-run", help="Show what would be done, write nothing.", panel=_OUTPUT)
]
Overwrite = Annotated[
    bool, options.option("--overwrite", help="Replace outputs that exist.", panel=_OUTPUT)
]
SkipExisting = Annotated[
    bool, options.option("--skip-existing", help="Leave outputs that exist alone.", panel=_OUTPUT)
]
Jobs = Annotated[
    int | None,
    options.option(
        "--jobs", "-j", help="Worker threads; one per processor by default.", min=1, metavar="N"
    ),
]
MaxMemory = Annotated[
    str,
    options.option(
        "--max-memory", help="Memory to use above what torch itself takes.", metavar="SIZE"
    ),
]


def synthesize(
    paths: options.Paths,
    *,
    gamma: options.Gamma = None,
    sigma_rel: options.SigmaRel = None,
    profile: options.Profile = None,
    step: options.Step = None,
    method: options.Method = "blue",
    no_sample: options.NoSample = False,
    output: Output = None,
    format: Format = None,  # noqa: A002 - the option's name
    dtype: Dtype = None,
    max_shard_size: MaxShardSize = None,
    max_error: MaxError = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    pattern: options.Pattern = None,
    gammas: options.Gammas = None,
    sigma_rels: options.SigmaRels = None,
    average: options.Average = None,
    raw: options.Raw = False,
    update_every: options.UpdateEvery = None,
    steps_per_epoch: options.StepsPerEpoch = None,
    key: options.Key = None,
    names_from: options.NamesFrom = None,
    select: options.Select = None,
    exclude: options.Exclude = None,
    copy: options.Copy = None,
    jobs: Jobs = None,
    max_memory: MaxMemory = "256MiB",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the EMA of each target gamma, and print the path of each, one a line.

    All targets are made in one pass over the snapshots.

    Example: [bold]phema synthesize --gamma 7 ckpts/[/]
    """
    from phema_cli.snapshots import scan
    from phema_cli.synthesis import Request, find_dtype, plan

    request = Request(
        gammas=options.numbers(gamma),
        sigma_rels=options.numbers(sigma_rel),
        profiles=options.profiles(profile),
        step=step,
        method=method,
        sample=not no_sample,
        output=output,
        form=format,
        dtype=find_dtype(dtype) if dtype else None,
        max_shard_bytes=options.size(max_shard_size),
        max_error=max_error,
        max_memory=options.size(max_memory) or 0,
        jobs=jobs,
        skip_existing=skip_existing,
    )
    config = options.config(
        pattern,
        gammas,
        sigma_rels,
        average,
        raw,
        update_every,
        steps_per_epoch,
        key,
        names_from,
        select,
        exclude,
        copy,
    )
    found = scan(paths, config)
    recipe, outputs = plan(found, request)
    render.findings(found.findings, stderr=True, quiet=quiet)
    if recipe is not None and not (quiet or json or dry_run):
        _show_figures(recipe)
    if recipe is not None:
        _carry_out(recipe, overwrite=overwrite, dry_run=dry_run, quiet=quiet)
    if json:
        render.document("synthesize", _document(recipe, outputs, dry_run=dry_run))
    elif dry_run:
        _show_plan(recipe, outputs)
    else:
        for path in outputs:
            render.line(path)


def _carry_out(recipe: Recipe, *, overwrite: bool, dry_run: bool, quiet: bool) -> None:
    """Execute the recipe, or see whether it could be."""
    from phema_cli.synthesis import check_outputs, execute

    if dry_run:
        check_outputs(recipe, overwrite)
        return
    total = recipe.read_bytes + recipe.write_bytes
    with render.progress("synthesizing", total, quiet=quiet) as progress:
        execute(recipe, overwrite=overwrite, progress=progress, processes=True)


def _show_figures(recipe: Recipe) -> None:
    """How good each target will be, on stderr."""
    table = render.figures_table(recipe.targets, recipe.solution.figures)
    render.console(stderr=True).print(table)


def _document(recipe: Recipe | None, outputs: list[Path], *, dry_run: bool) -> dict[str, Any]:
    """The content of ``--json``."""
    from phema_cli.profiles import describe
    from phema_cli.synthesis.provenance import source_entry

    content: dict[str, Any] = {"dry_run": dry_run, "outputs": [str(p) for p in outputs]}
    if recipe is None:
        return content | {"targets": []}
    return content | {
        "method": recipe.method,
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
        f"from {len(recipe.sources)} sources, {len(recipe.tensors)} tensors, "
        f"{len(copied)} of them copied"
    )
    out.print(
        f"reading {render.size(recipe.read_bytes)}, writing {render.size(recipe.write_bytes)}, "
        f"with {recipe.jobs} jobs in buffers of {render.size(recipe.peak_bytes)}"
    )
    table = render.table("source", *(t.label for t in recipe.targets))
    for source, row in zip(recipe.sources, recipe.weights, strict=True):
        table.add_row(render.plain(source.name), *(f"{w:+.6f}" for w in row))
    out.print(table)
