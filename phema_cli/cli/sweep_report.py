"""The page of a sweep: one file of HTML with its picture inside, to watch and to share.

It loads nothing and runs nothing, and all that comes from outside is escaped.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from phema_cli._version import __version__
from phema_cli.cli import render, sweep_words
from phema_cli.cli.pictures import check_place
from phema_cli.cli.sweep_curve import view
from phema_cli.cli.sweep_svg import escaped, svg
from phema_cli.errors import UsageError
from phema_cli.sweep.outcome import Outcome
from phema_cli.sweep.request import SweepRequest
from phema_cli.sweep.results import Record
from phema_cli.sweep.targets import Planner
from phema_cli.system.files import whole

#: seconds after which a browser reads the page again, while the sweep goes on.
_AGAIN = 20
_SIGMA = "σ_rel"  # noqa: RUF001 - the symbol
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #626b76;
  --rule: #d9dee4; --curve: #0072b2; --best: #c24e00; --as-good: #56b4e9;
  --good: #e2f3e6; --fair: #fdf3d6; --poor: #fbe3dc; --word-good: #1a7f37;
  --word-fair: #8a6100; --word-poor: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --paper: #14171a; --faint: #98a2ad;
  --rule: #343b42; --curve: #56b4e9; --best: #ff9a57; --as-good: #1d5f86;
  --good: #16301f; --fair: #35301a; --poor: #3b211c; --word-good: #5fce7f;
  --word-fair: #e5bd53; --word-poor: #ff8f80; } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 62rem;
  padding: 1rem; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, dl { margin: 0.5rem 0; } .state, .faint { color: var(--faint); }
.warning { border-left: 4px solid var(--best); padding: 0.25rem 0.75rem; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; display: block; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); }
svg text.faint { fill: var(--faint); } .middle { text-anchor: middle; } .end { text-anchor: end; }
svg .good { fill: var(--good); } svg .fair { fill: var(--fair); } svg .poor { fill: var(--poor); }
svg .exact { fill: var(--good); } .grid { stroke: var(--rule); fill: none; }
.axis { stroke: var(--ink); fill: none; }
.curve { stroke: var(--curve); stroke-width: 2; fill: none; }
.level { stroke: var(--faint); stroke-dasharray: 6 4; fill: none; }
.error { stroke: var(--curve); fill: none; } .beyond { fill: var(--faint); }
svg .point { stroke: var(--curve); stroke-width: 1.5; fill: var(--paper); }
svg .point.good { fill: var(--as-good); }
.best { stroke: var(--best); stroke-width: 2.5; fill: none; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--rule);
  vertical-align: top; overflow-wrap: normal; }
th { white-space: nowrap; font-weight: 600; } td.number, th.number { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
td .good { color: var(--word-good); } td .exact { color: var(--word-good); }
td .fair { color: var(--word-fair); } td .poor, .failed { color: var(--word-poor); }
tr.best td { font-weight: 600; } code { font: 0.85em/1.4 ui-monospace, monospace; }
pre { margin: 0.25rem 0 0.75rem; padding: 0.5rem 0.75rem; border: 1px solid var(--rule);
  white-space: pre-wrap; } dt { color: var(--faint); } dd { margin: 0 0 0.5rem; }
@media (max-width: 40rem) { body { padding: 0.75rem; }
  th, td { padding: 0.3rem; font-size: 0.85rem; } .rest { display: none; }
  td:first-child { overflow-wrap: anywhere; }
  svg text { font-size: 21px; } }
@media print { :root { --ink: #000; --paper: #fff; --faint: #555; --rule: #ccc; --curve: #0072b2;
  --best: #c24e00; --as-good: #56b4e9; --good: #e2f3e6; --fair: #fdf3d6; --poor: #fbe3dc;
  --word-good: #1a7f37; --word-fair: #8a6100; --word-poor: #b42318; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 13px; padding: 0; } tr, figure, pre { break-inside: avoid; }
  div.wide { overflow: visible; } th, td { padding: 0.2rem 0.35rem; font-size: 11px; } }
"""


class Page:
    """Writes the page.

    Args:
        path: the file.
        asked: what is evaluated.

    Raises:
        UsageError: its ending is none of HTML, or it is a directory.
        StorageError: there is no such directory.
    """

    def __init__(self, path: Path, asked: SweepRequest) -> None:
        if path.suffix.lower() not in {".html", ".htm"}:
            raise UsageError(
                "the report is a page of HTML", where=path, remedy="pass a name that ends in .html"
            )
        check_place(path)
        self._path = path
        self._asked = asked

    def write(self, planner: Planner, outcome: Outcome, left: int) -> None:
        """Write it again, whole or not at all.

        Raises:
            StorageError: the operating system failed.
        """
        text = "\n".join(_page(self._asked, planner, outcome, left)) + "\n"
        with whole(self._path) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="\n")


def _page(asked: SweepRequest, planner: Planner, outcome: Outcome, left: int) -> Iterator[str]:
    """The lines of the page."""
    title = f"Sweep of {asked.output}"
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    yield "style-src 'unsafe-inline'\">"
    if left:
        yield f'<meta http-equiv="refresh" content="{_AGAIN}">'
    yield f"<title>{escaped(title)}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{escaped(title)}</h1>"
    yield from _state(outcome, left)
    yield from _best(outcome, planner)
    drawn = view(outcome, asked)
    if drawn is not None and len(drawn.scale) > 1:
        yield f"<figure>{svg(drawn)}</figure>"
    yield from _table(outcome)
    yield from _commands(outcome, planner)
    yield from _about(asked, planner, outcome)
    yield "</body></html>"


def _state(outcome: Outcome, left: int) -> Iterator[str]:
    """How far it is."""
    done = sum(max(1, len(r.metrics)) for r in outcome.records)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    state = f"running: {done} of at most {done + left} evaluations" if left else "finished: "
    state += "" if left else render.counted(done, "evaluation")
    yield f'<p class="state">{state}; written {now}</p>'


def _best(outcome: Outcome, planner: Planner) -> Iterator[str]:
    """What was found, and what to know of it."""
    best = outcome.best
    if best is None:
        yield "<p>No evaluation gave a metric yet.</p>"
        return
    yield (
        f"<p>Best: <strong>{escaped(sweep_words.named(best, _SIGMA))}</strong> with a metric of "
        f"<strong>{best.metric:.7g}</strong>.</p>"
    )
    summary = sweep_words.summary(outcome)
    if summary is not None:
        yield f"<p>{escaped(summary[:1].upper() + summary[1:])}.</p>"
    for text in sweep_words.advice(outcome, planner):
        yield f'<p class="warning">{escaped(text[:1].upper() + text[1:])}.</p>'


def _table(outcome: Outcome) -> Iterator[str]:
    """A row for each target; what a telephone has no room for is left out there."""
    heads = (
        *(("target", ""), (_SIGMA, "number"), ("metric", "number"), ("±", "number rest")),
        *(("verdict", ""), ("sigma error", "number rest"), ("time", "number rest")),
        *(("finished, UTC", "number rest"), ("", "")),
    )
    yield '<h2>Evaluations</h2><div class="wide"><table><thead><tr>'
    yield "".join(f'<th class="{kind}">{name}</th>' for name, kind in heads)
    yield "</tr></thead><tbody>"
    for record in outcome.records:
        cells = _cells(record, outcome)
        row = "".join(
            f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(cells, heads, strict=True)
        )
        yield f'<tr class="{"best" if record is outcome.best else ""}">{row}</tr>'
    yield "</tbody></table></div>"


def _cells(record: Record, outcome: Outcome) -> Sequence[str]:
    """The cells of a row, as HTML."""
    note = escaped(", ".join(sweep_words.notes(record, outcome)))
    if record.failure is not None:
        note = f'<span class="failed">{escaped(record.failure)}</span>'
    cells = {name: escaped(text) for name, text in sweep_words.cells(record).items()}
    cells["verdict"] = f'<span class="{cells["verdict"]}">{cells["verdict"]}</span>'
    return (
        *cells.values(),
        render.duration(record.seconds),
        escaped((record.finished or "")[:16].replace("T", " ")),
        note,
    )


def _commands(outcome: Outcome, planner: Planner) -> Iterator[str]:
    """How to make each output again, that of the best first."""
    yield "<h2>To make one again</h2>"
    records = sorted(outcome.records, key=lambda r: r is not outcome.best)
    for record in records:
        command = planner.command(record)
        if command is not None:
            name = escaped(record.profile) + (" (best)" if record is outcome.best else "")
            yield f"<div>{name}</div><pre><code>{escaped(command)}</code></pre>"


def _about(asked: SweepRequest, planner: Planner, outcome: Outcome) -> Iterator[str]:
    """What was evaluated, and when."""
    finished = sorted(r.finished for r in outcome.records if r.finished is not None)
    ends = [f[:16].replace("T", " ") for f in (*finished[:1], *finished[-1:])]
    span = " to ".join(dict.fromkeys(ends))
    seconds = sum(r.seconds for r in outcome.records)
    first, last = planner.snapshots[0], planner.snapshots[-1]
    facts = [
        ("evaluation", f"<code>{escaped(asked.eval)}</code>"),
        ("best is", "the highest" if asked.maximize else "the lowest"),
        ("metric", escaped(sweep_words.metric_name(asked))),
        (
            "snapshots",
            f"{len(planner.snapshots)}, {escaped(first.name)} to {escaped(last.name)}",
        ),
        ("step of the targets", f"{planner.step:.12g}"),
        ("evaluated", f"{span} UTC, {render.duration(seconds)} in all" if span else "nothing yet"),
        ("results", f"<code>{escaped(Path(asked.output) / 'sweep.jsonl')}</code>"),
        ("written by", f"phema {__version__}"),
    ]
    yield "<h2>What was evaluated</h2><dl>"
    yield "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    yield "</dl>"
