"""Snapshots of an abandoned branch: a run was resumed at an earlier step, and left later ones."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from phema_cli.errors import InputError, listed
from phema_cli.snapshots.base import Finding, Snapshot

#: steps from which on files that were copied in any order are hardly taken for it.
_LEAST = 6
#: files that are named in one line at most.
_MOST_NAMES = 4


def abandoned(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """A warning for later steps that were written before the run was resumed at an earlier one.

    By when files were last changed: up to step a in order, then, after all others, those from a to
    b in order, while those beyond b were written in between. Copies that do not keep times were
    written in the order of their names, in which step 1000 may come before 200.

    Args:
        snapshots: oldest first, by their steps.
    """
    changed = [max([c for *_, c in s.checkpoint.stamps.values()], default=0) for s in snapshots]
    by_name = sorted(zip([s.name for s in snapshots], changed, strict=True))
    if all(one <= other for (_, one), (_, other) in pairwise(by_name)):
        return
    written: dict[float, int] = {}
    for s, when in zip(snapshots, changed, strict=True):
        written[s.tag.step] = max(written.get(s.tag.step, 0), when)
    steps, times = list(written), list(written.values())
    falls = [i for i, (a, b) in enumerate(pairwise(times), start=1) if b <= a]
    if len(falls) != 1 or len(steps) < _LEAST:
        return
    beyond = times[falls[0] :]
    resumed = next((i for i, t in enumerate(times) if t >= beyond[0]), 0)
    if not 0 < resumed < falls[0] or not beyond[-1] < times[resumed]:
        return
    names = [s.name for s in snapshots if s.tag.step >= steps[falls[0]]]
    error = InputError(
        f"written before step {steps[resumed]:.10g} was: if the run was resumed at step "
        f"{steps[resumed - 1]:.10g}, these are of the branch that it left",
        where=listed(names, _MOST_NAMES),
        remedy="leave them out with --exclude",
    )
    yield Finding("warning", error)
