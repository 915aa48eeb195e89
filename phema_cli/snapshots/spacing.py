"""Between which steps an average was updated, by how often it was by the steps of its snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phema_cli.profiles import Law
from phema_cli.snapshots.base import Finding, notice
from phema_cli.snapshots.reading import Draft


@dataclass(frozen=True, slots=True)
class _Counted:
    """An average that counts its updates: its law, the step and the number of updates so far."""

    draft: Draft
    law: Law
    step: float
    updates: float

    @property
    def is_even(self) -> bool:
        """Whether its law says that it is updated at every step."""
        return self.law.parameters.get("every") == 1

    @property
    def copies(self) -> bool:
        """Whether its law says that the first update copies."""
        return self.law.parameters.get("start") == 1


def space_by_count(drafts: Sequence[Draft]) -> list[Finding]:
    """Set the number of steps between updates of averages that count these, if all agree.

    Returns:
        What is assumed of them.
    """
    groups: dict[tuple[object, ...], list[_Counted]] = {}
    for draft in drafts:
        clock, updates, law = draft.file.reading.clock, draft.series.updates, draft.law
        # A power function of the updates is one of the steps, whatever lies between them.
        if law is None or law.name == "power":
            continue
        if clock is not None and clock.unit == "steps" and updates:
            groups.setdefault(draft.group, []).append(_Counted(draft, law, clock.value, updates))
    return [finding for counted in groups.values() for finding in _space(counted)]


def _space(counted: Sequence[_Counted]) -> list[Finding]:
    """The same of one average: also which update is the first, where it copies."""
    every = round(max(c.step / c.updates for c in counted))
    if every <= 1 or any(abs(c.step / every - c.updates) > 1 for c in counted):
        return []
    firsts = _firsts(counted, every)
    even = [c for c in counted if c.is_even]
    for each in even:
        start = {"start": float(firsts[0])} if each.copies else {}
        each.draft.law = each.law.replace(every=float(every), **start)
    one = next((c for c in even if c.copies), None)
    if one is None or firsts != [every, 1]:
        return []
    other = one.law.replace(every=float(every), start=1.0).text
    what = (
        f"its {one.updates:.10g} updates by step {one.step:.10g} are taken to be those after steps "
        f"{every}, {2 * every}, {3 * every}, ...; if they are after steps 1, {every + 1}, "
        f"{2 * every + 1}, ..., pass --average {other}"
    )
    return [notice(what, one.draft.file.candidate.name)]


def _firsts(counted: Sequence[_Counted], every: int) -> list[int]:
    """After which step the first update may have come, the likeliest first.

    Loops mostly ask whether a step is a multiple of N: N is the first, or 0 where they begin with
    that, and else 1.
    """
    told = [c.draft.series.updated for c in counted if c.draft.series.updated]
    if told:
        return [int(told[0] - 1) % every + 1]
    fits = [
        first
        for first in (every, 0, 1)
        if all((c.step - first) // every + 1 == c.updates for c in counted)
    ]
    return fits or [1]
