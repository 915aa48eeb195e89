"""The benchmark of packed snapshots, and its page."""

import json
import re
import subprocess

import pytest

from tests import warm
from tests.pages import ROOT


@pytest.mark.slow
def test_the_packing_benchmark_runs(tmp_path):
    """It trains, packs, solves and prints the tables; packed snapshots reach the bars in them."""
    command = [warm.python(), "-m", "benchmarks.packing", "--print", "--jobs", "1"]
    chosen = ["--runs", "mlp sgd constant", "--counts", "16", "--cases", tmp_path / "cases.json"]
    printed = subprocess.run(
        [*command, *chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for packed, over, bar in (
        ("packed 8", "float16", 0.5),
        ("packed 4", "bfloat16", 0.5),
    ):
        (row,) = re.findall(rf"^\| {packed} / {over} \| (.*) \|$", printed, re.MULTILINE)
        assert float(row.split(" | ")[0]) < bar
    (told,) = re.findall(r"^\| all packed \| 48 \| (.*) \|$", printed, re.MULTILINE)
    assert float(told.split(" | ")[0]) >= 95
    assert len(json.loads((tmp_path / "cases.json").read_text())) == 6 * 2 * 8


def test_the_page_is_within_its_bars():
    """What was measured reaches what packing is meant to reach."""
    page = (ROOT / "docs" / "packing-measured.md").read_text()
    table = page.split("## Against 16-bit types")[1].split("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    barred = [row for row in rows if len(row) == 10 and re.fullmatch(r"[0-9.]+", row[2])]
    assert len(barred) == 3
    for row in barred:
        assert float(row[1]) <= float(row[2])
        assert float(row[7]) <= float(row[8])
