"""``phema plan --like RUN --keep N``: which checkpoints of a run may go, at the least loss."""

from collections.abc import Sequence

from phema_cli.cli import render
from phema_cli.errors import InputError, PhemaError
from phema_cli.estimate.solve import measure
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.chains import link_of
from phema_cli.profiles import PowerProfile, gamma_from_sigma_rel
from phema_cli.request import Config, Request
from phema_cli.snapshots import Snapshot, scan
from phema_cli.solver import Movement, solve
from phema_cli.solver.planning import served, worst
from phema_cli.solver.thinning import thinned
from phema_cli.system.processes import quoted


def show(path: str, keep: int, ends: tuple[float, float], *, json: bool, quiet: bool) -> None:
    """Print which checkpoints may go; nothing is removed.

    Args:
        path: the run.
        keep: how many checkpoints stay, files or directories, with all snapshots in them.
        ends: least and largest sigma_rel of the targets, at the last step.
        json: whether as a document.
        quiet: whether to leave notices out.

    Raises:
        UsageError: too few or too many are to stay, or the range has no targets.
        InputError: the run can't be thinned.
    """
    snapshots, movement = measured(path, "keep all of them", quiet=quiet)
    if any(link_of(s.checkpoint) for s in snapshots):
        raise InputError(
            "packed snapshots are read together with those before them: none of them may go",
            where=path,
            remedy="thin the run first, and pack what stays",
        )
    sources = [s.tag.profile for s in snapshots]
    last = max(source.end for source in sources)
    targets = [PowerProfile(gamma_from_sigma_rel(s), last) for s in served(*ends)]
    files = [str(s.checkpoint.path) for s in snapshots]
    kept = set(thinned(sources, targets, movement, keep, files))
    before, after = (
        worst(solve(some, targets, movement=movement).figures)
        for some in (sources, [s for i, s in enumerate(sources) if i in kept])
    )
    stay = {files[i] for i in kept}
    checkpoints = {name: s.checkpoint for name, s in zip(files, snapshots, strict=True)}
    staying = [path for n, c in checkpoints.items() if n in stay for path in _paths(c)]
    going = [path for n, c in checkpoints.items() if n not in stay for path in _paths(c)]
    if json:
        content = {
            "range": list(ends),
            "keep": staying,
            "remove": going,
            "worst_sigma_error": {"before": before, "after": after},
        }
        render.document("keep", content)
        return
    out = render.console()
    out.print(
        f"[bold]Keep[/]   {keep} of {len(checkpoints)} checkpoints: sigma_error at worst "
        f"{render.per_cent(after)}, now {render.per_cent(before)}, from sigma_rel {ends[0]:g} to "
        f"{ends[1]:g} at step {snapshots[-1].tag.step:.10g}",
        soft_wrap=True,
    )
    out.print("[bold]These may go[/], and nothing was removed:")
    for name in going:
        render.line(name)


def _paths(checkpoint: Checkpoint) -> list[str]:
    """A directory that is a checkpoint, or all files of one: its shards with their index."""
    if checkpoint.path.is_dir():
        return [str(checkpoint.path)]
    return sorted({str(path) for path in (checkpoint.path, *checkpoint.files)})


def measured(path: str, remedy: str, *, quiet: bool) -> tuple[Sequence[Snapshot], Movement]:
    """The snapshots of a run, and how its weights move; warnings and notices are printed.

    Args:
        path: the run.
        remedy: what to do where they are too few.
        quiet: whether to leave notices out.

    Raises:
        PhemaError: they make no sense, or are too few to measure that.
    """
    run = scan([path], Config(trust_tags=True))
    try:
        snapshots = run.require()
        movement = measure(run, Request()).movement
    except PhemaError as error:
        if "--" not in (error.remedy or ""):
            raise
        # The plan lacks the options that say what snapshots are.
        said = (
            f"phema inspect {quoted(path)} says what to pass: write it into a phema.toml there, "
            "--raw as raw = true, --gammas 5,10 as gammas = [5, 10]"
        )
        raise type(error).of(error, remedy=said) from error
    render.findings(run.findings, stderr=True, quiet=quiet)
    if movement is None:
        what = "these snapshots are too few to measure how weights move"
        raise InputError(what, where=path, remedy=remedy)
    return snapshots, movement
