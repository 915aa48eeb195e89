"""The page docs/evidence.md: prose around the tables of the evidence benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence_cases import (
    ALONE,
    COUNTS,
    RIGHT,
    STORED,
    TRIALS,
    WRONG,
    WRONG_AT,
    WRONG_WIDE,
    WRONG_WIDE_AT,
    Case,
    Group,
    Proposed,
    Wrong,
)
from phema_cli.solver.evidence import LIMITS

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
_TEMPLATE = Path(__file__).parent / "evidence_template.md"
#: damage from which a mistake counts.
HARMFUL = 0.1
_STATES = ("contradicted", "doubtful", "plausible", "confirmed")
_WORDS = ("alarms", "warnings", "plausible", "confirmed")
_FIGURES = ("gain", "jitter", "worst")
_ALONE = {w.name for w in ALONE}


def write_page(cases: Sequence[Case], proposed: Sequence[Proposed]) -> None:
    """Write docs/evidence.md."""
    right = {g: [c for c in cases if c.right and c.group == g] for g in _GROUPS}
    wrong = {g: [c for c in cases if not c.right and c.group == g] for g in _GROUPS}
    fresh = [*right["plain"], *right["wide"]]
    several = [c for c in cases if not c.right and c.name not in _ALONE]
    PAGE.write_text(
        _TEMPLATE.read_text().format(
            limits=_limits(),
            groups=_groups({(c.group, c.seed) for c in cases}),
            combinations=len(RIGHT),
            right=len(fresh),
            alarms=_count(fresh, "contradicted"),
            warnings=_count(fresh, "doubtful"),
            warned=", ".join(sorted({c.run for c in fresh if c.state == "doubtful"})) or "no run",
            confirmed=_confirmed(fresh),
            false_plain=_false_alarms(right["plain"]),
            false_wide=_by_layout(right["wide"]),
            false_odd=_false_alarms(right["odd"]),
            false_limits=_false_alarms(right["limits"]),
            loose=_loose(right["plain"]),
            proposals=_proposals(proposed),
            mistakes=len(WRONG),
            more_mistakes=len(WRONG_WIDE),
            totals=_totals(several),
            silent=_silent(several),
            ratio=_ratio(several),
            blame=_blame(several),
            detection=_detection(wrong["plain"], (*WRONG, *ALONE), WRONG_AT),
            detection_wide=_detection(wrong["wide"], (*WRONG, *WRONG_WIDE, *ALONE), WRONG_WIDE_AT),
            seconds=np.median([c.seconds for c in fresh]),
            slowest=max(c.seconds for c in fresh),
        )
    )


_GROUPS: tuple[Group, ...] = ("plain", "wide", "odd", "limits")


def _count(cases: Iterable[Case], state: str) -> int:
    """Cases of a state."""
    return sum(c.state == state for c in cases)


def _groups(done: set[tuple[str, int]]) -> str:
    """Which runs there are."""
    rows = []
    for group in _GROUPS:
        listed = [t for t in TRIALS if t.group == group]
        trials = [t for t in listed if (group, t.seed) in done]
        steps = sorted({t.steps for t in trials})
        runs = f"{len(trials)} of {len(listed)}" if len(trials) < len(listed) else len(trials)
        rows.append([f"`{group}`", runs, ", ".join(f"{s:,}" for s in steps)])
        rows[-1] += [_MEANING[group], "; ".join(t.run.name for t in trials)]
    return _rows(["group", "runs", "steps", "what for", "which"], rows)


_MEANING = {
    "plain": "false alarms, detection",
    "wide": "the same of larger and longer runs; large ones have a million parameters",
    "odd": "false alarms of runs in which something happens",
    "limits": "set how limits rise, and nothing else",
}


def _rows(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table, or that there is nothing to put in one."""
    if not rows:
        return "(not run)"
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(
        "| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, rule, *rows)
    )


def _limits() -> str:
    """The table of limits."""
    tops = [*(str(limits.times - 1) for limits in LIMITS[1:]), "16"]
    return _rows(
        ["times", "alarm if L >=", "or J >", "or C >", "warning if L >=", "ways"],
        [
            [
                f"{low.times} to {top}",
                f"{low.alarm:g}",
                low.jitter,
                f"{low.worst:g}",
                f"{low.doubt:g}",
                f"{low.rank:g}" if low.rank else "",
            ]
            for low, top in zip(LIMITS, tops, strict=True)
        ],
    )


def _confirmed(cases: Sequence[Case]) -> str:
    """How many of the cases of 16 times and more are confirmed, in words."""
    chosen = [c for c in cases if c.count >= max(COUNTS)]
    yes = _count(chosen, "confirmed")
    return f"{yes} of {len(chosen)} ({100 * yes / max(1, len(chosen)):.1f} %)"


_RIGHT_HEAD = ("cases", "L, largest", "J", "C", *_WORDS)


def _right_row(name: str, cases: Sequence[Case]) -> list[object]:
    """Right tags: the largest figures, and how many are called what."""
    figures = [f"{np.nanmax([getattr(c, k) for c in cases]):.2f}" for k in _FIGURES]
    return [name, len(cases), *figures, *(_count(cases, s) for s in _STATES)]


def _false_alarms(right: Sequence[Case]) -> str:
    """Right tags, by times and type."""
    rows = []
    for count in COUNTS:
        for stored in STORED:
            chosen = [c for c in right if (c.layout, c.count, c.stored) == ("", count, stored)]
            if chosen:
                rows.append(_right_row(f"{count}, {stored}", chosen))
    return _rows(["times, type", *_RIGHT_HEAD], rows)


def _by_layout(right: Sequence[Case]) -> str:
    """Right tags, by how snapshots lie in time."""
    rows = []
    for layout, count in dict.fromkeys((c.layout, c.count) for c in right):
        chosen = [c for c in right if (c.layout, c.count) == (layout, count)]
        rows.append(_right_row(layout or f"{count} times", chosen))
    return _rows(["snapshots", *_RIGHT_HEAD], rows)


def _loose(right: Sequence[Case]) -> str:
    """tag_error of right tags, by what is stored."""
    rows = []
    for names in RIGHT:
        row: list[object] = [f"`{names}`"]
        for count in COUNTS:
            mine = [c for c in right if (c.name, c.layout, c.count) == (names, "", count)]
            errors = [c.tag_error for c in mine]
            kept = [e for e in errors if np.isfinite(e)]
            row.append(f"{np.median(kept):.2f} ({max(kept):.2f})" if kept else "-")
        rows.append(row)
    return _rows(["stored", *(f"{count} times" for count in COUNTS)], rows)


def _proposals(proposed: Sequence[Proposed]) -> str:
    """What is proposed where the tags are left out."""
    rows = []
    for names in dict.fromkeys(p.name for p in proposed):
        row: list[object] = [f"`{names}`"]
        for stored in STORED:
            mine = [p.damage for p in proposed if (p.name, p.stored) == (names, stored)]
            found = [damage for damage in mine if not np.isnan(damage)]
            worst = f", damage up to {max(found):.2f}" if found else ""
            row.append(f"{len(found)} of {len(mine)}{worst}")
        rows.append(row)
    return _rows(["stored", *STORED], rows)


def _totals(wrong: Sequence[Case]) -> str:
    """Harmful mistakes that are seen, by times and type."""
    rows = []
    kinds = dict.fromkeys((c.group, c.count, c.stored) for c in wrong)
    for group, count, stored in kinds:
        mine = [c for c in wrong if (c.group, c.count, c.stored) == (group, count, stored)]
        chosen = [c for c in mine if c.damage > HARMFUL]
        rows.append(
            [f"{group}, {count}, {stored}", len(chosen), *(_count(chosen, s) for s in _STATES)]
        )
    return _rows(["runs, times, type", "harmful cases", *_WORDS], rows)


def _detection(
    wrong: Sequence[Case], mistakes: Sequence[Wrong], tried: Sequence[tuple[int, str]]
) -> str:
    """One row a mistake."""
    rows = []
    for mistake in mistakes if wrong else ():
        mine = [c for c in wrong if c.name == mistake.name]
        row: list[object] = [
            mistake.name,
            f"{np.nanmedian([c.damage for c in mine] or [np.nan]):.2f}",
        ]
        for count, stored in tried:
            chosen = [c for c in mine if (c.count, c.stored) == (count, stored)]
            alarms, warnings = _count(chosen, "contradicted"), _count(chosen, "doubtful")
            row.append(f"{alarms}/{len(chosen)}" + (f" + {warnings}" if warnings else ""))
        fine = [c for c in mine if c.count == 16 and c.stored == "fp32"]
        missed = [c.damage for c in fine if c.damage > HARMFUL and c.state != "contradicted"]
        row.append(f"{len(missed)} ({max(missed):.2f})" if missed else 0)
        mended = [c.mended < HARMFUL for c in fine if np.isfinite(c.mended)]
        row.append(f"{sum(mended)}/{len(fine)}")
        rows.append(row)
    head = ["told wrongly", "damage", *(f"{count} {stored}" for count, stored in tried)]
    return _rows([*head, "missed at 16 (worst)", "mended"], rows)


def _silent(wrong: Sequence[Case]) -> str:
    """Harmful mistakes that are called confirmed, one by one."""
    found = [c for c in wrong if c.state == "confirmed" and c.damage > HARMFUL]
    if not found:
        return "None of them was called *confirmed*."
    lines = [
        f"- {c.name}, {c.count} times, {c.stored}, {c.run}: damage {c.damage:.2f}" for c in found
    ]
    return "Called *confirmed* all the same:\n\n" + "\n".join(lines)


def _blame(wrong: Sequence[Case]) -> str:
    """How many of the files that are said not to belong do not."""
    named = [c for c in wrong if c.foreign]
    right = sum(c.blameless == 0 for c in named)
    return f"in {len(named)} cases; in {right} of them all of those files are wrong ones"


def _ratio(wrong: Sequence[Case]) -> str:
    """P over the damage."""
    ratios = [
        c.harm / c.damage
        for c in wrong
        if c.count == 16 and c.damage > HARMFUL and np.isfinite(c.harm) and np.isfinite(c.mended)
    ]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]) if ratios else (np.nan,) * 3
    return f"{middle:.2f} in the median, {low:.2f} to {high:.2f} in half of the cases"
