"""How far averages of packed snapshots are from directly tracked ones, and what they cost.

Trains the runs of ``benchmarks/training.py``, stores their snapshots in three types and packed in
three ways, and compares what is synthesized with the average tracked in float64. Writes
``docs/packing-measured.md`` and ``docs/packing.svg`` (half an hour on two cores):

    python -m benchmarks.packing

Its last two sections can be measured alone, other ways to pack and the speed:

    python -m benchmarks.packing --further
    python -m benchmarks.packing --speed
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks import packing_further, packing_speed
from benchmarks.measuring import with_section
from benchmarks.packing_cases import COUNTS, Case, cases
from benchmarks.packing_page import draw, report
from benchmarks.training import RUNS, of_runs

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "packing-measured.md"


def main() -> None:
    """Measure what is asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="", help="only runs whose names hold this")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="snapshots per gamma")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--print", action="store_true", help="print the page, write nothing")
    parser.add_argument("--cases", type=Path, help="keep the cases in this file, or take them")
    parser.add_argument("--further", action="store_true", help="measure other ways to pack alone")
    parser.add_argument("--speed", action="store_true", help="measure the speed alone")
    given = parser.parse_args()
    alone = given.further or given.speed
    page = PAGE.read_text() if alone else ""
    if not alone:
        found = _cases(given)
        page = report(found)
        if given.print:
            print(page, end="")
            return
        draw(found, DOCS / "packing.svg")
    if given.further or not alone:
        page = with_section(page, packing_further.section(packing_further.measure(given.jobs)))
    if given.speed or not alone:
        page = with_section(page, packing_speed.section(packing_speed.measure()))
    if given.print:
        print(page, end="")
    else:
        PAGE.write_text(page)


def _cases(given: argparse.Namespace) -> list[Case]:
    """The cases, measured or taken from a file."""
    if given.cases and given.cases.exists():
        return [Case(**c) for c in json.loads(given.cases.read_text())]
    counts = [int(c) for c in given.counts.split(",")]
    found = of_runs(cases, [r for r in RUNS if given.runs in r.name], counts, given.jobs)
    if given.cases:
        given.cases.write_text(json.dumps([asdict(c) for c in found]))
    return found


if __name__ == "__main__":
    main()
