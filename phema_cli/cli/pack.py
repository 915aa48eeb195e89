"""``phema pack``: stores snapshots as what the last ones could not foretell of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from phema_cli.cli import options, render
from phema_cli.pack.request import PackRequest

if TYPE_CHECKING:
    from phema_cli.pack.plan import PackPlan


@options.command
def pack(
    paths: options.Paths,
    *,
    asked: PackRequest,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pack snapshots of any trainer into a directory: fewer bytes, and closer than float16.

    A packed snapshot holds what the last four could not foretell of it, in few bits; each
    --keyframe-every-th file is whole, in float32. All commands read the directory like any other.
    The inputs stay as they are.

    Before anything is written, the error of an average between the stored ones is foretold from a
    sample. Where the inputs are rounded to 16 bits themselves, packing can't bring back what they
    have lost.

    Examples:
      In half of float16's bytes:
        $ phema pack ckpts/ -o packed/

      What 4 bits would do:
        $ phema pack ckpts/ -o packed4/ --bits 4 --dry-run
    """
    from phema_cli.pack.plan import left_behind, make_plan
    from phema_cli.pack.write import write
    from phema_cli.snapshots import scan

    found = scan(paths, asked.config)
    plan = make_plan(found, asked)
    render.findings([*found.findings, *left_behind(plan.files)], stderr=True, quiet=quiet)
    if not json and (asked.dry_run or not quiet):
        _show(plan)
    written = []
    if not asked.dry_run:
        total = sum(file.snapshot.checkpoint.size_bytes for file in plan.files)
        with render.progress("packing", total, quiet=quiet) as bar:
            written = write(plan, bar)
    if json:
        render.document("pack", _document(plan) | {"written": bool(written)})
    else:
        for path in written:
            render.line(str(path))


def _show(plan: PackPlan) -> None:
    """Print what will be written, and what averages will be like; it is the result of a dry run."""
    out = render.console(stderr=not plan.request.dry_run)
    before = sum(file.snapshot.checkpoint.size_bytes for file in plan.files)
    after = plan.size_bytes
    out.print(
        f"{render.counted(len(plan.files), 'snapshot')} in "
        f"{render.counted(len(plan.chains), 'chain')} of {plan.request.bits} bits: "
        f"{render.size(after)}, {after / before:.0%} of {render.size(before)}",
        soft_wrap=True,
    )
    if plan.foretold is not None:
        out.print(
            f"expected_error of gamma {plan.foretold.gamma:.3g}: {plan.foretold.packed:.2g}, "
            f"and {plan.foretold.stored:.2g} from the snapshots as they are",
            soft_wrap=True,
        )


def _document(plan: PackPlan) -> dict[str, Any]:
    """What ``--json`` prints of a plan."""
    foretold = plan.foretold
    return {
        "bits": plan.request.bits,
        "size_bytes": plan.size_bytes,
        "gamma": None if foretold is None else foretold.gamma,
        "expected_error": None if foretold is None else foretold.packed,
        "expected_error_stored": None if foretold is None else foretold.stored,
        "files": [
            {
                "name": file.name,
                "snapshot": file.snapshot.name,
                "keyframe": plan.is_keyframe(place),
                "rms_error": file.error**0.5,
            }
            for place, file in enumerate(plan.files)
        ],
    }
