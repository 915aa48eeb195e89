"""The page of the packing benchmark: its tables and its figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np

from benchmarks.fidelity_cases import SIGMA_RELS, geometric_mean
from benchmarks.measuring import WIDTH
from benchmarks.packing_cases import EVERY, KINDS, Case
from benchmarks.training import PAIRS
from phema_cli.formats.packing import BLOCK, FOLLOWED, Doubles

TEMPLATE = Path(__file__).with_name("packing_template.md")
#: snapshots of each gamma from which on the bars count.
ENOUGH = 16
TOLD_BAR = 95
_QUANTILES = (1, 5, 50, 95, 99)


@dataclass(frozen=True, slots=True)
class Bar:
    """What packed snapshots should reach.

    Attributes:
        packed: how they are stored.
        over: what they are compared with.
        error: the ratio of the errors, at most; None where nothing was said.
        size: that of the bytes.
    """

    packed: str
    over: str
    error: float | None
    size: float | None

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"{self.packed} / {self.over}"


BARS = (
    Bar("packed 16", "float16", 0.05, 1.05),
    Bar("packed 8", "float16", 0.2, 0.58),
    Bar("packed 4", "bfloat16", 0.5, 0.33),
    Bar("packed 4", "float16", None, None),
)


def report(found: Sequence[Case]) -> str:
    """The page up to what is measured apart."""
    usual = [c for c in found if c.count >= ENOUGH]
    packed = [c for c in usual if c.stored.startswith("packed")]
    missed = max(packed, key=lambda c: abs(np.log(c.expected / c.error)))
    return TEMPLATE.read_text().format(
        runs=len({c.run for c in found}),
        pairs=", or ".join(" and ".join(f"{g:.4g}" for g in pair) for pair in PAIRS),
        counts=_listed([str(n) for n in _counts(found)]),
        every=EVERY,
        followed=FOLLOWED,
        block=BLOCK,
        first=SIGMA_RELS[0],
        last=SIGMA_RELS[-1],
        enough=ENOUGH,
        told_bar=TOLD_BAR,
        errors=_errors(found),
        ratios=_ratios(usual),
        by_run=_by_run(usual),
        told=_told(usual),
        missed=fill(
            f"Of packed snapshots it is most wrong in *{missed.run}* ({missed.stored}, "
            f"{missed.count} of each gamma, sigma_rel {missed.sigma_rel}): "
            f"{missed.expected / missed.error:.2f} times the true one.",
            WIDTH,
        ),
    )


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _counts(found: Sequence[Case]) -> list[int]:
    """Numbers of snapshots that occur."""
    return sorted({c.count for c in found})


def ratios(found: Sequence[Case], bar: Bar, of: Callable[[Case], float]) -> Doubles:
    """Of each case that is packed, over the same one that is not."""
    plain = {_same(c): of(c) for c in found if c.stored == bar.over}
    return np.array([of(c) / plain[_same(c)] for c in found if c.stored == bar.packed])


def _same(case: Case) -> tuple[object, ...]:
    """What cases have in common that are stored in different ways."""
    return case.run, case.pair, case.count, case.sigma_rel


def _error(case: Case) -> float:
    return case.error


def _size(case: Case) -> float:
    return case.bytes_each


def _shares(found: Sequence[Case]) -> float:
    """Mean error as a share of the distance."""
    return geometric_mean(np.array([c.error / c.distance for c in found]))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _errors(found: Sequence[Case]) -> str:
    """Errors and bytes by type and count."""
    counts = _counts(found)
    rows = []
    for kind in KINDS:
        some = [[c for c in found if (c.stored, c.count) == (kind, n)] for n in counts]
        errors = [f"{_shares(cases):.1e}" for cases in some]
        rows.append([kind, *errors, *(f"{cases[0].bytes_each:.2f}" for cases in some)])
    heads = ["", *(f"error, {n}" for n in counts), *(f"bytes, {n}" for n in counts)]
    return _table(heads, rows)


def _ratios(found: Sequence[Case]) -> str:
    """The ratios over 16-bit types, and the bars."""
    rows = []
    runs = list(dict.fromkeys(c.run for c in found))
    for bar in BARS:
        errors, sizes = ratios(found, bar, _error), ratios(found, bar, _size)
        by_run = {
            run: geometric_mean(ratios([c for c in found if c.run == run], bar, _error))
            for run in runs
        }
        ordered = sorted(runs, key=by_run.__getitem__)
        rows.append(
            [
                bar.name,
                f"{geometric_mean(errors):.3f}",
                "" if bar.error is None else f"{bar.error:g}",
                *(f"{by_run[run]:.3f} ({run})" for run in (ordered[0], ordered[-1])),
                f"{errors.max():.2f}",
                f"{100 * (errors <= 1).mean():.1f}",
                f"{geometric_mean(sizes):.3f}",
                "" if bar.size is None else f"{bar.size:g}",
                f"{sizes.max():.3f}",
            ]
        )
    heads = ["", "error", "bar", "best run", "worst run", "worst case", "below 1 (%)"]
    return _table([*heads, "bytes", "bar", "most"], rows)


def _by_run(found: Sequence[Case]) -> str:
    """Errors, ratios and what is foretold by run."""
    kinds = ("float32", "float16", "packed 16", "packed 8", "packed 4")
    rows = []
    for run in dict.fromkeys(c.run for c in found):
        some = [c for c in found if c.run == run]
        errors = [f"{_shares([c for c in some if c.stored == kind]):.1e}" for kind in kinds]
        over = [f"{geometric_mean(ratios(some, bar, _error)):.3f}" for bar in BARS[:3]]
        told = _of_told([c for c in some if c.stored.startswith("packed")])
        rows.append([run, *errors, *over, f"{within_two(told):.1f}"])
    heads = ["", *kinds, *(bar.name for bar in BARS[:3]), "within 2 (%)"]
    return _table(heads, rows)


def _of_told(found: Sequence[Case]) -> Doubles:
    """What was foretold over what is true."""
    return np.array([c.expected / c.error for c in found])


def within_two(told: Doubles) -> float:
    """Per cent within a factor of 2."""
    return float(100 * (np.abs(np.log(told)) <= np.log(2)).mean())


def _told(found: Sequence[Case]) -> str:
    """How well errors are foretold, by type."""
    packed = [kind for kind in KINDS if kind.startswith("packed")]
    groups = {kind: [c for c in found if c.stored == kind] for kind in KINDS}
    groups["all packed"] = [c for c in found if c.stored in packed]
    rows = []
    for name, some in groups.items():
        told = _of_told(some)
        quantiles = [f"{q:.2f}" for q in np.percentile(told, _QUANTILES)]
        rows.append([name, str(len(some)), f"{within_two(told):.1f}", *quantiles])
    return _table(["", "cases", "within 2 (%)", *(f"{q} %" for q in _QUANTILES)], rows)


def draw(found: Sequence[Case], path: Path) -> None:
    """Errors against bytes: a curve for each type over the numbers of snapshots."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "phema", "font.size": 10})
    from matplotlib import pyplot as plt

    styles = {
        "float32": ("#0b6e99", "o"),
        "float16": ("#d08700", "s"),
        "bfloat16": ("#8a3ffc", "D"),
        "packed 16": ("#0f7b3f", "^"),
        "packed 8": ("#c2255c", "v"),
        "packed 4": ("0.25", "P"),
    }
    figure, axis = plt.subplots(figsize=(7.2, 5), layout="constrained")
    counts = _counts(found)
    for kind, (colour, marker) in styles.items():
        some = [[c for c in found if (c.stored, c.count) == (kind, n)] for n in counts]
        size = [len(PAIRS[0]) * n * s[0].bytes_each for n, s in zip(counts, some, strict=True)]
        errors = [_shares(cases) for cases in some]
        line = "-" if kind.startswith("packed") else "--"
        axis.plot(size, errors, line, color=colour, marker=marker, markersize=5, label=kind)
        if kind == "packed 8":
            for count, x, y in zip(counts, size, errors, strict=True):
                axis.annotate(str(count), (x, y), (-6, -12), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", yscale="log")
    axis.set(xlabel="bytes of all snapshots, for each parameter")
    axis.set(ylabel="error / distance that averaging moves (geometric mean)")
    axis.set_title(
        "synthesized averages; the numbers, and the points of each curve: snapshots of each gamma",
        fontsize=10,
    )
    axis.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=150, metadata={"Date": None})
    plt.close(figure)
