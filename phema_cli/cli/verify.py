"""``phema verify``: checks an output against its provenance and its sources."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phema_cli.cli import completing, options, render
from phema_cli.errors import CheckFailedError, InputError, UnsafePickleError
from phema_cli.request import SOURCES, Config

if TYPE_CHECKING:
    from phema_cli.formats.base import Checkpoint

Out = Annotated[
    Path,
    typer.Argument(
        help="What phema synthesize has written.",
        metavar="OUT",
        autocompletion=completing.paths,
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        help="The snapshots it was made of, as they were given.",
        metavar="[PATH...]",
        autocompletion=completing.paths,
    ),
]
Full = Annotated[
    bool, options.flag("--full", help="Make all values again, not a random 64 MiB of them.")
]


@options.command
def verify(
    out: Out,
    paths: Sources = None,
    *,
    full: Full = False,
    config: Annotated[Config, SOURCES],
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check an output: its provenance, its files, and with its sources its values.

    The output's plan is made again from what it records, and its bytes are compared with what the
    plan gives: the headers whole, of the values 64 MiB at random, or all. Without PATH only what
    the output says of itself is checked.

    Exits with 1 where anything differs, and names the tensor and the element.

    Examples:
      All values of an output, from the snapshots it was made of:
        $ phema synthesize --gamma 7 ckpts/ -o ema.safetensors --quiet
        $ phema verify ema.safetensors ckpts/ --full

      What an output says of itself:
        $ phema verify ema.safetensors --json
    """
    from phema_cli.snapshots import scan
    from phema_cli.verify.check import verify as check
    from phema_cli.verify.recipe import is_exact, provenance_of, remake

    checkpoint = _read(out)
    record = provenance_of(checkpoint)
    content: dict[str, object] = {"path": str(out), "target": record["target"], "checked": None}
    if paths:
        recipe = remake(checkpoint, scan(paths, config))
        with render.progress("verifying", recipe.write_bytes, quiet=quiet) as progress:
            content["checked"] = asdict(
                check(recipe, full=full, exact=is_exact(record), progress=progress)
            )
    if json:
        render.document("verify", content)
    elif not quiet:
        _show(out, content, len(record["sources"]))


def _read(out: Path) -> Checkpoint:
    """The output as its headers describe it; what is wrong with these is what was asked."""
    from phema_cli.snapshots.reading import read_checkpoint

    if not out.exists():
        raise InputError("no such file or directory", where=out)
    try:
        return read_checkpoint(out)
    except (InputError, UnsafePickleError) as error:
        raise CheckFailedError(error.what, where=error.where, remedy=error.remedy) from error


def _show(out: Path, content: dict[str, object], sources: int) -> None:
    """What was checked."""
    checked, made_of = content["checked"], render.counted(sources, "source")
    if isinstance(checked, dict):
        amount = f"{render.size(checked['checked_bytes'])} of {render.size(checked['total_bytes'])}"
        text = f"as its {made_of} make it, in {amount} of values and all headers"
    else:
        text = f"records {made_of}; pass their paths to check its values"
    render.console().print(f"{render.plain(out)}: {text}", soft_wrap=True)
