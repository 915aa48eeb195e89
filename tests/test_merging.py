"""The pages on merging, and the benchmark that measures it."""

import json
import re
import subprocess

import pytest

from tests import warm
from tests.pages import ROOT


def rows(text, columns):
    """The rows of a page's tables with so many cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [row for row in cells if len(row) == columns]


@pytest.mark.slow
def test_the_merging_benchmark_runs(tmp_path):
    """It trains, merges and prints the tables; estimates are closer than published weights."""
    cases = tmp_path / "cases.json"
    command = [warm.python(), "-m", "benchmarks.decay", "--print", "--steps", "100"]
    printed = subprocess.run(
        [*command, "--seeds", "1", "--batches", "2", "--jobs", "1", "--cases", cases],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    against = [row for row in rows(printed, 6) if row[0].isdigit()]
    assert [row[0] for row in against] == ["5", "10", "20"]
    assert all(float(worst) < 1 for row in against for worst in (row[2], row[4]))
    found = json.loads(cases.read_text())
    # Of each shape: four kinds of weights of 5, 10 and 20 files, the averages, and what they are
    # compared with.
    assert len(found) == 3 * (4 * 3 + 4)
    (summed,) = (c for c in found if (c["name"][:13], c["shape"]) == ("the run's own", "sqrt"))
    assert summed["error"] == 0


def test_the_two_pages_tell_the_same():
    """What merging.md says of losses and distances is what was measured."""
    measured = (ROOT / "docs" / "merging-measured.md").read_text()
    page = (ROOT / "docs" / "merging.md").read_text()
    losses, rest = measured.split("## Distance from the sum")
    by_sqrt = {(name, count): last for name, count, *_, last in rows(losses, 5)}
    told = [loss for _, loss in rows(page.split("## What it is worth")[1], 2)[2:]]
    all_of_run, published = (
        "`decay:`, all checkpoints of the run",
        "published weights, those in the window",
    )
    assert told == [
        by_sqrt["last weights, not decayed", ""],
        by_sqrt[all_of_run, "5"],
        by_sqrt[published, "5"],
        by_sqrt[all_of_run, "20"],
        by_sqrt[published, "20"],
        by_sqrt["`decay:`, 20 snapshots each of gamma 5 and 10", ""],
        by_sqrt["the run's own sum, from every step", ""],
        by_sqrt["learning rate really decayed", ""],
    ]
    against = [row for row in rows(rest, 6) if row[0].isdigit()]
    sentence = " ".join(page.split())
    for count, mean, worst, _, worst_inside, _ in against:
        assert re.search(rf"\b{mean} (of .* distance .* )?with {count}\b", sentence)
        assert max(float(worst), float(worst_inside)) <= 1
