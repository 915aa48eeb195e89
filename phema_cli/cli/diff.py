"""``phema diff``: compares two checkpoints tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from phema_cli.cli import options, render
from phema_cli.request import Config

if TYPE_CHECKING:
    from phema_cli.verify.diff import Comparison

#: tensors that are listed without --verbose.
_LISTED = 10

First = Annotated[str, options.argument("The checkpoint to compare with; a URL too.", "A")]
Second = Annotated[str, options.argument("The checkpoint to compare; a URL too.", "B")]
Tolerance = Annotated[
    float,
    options.option(
        "--tolerance", help="Largest relative difference that passes.", min=0.0, metavar="X"
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
    """Compare two checkpoints; exit with 1 if a tensor differs by more than --tolerance.

    The relative difference of a tensor is the RMS of B - A over the RMS of A. Names and shapes
    must be the same; dtypes and file formats may differ.

    Exits with 1 too if a tensor is missing from one of them, or has another shape.

    Examples:
      A synthesized EMA and the one of this gamma that was tracked while training:
        $ phema synthesize --gamma 7 demo/ckpts/ -o ema.pt --quiet
        $ phema diff demo/truth/*-gamma7.safetensors ema.pt --tolerance 1e-3

      Every tensor, for a script:
        $ phema diff demo/truth/*-gamma7.safetensors ema.pt --tolerance 1 --json
    """
    from phema_cli.verify.diff import compare, read_pair

    first, second = read_pair(a, b, config.key)
    with render.progress("comparing", first.size_bytes + second.size_bytes, quiet=quiet) as bar:
        comparison = compare(first, second, bar)
    passed = comparison.worst <= tolerance
    if json:
        content = asdict(comparison) | {"worst": comparison.worst, "tolerance": tolerance}
        render.document("diff", content | {"passed": passed})
    elif not quiet:
        _show(comparison, None if verbose else _LISTED)
    if not passed:
        raise typer.Exit(1)


def _show(comparison: Comparison, most: int | None) -> None:
    """Print the tensors that differ most, what only one side has, and the sums."""
    out = render.console()
    worst = sorted(comparison.tensors, key=lambda t: -t.relative)
    listed = [t for t in worst if t.relative > 0][:most]
    if listed:
        numbers = [
            ("relative", [f"{t.relative:.2e}" for t in listed]),
            ("rms", [f"{t.rms:.2e}" for t in listed]),
            ("max abs", [f"{t.max_abs:.2e}" for t in listed]),
            ("elements", [f"{t.elements:,}" for t in listed]),
        ]
        names = ("tensor", [render.plain(t.name) for t in listed])
        render.show([names, *numbers], out, right=[head for head, _ in numbers], gap=3)
    for what, tensors in (
        ("only in A", comparison.only_a),
        ("only in B", comparison.only_b),
        ("other shape", comparison.reshaped),
    ):
        for name in tensors:
            out.print(f"[red]{what}[/] {render.plain(name)}")
    same = sum(t.relative == 0 for t in comparison.tensors)
    out.print(
        f"{render.counted(len(comparison.tensors), 'tensor')} compared, {same} identical; "
        f"relative difference [bold]{comparison.relative:.2e}[/] in all, "
        f"{comparison.worst:.2e} at worst",
        soft_wrap=True,
    )
