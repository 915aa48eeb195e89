"""``phema diff``: compares two checkpoints tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phema_cli.cli import completing, options, render
from phema_cli.request import Config

if TYPE_CHECKING:
    from phema_cli.verify.diff import Comparison

_LISTED = 10

First = Annotated[
    Path,
    typer.Argument(
        help="The checkpoint to compare with.", metavar="A", autocompletion=completing.paths
    ),
]
Second = Annotated[
    Path,
    typer.Argument(
        help="The checkpoint that is compared.", metavar="B", autocompletion=completing.paths
    ),
]
Tolerance = Annotated[
    float,
    options.option(
        "--tolerance", help="Relative difference up to which a tensor passes.", min=0.0, metavar="X"
    ),
]


@options.command
def diff(
    a: First,
    b: Second,
    *,
    tolerance: Tolerance = 0.0,
    config: Annotated[Config, frozenset({"key"})],
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare two checkpoints; exit with 1 where a tensor's relative difference is above tolerance.

    The relative difference of a tensor is the RMS of B - A over the RMS of A. Names and shapes
    must be the same; dtypes and file formats may differ.

    Exits with 1 as well where one of them has a tensor that the other lacks, or of another shape.

    Examples:
      A synthesized EMA and the one of this gamma that was tracked while training:
        $ phema synthesize --gamma 7 demo/ckpts/ -o ema.pt --quiet
        $ phema diff demo/truth/*-gamma7.safetensors ema.pt --tolerance 1e-3

      Every tensor, for a script:
        $ phema diff demo/truth/*-gamma7.safetensors ema.pt --tolerance 1 --json
    """
    from phema_cli.snapshots.reading import read_checkpoint
    from phema_cli.verify.diff import compare

    first, second = read_checkpoint(a, config.key), read_checkpoint(b, config.key)
    with render.progress("comparing", first.size_bytes + second.size_bytes, quiet=quiet) as bar:
        found = compare(first, second, bar)
    passed = found.worst <= tolerance
    if json:
        content = {**asdict(found), "worst": found.worst, "tolerance": tolerance, "passed": passed}
        render.document("diff", content)
    elif not quiet:
        _show(found, None if verbose else _LISTED)
    if not passed:
        raise typer.Exit(1)


def _show(found: Comparison, most: int | None) -> None:
    """The tensors that differ most, what only one side has, and the sums."""
    out = render.console()
    worst = sorted(found.tensors, key=lambda t: -t.relative)
    listed = [t for t in worst if t.relative > 0][:most]
    if listed:
        table = render.table(
            "tensor",
            "relative",
            "rms",
            "max_abs",
            "elements",
            right=("relative", "rms", "max_abs", "elements"),
        )
        for t in listed:
            table.add_row(
                render.plain(t.name),
                f"{t.relative:.2e}",
                f"{t.rms:.2e}",
                f"{t.max_abs:.2e}",
                f"{t.elements:,}",
            )
        render.show(table, out)
    for names, what in (
        (found.only_a, "only in A"),
        (found.only_b, "only in B"),
        (found.reshaped, "other shape"),
    ):
        for name in names:
            out.print(f"[red]{what}[/] {render.plain(name)}")
    same = sum(t.relative == 0 for t in found.tensors)
    out.print(
        f"{render.counted(len(found.tensors), 'tensor')} compared, {same} identical; "
        f"relative difference [bold]{found.relative:.2e}[/] in all, {found.worst:.2e} at worst",
        soft_wrap=True,
    )
