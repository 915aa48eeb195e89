"""``phema verify``: checks an output against its provenance and its sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from phema_cli.cli import options, render
from phema_cli.errors import CheckFailedError, InputError, UnsafePickleError
from phema_cli.request import SOURCES, Config

if TYPE_CHECKING:
    from phema_cli.formats.base import Checkpoint
    from phema_cli.verify.check import Verification

Out = Annotated[str, options.argument("An output of phema synthesize; a URL too.", "OUT")]
Sources = Annotated[
    list[str] | None,
    options.argument("Its sources: the paths given to phema synthesize.", "[PATH...]"),
]
#: which tensors were copied or left out is recorded.
_SNAPSHOTS = SOURCES - {"copy", "drop"}
_AGAIN = "synthesize it again"
Full = Annotated[
    bool, options.option("--full", help="Check all values, not a random 64 MiB of them.")
]


@options.command
def verify(
    out: Out,
    paths: Sources = None,
    *,
    full: Full = False,
    config: Annotated[Config, _SNAPSHOTS],
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check an output: its provenance and its files, and its values if PATH is given.

    phema repeats the synthesis that the output records and compares bytes: all headers, and 64 MiB
    of values at random, or all values with --full. Without PATH it checks only what the output
    says of itself. The options that say what the snapshots are, but --names-from, are recorded;
    what you pass replaces them.

    Exits with 1 if anything differs, and names the tensor and the element.

    Examples:
      All values of an output, from the snapshots it was made of:
        $ phema synthesize --gamma 7 ckpts/ -o ema.safetensors --quiet
        $ phema verify ema.safetensors ckpts/ --full

      What an output says of itself:
        $ phema verify ema.safetensors --json
    """
    try:
        record, checked = _checked(out, paths or (), config, full=full, quiet=quiet)
    except CheckFailedError as error:
        raise CheckFailedError.of(error, remedy=error.remedy or _AGAIN) from error
    if json:
        values = None if checked is None else asdict(checked)
        content = {"path": str(out), "target": record["target"], "checked": values}
        render.document("verify", content)
    elif not quiet:
        count = render.counted(len(record["sources"]), "source")
        if checked is None:
            text = f"records {count}; pass their paths to check its values"
        else:
            amount = f"{render.size(checked.checked_bytes)} of {render.size(checked.total_bytes)}"
            text = f"matches its {count} in {amount} of values and all headers"
        render.console().print(f"{render.plain(out)}: {text}", soft_wrap=True)


def _checked(
    out: str, paths: Sequence[str], config: Config, *, full: bool, quiet: bool
) -> tuple[dict[str, Any], Verification | None]:
    """What an output records of itself, and of its values what was checked, if paths are given.

    Raises:
        CheckFailedError: something differs.
    """
    from phema_cli.formats.remote import to_path
    from phema_cli.snapshots import scan
    from phema_cli.verify.check import verify as check
    from phema_cli.verify.recipe import (
        config_of,
        is_bitwise,
        needs_of_record,
        provenance_of,
        remake,
    )

    checkpoint = _read(to_path(out))
    record = provenance_of(checkpoint)
    if not paths:
        return record, None
    found = scan(paths, config_of(record, config), needs_of_record(record))
    recipe = remake(checkpoint, found)
    with render.progress("verifying", recipe.write_bytes, quiet=quiet) as progress:
        return record, check(recipe, full=full, bitwise=is_bitwise(record), progress=progress)


def _read(out: Path) -> Checkpoint:
    """The output as its headers describe it.

    Raises:
        CheckFailedError: its headers are broken: that is what the user wanted to know.
        InputError: there is no such file.
    """
    from phema_cli.formats.remote import no_such, remote_errors
    from phema_cli.snapshots.reading import read_checkpoint

    with remote_errors(out):
        if not out.exists():
            raise no_such(out)
    try:
        return read_checkpoint(out)
    except (InputError, UnsafePickleError) as error:
        remedy = f"{error.remedy}, or {_AGAIN}" if error.remedy else _AGAIN
        raise CheckFailedError.of(error, remedy=remedy) from error
