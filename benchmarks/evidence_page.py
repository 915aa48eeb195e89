"""The page docs/evidence.md: prose around the tables of the evidence benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence_cases import (
    ALONE,
    COUNTS,
    RIGHT,
    RUNS,
    STEPS,
    STORED,
    WRONG,
    WRONG_AT,
    WRONG_ON,
    Case,
)
from phema_cli.solver.evidence import LIMITS

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
#: damage from which a mistake counts.
HARMFUL = 0.1


def write_page(cases: Sequence[Case]) -> None:
    """Write docs/evidence.md."""
    right = [c for c in cases if c.right]
    wrong = [c for c in cases if not c.right]
    alone = {w.name for w in ALONE}
    several = [c for c in wrong if c.name not in alone]
    text = _PAGE.format(
        limits=_limits(),
        runs=len({c.run for c in cases}),
        planned=len(RUNS),
        steps=STEPS,
        combinations=len(RIGHT),
        right=len(right),
        alarms=sum(c.state == "contradicted" for c in right),
        notices=sum(c.state == "doubtful" for c in right),
        confirmed=_share(right, lambda c: c.state == "confirmed", 16),
        wrong_runs=len({c.run for c in wrong}),
        wrong_planned=len(WRONG_ON),
        mistakes=len(WRONG),
        false_alarms=_false_alarms(right),
        loose=_loose(right),
        totals=_totals(several),
        detection=_detection(wrong),
        silent=_silent(several),
        ratio=_ratio(several),
        seconds=np.median([c.seconds for c in right]),
        slowest=max(c.seconds for c in right),
    )
    PAGE.write_text(text)


def _rows(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(
        "| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, rule, *rows)
    )


def _limits() -> str:
    """The table of limits."""
    tops = [*(str(limits.times - 1) for limits in LIMITS[1:]), "16"]
    return _rows(
        ["times", "alarm if L >=", "or J >", "or C >", "notice if L >=", "ways"],
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


def _share(cases: Sequence[Case], what: Callable[[Case], bool], count: int) -> str:
    """How many of the cases of that many times, in words."""
    chosen = [c for c in cases if c.count == count]
    yes = sum(map(what, chosen))
    return f"{yes} of {len(chosen)} ({100 * yes / max(1, len(chosen)):.1f} %)"


def _false_alarms(right: Sequence[Case]) -> str:
    """Right tags, by times and type."""
    rows = []
    for count in COUNTS:
        for stored in STORED:
            chosen = [c for c in right if (c.count, c.stored) == (count, stored)]
            if chosen:
                states = [sum(c.state == s for c in chosen) for s in _STATES]
                figures = [f"{max(getattr(c, k) for c in chosen):.2f}" for k in _FIGURES]
                rows.append([f"{count}, {stored}", len(chosen), *figures, *states])
    return _rows(
        [
            "times, type",
            "cases",
            "L, largest",
            "J",
            "C",
            "alarms",
            "notices",
            "plausible",
            "confirmed",
        ],
        rows,
    )


_STATES = ("contradicted", "doubtful", "plausible", "confirmed")
_WORDS = ("alarms", "notices", "plausible", "confirmed")
_FIGURES = ("gain", "jitter", "worst")


def _loose(right: Sequence[Case]) -> str:
    """tag_error of right tags, by what is stored."""
    rows = []
    for names in RIGHT:
        row: list[object] = [f"`{names}`"]
        for count in COUNTS:
            errors = [c.tag_error for c in right if c.name == names and c.count == count]
            kept = [e for e in errors if np.isfinite(e)]
            row.append(f"{np.median(kept):.2f} ({max(kept):.2f})" if kept else "-")
        rows.append(row)
    return _rows(["stored", *(f"{count} times" for count in COUNTS)], rows)


def _totals(wrong: Sequence[Case]) -> str:
    """Harmful mistakes that are seen, by times and type."""
    rows = []
    for count, stored in dict.fromkeys((c.count, c.stored) for c in wrong):
        chosen = [c for c in wrong if (c.count, c.stored) == (count, stored) and c.damage > HARMFUL]
        states = [sum(c.state == s for c in chosen) for s in _STATES]
        rows.append([f"{count}, {stored}", len(chosen), *states])
    return _rows(["times, type", "harmful cases", *_WORDS], rows)


def _detection(wrong: Sequence[Case]) -> str:
    """One row a mistake."""
    rows = []
    for mistake in (*WRONG, *ALONE):
        mine = [c for c in wrong if c.name == mistake.name]
        row: list[object] = [
            mistake.name,
            f"{np.nanmedian([c.damage for c in mine] or [np.nan]):.2f}",
        ]
        for count, stored in ((4, "fp32"), (8, "fp32"), (8, "bf16"), (16, "fp32"), (16, "bf16")):
            chosen = [c for c in mine if (c.count, c.stored) == (count, stored)]
            alarms = sum(c.state == "contradicted" for c in chosen)
            notices = sum(c.state == "doubtful" for c in chosen)
            row.append(f"{alarms}/{len(chosen)}" + (f" + {notices}" if notices else ""))
        fine = [c for c in mine if c.count == 16 and c.stored == "fp32"]
        missed = [c.damage for c in fine if c.damage > HARMFUL and c.state != "contradicted"]
        row.append(f"{len(missed)} ({max(missed):.2f})" if missed else 0)
        mended = [c.mended < HARMFUL for c in fine if np.isfinite(c.mended)]
        row.append(f"{sum(mended)}/{len(fine)}")
        rows.append(row)
    head = ["told wrongly", "damage", *(f"{count} {stored}" for count, stored in WRONG_AT)]
    return _rows([*head, "missed at 16 (worst)", "mended"], rows)


def _silent(wrong: Sequence[Case]) -> str:
    """Harmful mistakes that are called confirmed, one by one."""
    found = [c for c in wrong if c.state == "confirmed" and c.damage > HARMFUL]
    if not found:
        return "None was called *confirmed*."
    lines = [
        f"- {c.name}, {c.count} times, {c.stored}, {c.run}: damage {c.damage:.2f}" for c in found
    ]
    return "Called *confirmed* all the same:\n\n" + "\n".join(lines)


def _ratio(wrong: Sequence[Case]) -> str:
    """P over the damage."""
    ratios = [
        c.harm / c.damage
        for c in wrong
        if c.count == 16 and c.damage > HARMFUL and np.isfinite(c.harm) and np.isfinite(c.mended)
    ]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]) if ratios else (np.nan,) * 3
    return f"{middle:.2f} in the median, {low:.2f} to {high:.2f} in half of the cases"


_PAGE = """# Evidence

Do the snapshots bear their tags out? Written by `python -m benchmarks.evidence` (about 20 minutes
on two free cores), with nothing edited by hand.

An average of weights says little about itself. Two averages of one training run say a lot: within
each stretch between two snapshots both must give back the same weights, if they are what their tags
say. Gammas that are exchanged, a wrong number of steps between updates, raw weights among averages,
a file of another run: all of these break that, and the break is far above rounding. phema looks for
it in the sample that it reads anyway. It costs {seconds:.1f} s of a processor here ({slowest:.1f} s
at most).

## What phema says

| `tags` | what it means | what to do |
| --- | --- | --- |
| confirmed | tested, nothing against them, no other tags fit as well | nothing |
| plausible | tested, nothing against them, but other tags fit as well | see below the table |
| unchecked | only one average is stored, or fewer than three times | be sure of the gammas |
| doubtful | a notice: other tags fit clearly better | check the gammas and the steps |
| contradicted | an error (exit 3) | see the next section |

*plausible* comes with `tag_error`: by so much, as a share of the averaging distance, the result
would change under the other tags, which are named. If you know your gammas, all is well.

## What to do on an alarm

- *Other tags are named, and you recognise them.* Pass them: `--gammas 5,10`, `--update-every 10`.
- *Files are named.* Each of them is of another run or another step, or is no average; leave it out
  with `--exclude`, or look at it with `phema inspect -v`.
- *An average never moved, or equals the raw weights.* It was never updated. Use the raw weights
  (`--raw`) and other averages.
- *Neither.* Raw weights stored as averages in a part of the run, two runs in one folder, or a run
  that diverged. Averages of such files are not what they seem.
- *You know better.* `--trust-tags` skips the test.

## What can't be seen

- **One average alone.** Any length of averaging is possible: training may be as smooth as it likes.
  Raw weights beside it, at the same times, are enough to compare.
- **Few times.** With 4 times only gross mistakes stand out; with 8 most; 16 see nearly all.
- **Coarse types.** bfloat16 hides differences of nearby gammas.
- **The valley.** If all weights glide alike, two averages fix one number only, nearly
  1/(gamma_1 + 1) - 1/(gamma_2 + 1): 5, 10 and 6.94, 16.97 are almost the same there.
- **Units of time.** Power functions have none; epochs told as steps do no harm to them.
- **What is wrong from the first file on, and alike in all of them**, such as weights of another
  model.

## How

Under the tags, [the method](method.md) fits how the weights moved. Then each snapshot is held back
and estimated from the others: `l` is the error that the sample shows, `v` the one that the fit
foretells. `s = mean(log v + l/v)` is a proper score in the data's own units, so that it compares
tags: `exp((s - s')/2)` is how many times worse the snapshots foretell each other.

- **L** = n (s of the tags - s of the best other ones), n snapshots: twice a log likelihood ratio.
  50 to 120 other tags are tried: all scales, each scale, exchanges, the valley, constant decays,
  warm-ups, raw weights, usual pairs, updates every 10 or 100 steps, counters that began too late;
  then a search around the best.
- **J** = the jitter of the fit over the time between snapshots, **C** = the largest l/v.
- **P** = the change of an answer (sigma_rel 0.05, 0.1, 0.2) if the best other tags are true, over
  the distance by which averaging moves the weights. An alarm or a notice by L needs P >= 0.05.
- `tag_error` = the largest P of all tags tried that explain the snapshots as well (L > -2). From
  12 times on L is less by ln n for each number that nobody uses: gammas of 4.7 and 9.1 always fit
  nearly as well as 5 and 10, but nobody has mistaken one for the other.

At most 16 times are used, with odd gaps between them, so that mistakes that alternate are seen.

{limits}

The limits come from a study of 44 other runs and six odd ones (restarts, thawing layers, spikes,
other data half-way), with a margin of two above what right tags gave there. Where all elements
move in few ways, r, as in transformers that SGD trains, nothing averages out, and the limits rise:
that of an alarm by (ways/r)^2, up to four times, that of a notice by the root of it. In 12 further
runs right tags gave an L of up to 14.8 (16 times, r 7 to 14) and 9.9 (8 times, r 10) in three
transformers of SGD under an rsqrt schedule, and at most 5.5 in all others. All of this was fixed
before the runs of this page. With series of unequal numbers of snapshots, the limits for L are
those of the second largest.

## Right tags

{runs} of {planned} runs of {steps} steps (MLP, convolutional flow, transformer; Adam, AdamW, SGD
with momentum; constant, cosine, wsd and rsqrt schedules; batches of 8 to 256), none of which set a
limit; {combinations} sets of averages each, 4, 8 and 16 times, three types: {right} cases, written
down before the first run of them (`benchmarks/evidence_cases.py`).

**{alarms} alarms, {notices} notices.** Of those with 16 times {confirmed} are confirmed.

{false_alarms}

Cases of one run are not independent, so no rate of false alarms follows from their number alone.

`tag_error` of right tags, median (largest):

{loose}

(`g`: gamma; `c20`: constant decay, 20 over the run; `w`: warm-up `min(0.9999, (1+n)/(10+n))`.)

## Wrong tags

{mistakes} mistakes on {wrong_runs} of {wrong_planned} runs. *Damage* is how far the result lies
from what right tags give, over the averaging distance (from 1 on, the last raw checkpoint would be
as good), at the worst of three targets. Of the cases with damage above 10 %:

{totals}

{silent}

P foretells the damage: P/damage is {ratio} (16 times).

Alarms by mistake (`+`: notices); *missed*: no alarm at 16 times of float32, damage above 10 %;
*mended*: with the first other tags named, the damage is below 10 %:

{detection}

The last rows are single averages, which can't be tested except for what alternates.
"""
