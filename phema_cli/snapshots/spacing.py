"""After which steps an average was updated, by the counts of updates in its snapshots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from phema_cli.errors import InputError
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


def spaced(law: Law, every: int, updated: float | None) -> Law:
    """The law with every N-th step an update, the first of which copies if it did so before.

    Args:
        law: with every step an update.
        every: steps from one update to the next.
        updated: the step of an update, if it is known; else N is one.
    """
    return _updated_from(law, every, _first(every, updated))


def _copies(law: Law) -> bool:
    """Whether its first update copies."""
    return law.parameters.get("start") == 1


def _updated_from(law: Law, every: int, first: int) -> Law:
    """The law with updates N steps apart; ``first`` is the one that copies, if one does."""
    start = {"start": float(first)} if _copies(law) else {}
    return law.replace(every=float(every), **start)


def _first(every: int, updated: float | None) -> int:
    """The first step that is an update, by a later one."""
    return every if updated is None else int(updated - 1) % every + 1


def space_by_count(drafts: Sequence[Draft], *, trusted: bool) -> list[Finding]:
    """Set the number of steps between updates of averages that count these, if all agree.

    Args:
        drafts: all series.
        trusted: whether the user insists that averages are what they are said to be.

    Returns:
        What is assumed of them.
    """
    groups: dict[tuple[object, ...], list[_Counted]] = {}
    for draft in drafts:
        reading, updates, law = draft.file.reading, draft.series.updates, draft.law
        clock = reading.clock
        if clock is not None and clock.weak and reading.named is not None:
            clock = reading.named
        if law is None or clock is None or clock.unit != "steps" or updates is None:
            continue
        if 0 < updates < math.inf:
            groups.setdefault(draft.group, []).append(_Counted(draft, law, clock.value, updates))
    return [finding for counted in groups.values() for finding in _space(counted, trusted)]


def _space(counted: Sequence[_Counted], trusted: bool) -> list[Finding]:
    """Set the steps between updates of one average, and the first of them."""
    if not trusted:
        _refuse_restarts(counted)
    if any(c.updates > c.step + 1 for c in counted):
        # More than steps: they are the time.
        return []
    every = max(1, round(max(c.step / c.updates for c in counted)))
    if all(abs(c.step / every - c.updates) <= 1 for c in counted):
        return _space_evenly(counted, every) if every > 1 else []
    late = None if trusted else _begun_late(counted)
    return [] if late is None else _begin_late(counted, *late)


def _refuse_restarts(counted: Sequence[_Counted]) -> None:
    """Set the error of averages whose count falls: they were begun again at the weights."""
    ordered = sorted(counted, key=lambda c: c.step)
    for before, after in pairwise(ordered):
        if after.updates < before.updates and after.step > before.step:
            after.draft.error = InputError(
                f"its average counts {after.updates:.10g} updates by step {after.step:.10g}, and "
                f"{before.updates:.10g} by step {before.step:.10g}: it began again in between",
                remedy="leave the snapshots from there on out with --exclude, or pass --trust-tags "
                "to insist",
            )


def _space_evenly(counted: Sequence[_Counted], every: int) -> list[Finding]:
    """Set them for an average that was updated from the beginning."""
    # A power function of the updates is one of the steps, whatever lies between them.
    counted = [c for c in counted if c.law.name != "power"]
    firsts = _firsts(counted, every)
    even = [c for c in counted if c.law.parameters.get("every") == 1]
    for each in even:
        each.draft.law = _updated_from(each.law, every, firsts[0])
    one = next((c for c in even if _copies(c.law)), None)
    if one is None or firsts != [every, 1]:
        return []
    other = _updated_from(one.law, every, 1).text
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
        return [_first(every, told[0])]
    fits = [
        first
        for first in (every, 0, 1)
        if all((c.step - first) // every + 1 == c.updates for c in counted)
    ]
    return fits or [1]


def _begun_late(counted: Sequence[_Counted]) -> tuple[int, int] | None:
    """The step of the first update and the steps from one to the next; None if no such fit."""
    first, *_, last = sorted(counted, key=lambda c: c.step) * 2
    if last.updates <= first.updates:
        return None
    pace = (last.step - first.step) / (last.updates - first.updates)
    for every in {round(pace), math.floor(pace), math.ceil(pace)} - {0}:
        low = max(c.step - every * c.updates for c in counted)
        high = min(c.step - every * (c.updates - 1) for c in counted)
        if every < low < high:
            # The likeliest of them is a multiple, as steps are that loops ask for.
            multiple = high // every * every
            return int(multiple if multiple > low else high), every
    return None


def _begin_late(counted: Sequence[_Counted], first: int, every: int) -> list[Finding]:
    """Let averages begin where they count from, if what they were before is known; else refuse.

    A mean copies at its first update. Others may be a copy of the weights up to it, or of those
    that training began with.
    """
    for each in counted:
        law = each.law
        if law.parameters.get("start", 0) > 1:
            return []
        if law.name == "power":
            each.draft.law = law.replace(start=float(first - every))
        elif _copies(law):
            each.draft.law = _updated_from(law, every, first)
        else:
            each.draft.error = InputError(
                f"its average counts {each.updates:.10g} updates by step {each.step:.10g}, and is "
                f"taken for {law.text}, which has been updated from the beginning",
                remedy=_remedy(law, first - every, every),
            )
    one = counted[0].draft
    if one.error is not None or one.law is None:
        return []
    what = (
        f"its {counted[0].updates:.10g} updates by step {counted[0].step:.10g} begin after step "
        f"{first}: it is taken for {one.law.text}"
    )
    return [notice(what, one.file.candidate.name)]


def _remedy(law: Law, start: int, every: int) -> str:
    """What to type for an average that begins late."""
    if not {"start", "every"} <= law.parameters.keys():
        return "give the law of these by --average, or pass --trust-tags to insist"
    text = law.replace(start=float(start), every=float(every)).text
    copied = f"pass --average {text} if it was a copy of the weights up to step {start}"
    return f"{copied}, or --trust-tags to insist"
