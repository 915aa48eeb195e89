"""What a sweep says: each evaluation, where the best is, what to do where that is not sure."""

import re
from collections.abc import Iterator

from phema_cli.cli import render
from phema_cli.options import number_text
from phema_cli.sweep.families import SIGMA_REL
from phema_cli.sweep.outcome import Curve, Outcome
from phema_cli.sweep.request import CHECKPOINTS, SweepRequest
from phema_cli.sweep.results import Record
from phema_cli.sweep.targets import Planner
from phema_cli.system.processes import quoted

#: sigma_rel above which there is nothing more to evaluate, and such a part of a run.
_LONGEST, _WHOLE = 0.28, 0.98
#: how near to a limit a length is that limit.
_NEAR = 1.05
_WORD = re.compile(r"[^\W\d][\w@-]*(?: [^\W\d][\w@-]*)*")


def metric_name(asked: SweepRequest) -> str:
    """What the metric is called: by its key, or by the words of its pattern."""
    if asked.metric_key is not None:
        return asked.metric_key
    # Of a regular expression, what it says before its first sign that is none.
    found = _WORD.match((asked.metric or "").lstrip("^( "))
    return found[0] if found else "metric"


def cells(record: Record) -> dict[str, str]:
    """What tables say of an evaluation, by column; empty where it is not known."""
    r = record
    return {
        "target": r.profile,
        "sigma_rel": "" if r.sigma_rel is None else f"{r.sigma_rel:.4g}",
        "metric": "" if r.metric is None else f"{r.metric:.7g}",
        "±": "" if r.error is None else f"{r.error:.2g}",
        "verdict": r.verdict,
        "sigma error": "" if r.sigma_error is None else render.per_cent(r.sigma_error),
    }


def named(record: Record, symbol: str = SIGMA_REL) -> str:
    """The target of an evaluation in a sentence, its sigma_rel by a symbol."""
    at = "" if record.sigma_rel is None else f"{symbol} {record.sigma_rel:.4g}, "
    return at + record.profile + ("" if record.baseline is None else f" ({record.baseline})")


def notes(record: Record, outcome: Outcome) -> list[str]:
    """Which baseline an evaluation is of, and whether it is ``best`` or ``as good``."""
    said = [] if record.baseline is None else [record.baseline]
    if record is outcome.best:
        return [*said, "best"]
    return [*said, "as good"] if record.target in outcome.as_good else said


def summary(outcome: Outcome) -> str | None:
    """Where the best length is, if a curve through noisy metrics says so."""
    curve = outcome.curve
    if curve is None or curve.optimum is None or outcome.best not in curve.records:
        return None
    best = curve.optimum
    if not best.fitted:
        return None
    text = (
        f"fitted optimum: {curve.family.said(best.scale)}, metric {best.metric:.5g}; "
        f"an evaluation has a noise of {best.noise or 0:.2g}"
    )
    good = [s for s, as_good in zip(curve.scales, best.as_good, strict=True) if as_good]
    if len(good) > 1:
        return f"{text}; from {good[0]:.4g} to {good[-1]:.4g} all are as good"
    return text


def advice(outcome: Outcome, planner: Planner) -> Iterator[str]:
    """What the user should know of the place of the best, one sentence or two each."""
    curve, best = outcome.curve, outcome.best
    if outcome.position == "flat":
        yield "all metrics are equal: is {path} what --eval evaluates?"
    elif curve is not None and outcome.position in {"lowest", "highest"}:
        text = _at_an_end(outcome, curve, planner)
        if text is not None:
            yield text
    if best is not None and best.verdict == "poor" and best.baseline is None:
        error = best.sigma_error
        by = "" if error is None else f" by about {render.per_cent(error)}"
        yield (
            f"the best is poor: its metric is what it is, but its length is off{by}; "
            f"{_plan(curve, best, planner)} says which snapshots would reach it"
        )


def _at_an_end(outcome: Outcome, curve: Curve, planner: Planner) -> str | None:
    """What the best says at an end of what was evaluated; None where there is nothing beyond."""
    low = outcome.position == "lowest"
    best = curve.best
    if best is None:
        return None
    scale = curve.scales[curve.records.index(best)]
    most = {SIGMA_REL: _LONGEST, CHECKPOINTS: scale}.get(curve.family.name)
    if most is None:
        most = _WHOLE * (curve.family.end if curve.family.steps else 1.0)
    if not low and scale >= most:
        return None
    end = "shortest" if low else "longest"
    beyond = "below" if low else "above"
    limits = outcome.limits
    if limits is not None and (
        scale <= limits.low * _NEAR if low else scale >= limits.high / _NEAR
    ):
        text = f"the best, {curve.family.said(scale)}, is the {end} that these snapshots allow"
        if curve.family.name == CHECKPOINTS:
            return f"{text}: a single one"
        return (
            f"{text}: the optimum may lie {beyond}; next time store what "
            f"{_plan(curve, best, planner)} says"
        )
    more = planner.refine + 4
    return (
        f"the best, {curve.family.said(scale)}, is the {end} that was evaluated: the optimum may "
        f"lie {beyond}; the same command with --refine {more} goes on"
    )


def _plan(curve: Curve | None, best: Record, planner: Planner) -> str:
    """The command that says which snapshots a run should store to reach beyond the best."""
    width = best.sigma_rel or 0.1
    widths = [width]
    if curve is not None and best in curve.records:
        steps = len({s.tag.step for s in planner.snapshots})
        widths = [curve.family.width(s, steps) for s in curve.scales]
        width = widths[curve.records.index(best)]
    low = max(min(width / 2, *widths), 0.001)
    high = min(max(width * 2, *widths), _LONGEST)
    root = planner.scan.roots[0] if planner.scan.roots else "ckpts"
    return (
        f"phema plan --steps {number_text(round(planner.step))} --like {quoted(root)} "
        f"--range {low:.2g},{high:.2g}"
    )
