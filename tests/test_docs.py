"""The documents: every command they show is run, and shows what they say."""

import json
import os
import re
import shutil
import subprocess
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from phema_cli.trainers.registry import TRAINERS
from tests import warm
from tests.builders import phema, write_run
from tests.pages import (
    CONTRIBUTING,
    ELSEWHERE,
    PAGES,
    README,
    ROOT,
    RUN,
    blocks,
    python,
    run,
    runnable,
)
from tests.reference import COMMANDS, reference


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=lambda p: p.name)
def test_blocks_of_a_page_run_and_show_what_is_printed(page, workplace):
    """A page's blocks run one after another, and its sessions show what the tool prints today."""
    if page == README:
        # The page itself makes them.
        shutil.rmtree(workplace / "ckpts")
    run(page, workplace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_block_is_left_unchecked(page):
    """Every block is run, saved for a later one that uses it, or checked by a test of its own."""
    text = page.read_text()
    assert len(re.findall(r"^\s*(```|~~~)", text, re.MULTILINE)) == 2 * len(blocks(page))
    sessions = "".join(b.text for b in blocks(page, "console"))
    for block in blocks(page):
        if (page.name, block.language) in ELSEWHERE:
            module, _, test = ELSEWHERE[page.name, block.language].partition("::")
            assert f"def {test}(" in (ROOT / "tests" / module).read_text()
        elif block.file:
            assert block.file in sessions or (block.file == "Makefile" and "$ make" in sessions)
        else:
            assert block.language in RUN, block


#: a rank of a program.
RANK = """\
import runpy
from tests.gloo import end_rank
runpy.run_path("train.py", run_name="__main__")
end_rank()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [b.text for b in blocks(ROOT / "docs" / "training.md", "python")],
    ids=["loop", "lightning", "transformers", "accelerate", "shards", "packed"],
)
def test_programs_of_the_training_page_leave_snapshots(code, tmp_path):
    """Each is run as it stands, by torchrun where it says so, and stores 20 of each gamma."""
    if "init_process_group" in code:
        (tmp_path / "train.py").write_text(code)
        (tmp_path / "rank.py").write_text(RANK)
        ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "rank.py"]
        subprocess.run(
            [warm.python(), *ranks],
            cwd=tmp_path,
            env=os.environ
            | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=200,
        )
    else:
        # What the libraries complain about is not ours.
        with warnings.catch_warnings(record=True):
            python(code, tmp_path, {"__name__": "__main__"})
    snapshots = phema("inspect", tmp_path / "ckpts", "--json").json["snapshots"]
    found = Counter((s["gamma"], s["dtype"]) for s in snapshots)
    dtype = "float32" if "packing" in code else "float16"
    assert found == {(5, dtype): 20, (10, dtype): 20}
    stored = [path.read_bytes() for path in (tmp_path / "ckpts").iterdir()]
    assert sum(b"weight.packed" in data for data in stored) == (39 if "packing" in code else 0)


@pytest.mark.slow
def test_training_loop_stores_snapshots(workplace):
    """The README's loop leaves ten float16 snapshots of each gamma."""
    run = phema("inspect", workplace / "ckpts")
    assert "20 snapshots of 2 gammas" in run.out
    assert "float16" in run.out


@pytest.mark.slow
def test_toml_example_is_understood(workplace, tmp_path):
    """The phema.toml of the documents does what its text says."""
    (toml,) = blocks(ROOT / "docs" / "trainers.md", "toml")
    shutil.copytree(workplace / "odd", tmp_path / "odd")
    (tmp_path / "odd" / "phema.toml").write_text(toml.text)
    torch.save({"ema": {"w": torch.rand(36)}, "lr": 1.0}, tmp_path / "odd" / "last.pt")
    (tmp_path / "odd" / "0_2000.safetensors").unlink()
    (tmp_path / "odd" / "optimizer-1.pt").write_text("not read")
    run = phema("inspect", tmp_path / "odd", "--json")
    assert run.code == 0, run.out
    tags = [(s["name"], s["gamma"], s["step"], s["gamma_origin"]) for s in run.json["snapshots"]]
    assert ("last.pt", 5, 2000, "phema.toml") in tags
    assert len(tags) == 4


def test_reference_is_what_the_commands_say():
    """docs/cli.md is what `make docs` writes."""
    assert (ROOT / "docs" / "cli.md").read_text() == reference()


def test_every_command_is_documented():
    """README and reference name every command, and there is none besides."""
    listed = re.findall(r"^│ (\w+) ", phema("--help", COLUMNS="100").out, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    readme = README.read_text()
    assert all(f"phema {command}" in readme for command in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    """Every relative link of a page is a file."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_make_targets_of_the_readme_exist():
    """What the README tells to make is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (block,) = blocks(README, "sh")
    assert set(re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE)) <= targets


@pytest.mark.slow
def test_make_demo_tells_the_truth(tmp_path):
    """Make demo compares with the directly tracked EMA, and ends with a sweep and its picture."""
    for name in ("Makefile", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    stamp = ROOT / ".venv" / ".installed"
    # As a newcomer calls it, also when the tests themselves run under make.
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
    run = subprocess.run(
        ["make", "-o", str(stamp.relative_to(ROOT)), "demo", f"BIN={warm.programs()}"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k not in outer},
        capture_output=True,
        text=True,
        check=True,
    )
    *_, compared, _, swept, best = run.stdout.splitlines()
    assert "relative difference" in compared
    assert swept.startswith("$ phema sweep demo/ckpts")
    assert (tmp_path / best).parent == tmp_path / "demo" / "sweep"
    assert re.search(r"^gamma .* best *$", run.stderr, re.MULTILINE)
    assert "★ best: 0." in run.stderr
    assert (tmp_path / "demo" / "sweep.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_the_fidelity_benchmark_runs(tmp_path):
    """A run of the benchmark trains, solves and prints the page's tables; blue is ahead in them."""
    command = [warm.python(), "-m", "benchmarks.fidelity", "--print", "--jobs", "1"]
    chosen = ["--runs", "mlp sgd constant", "--counts", "8", "--cases", tmp_path / "cases.json"]
    printed = subprocess.run(
        [*command, *chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (row,) = re.findall(r"^\| all \| 48 \| (.*) \|$", printed, re.MULTILINE)
    over_normalized, worst, over_projection = map(float, row.split(" | ")[:3])
    assert over_normalized < 0.6
    assert worst < 1.05
    assert over_projection < 0.3
    (planned,) = re.findall(r"^\| an earlier run, `--like` \| all \| 48 \| (.*) \|$", printed, re.M)
    assert float(planned.split(" | ")[0]) >= 90
    assert len(json.loads((tmp_path / "cases.json").read_text())) == 48 + 8


@pytest.mark.slow
def test_the_toy_figure_is_drawn(tmp_path):
    """The script of the method's figure draws it."""
    subprocess.run([warm.python(), "docs/toy.py", tmp_path / "toy.svg"], cwd=ROOT, check=True)
    drawn = (tmp_path / "toy.svg").read_text()
    assert drawn.startswith("<?xml")


def test_readme_and_fidelity_page_tell_the_same():
    """The figures of the README are those of the line of all cases."""
    page = (ROOT / "docs" / "fidelity.md").read_text()
    table = page.split("## ")[1]
    pattern = r"^\| all \| (\d+) \| (\S+) \| (\S+) \|.*\| (\S+) \| \S+ \|$"
    (row,) = re.findall(pattern, table, re.MULTILINE)
    cases, mean, worst, within = row
    readme = " ".join(README.read_text().split())
    assert f"Over {int(cases):,} cases" in readme
    assert f"was {float(mean):.2f} of that" in readme
    assert f"{worst} at worst" in readme
    assert f"in {float(within):.0f} % of them" in readme


def test_plan_and_fidelity_page_tell_the_same():
    """What plans are worth is said with the figures that were measured; --like meets its bar."""
    page = (ROOT / "docs" / "fidelity.md").read_text()
    cells = [
        [c.strip() for c in line.strip("|").split("|")]
        for line in page.split("## What was predicted before the run")[1].splitlines()
        if line.startswith(("| an earlier run", "| the schedule"))
    ]
    assert float(cells[0][3]) >= 90
    told = re.findall(
        r"(\d+\.\d) %", (ROOT / "docs" / "plan.md").read_text().split("## What is assumed")[1]
    )
    assert told == [cells[0][3], *(row[6] for row in cells[1:])]


@pytest.mark.slow
def test_toy_format_of_the_page_works(tmp_path):
    """The format that the page adds is read, compared and written by the real commands."""
    shutil.copytree(ROOT / "phema_cli", tmp_path / "phema_cli")
    _, module, _ = blocks(CONTRIBUTING, "python")
    (tmp_path / "phema_cli/formats/toy.py").write_text(module.text)
    registry = tmp_path / "phema_cli/formats/registry.py"
    text = registry.read_text()
    first = text.index('        "safetensors": Row(')
    (row,) = re.findall(r'`("toy": Row\(.*?\))`', CONTRIBUTING.read_text())
    registry.write_text(f"{text[:first]}        {row},\n{text[first:]}")
    ckpts = tmp_path / "ckpts"
    ckpts.mkdir()
    for gamma, value in ((5, 1.0), (10, 2.0)):
        header = {"tensors": {"w": [3]}, "metadata": {"gamma": gamma, "step": 100}}
        values = np.full(3, value, "<f4").tobytes()
        (ckpts / f"{gamma}.toy").write_bytes(json.dumps(header).encode() + b"\n" + values)

    def toy_phema(*arguments):
        done = subprocess.run(
            [warm.python(), "-m", "phema_cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "2 snapshots of 2 gammas" in toy_phema("inspect", "ckpts")
    assert toy_phema("synthesize", "ckpts", "--gamma", "10", "-o", "ema.toy") == "ema.toy\n"
    toy_phema("synthesize", "ckpts", "--gamma", "10", "-o", "ema.safetensors")
    assert "1 identical" in toy_phema("diff", "ema.safetensors", "ema.toy")
    assert "1 identical" in toy_phema("diff", "ckpts/10.toy", "ema.toy")


def test_the_table_of_trainers_is_the_registry():
    """docs/trainers.md has a row for each registered trainer: its files, and what to pass."""
    page = (ROOT / "docs" / "trainers.md").read_text()
    table = page.partition("| --- | --- | --- |\n")[2].partition("\n\n")[0]
    rows = [row.strip("|").split(" | ") for row in table.splitlines()]
    assert [name.strip() for name, _, _ in rows] == [t.NAME for t in TRAINERS]
    assert all(cell.strip() for row in rows for cell in row)


@pytest.mark.slow
def test_toy_trainer_of_the_page_works(tmp_path):
    """The trainer that the page adds says all of its files, by the real command."""
    shutil.copytree(ROOT / "phema_cli", tmp_path / "phema_cli")
    module, *_ = blocks(CONTRIBUTING, "python")
    (tmp_path / "phema_cli/trainers/toy.py").write_text(module.text)
    registry = tmp_path / "phema_cli/trainers/registry.py"
    text = registry.read_text()
    first = text.index('    "phema",\n')
    registry.write_text(f'{text[:first]}    "toy",\n{text[first:]}')
    (tmp_path / "ckpts").mkdir()
    for done in (100, 200):
        content = {"net": {"w": torch.rand(3)}, "slow": {"w": torch.rand(3)}}
        torch.save(content | {"decay": 0.9, "done": done}, tmp_path / f"ckpts/toy-{done}.pt")
    done = subprocess.run(
        [warm.python(), "-m", "phema_cli", "inspect", "ckpts", "--no-sample", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["snapshots"]
    tags = {(s["layout"], s["average"], s["series"], s["step"]) for s in found}
    assert tags == {
        ("toy", average, series, step)
        for average, series in (("exponential:beta=0.9", "slow"), ("raw", "net"))
        for step in (100, 200)
    }


@pytest.mark.slow
def test_toy_command_of_the_page_works(tmp_path):
    """The command that the page adds has the options that it takes, and its help."""
    shutil.copytree(ROOT / "phema_cli", tmp_path / "phema_cli")
    *_, module = blocks(CONTRIBUTING, "python")
    (tmp_path / "phema_cli/cli/steps.py").write_text(module.text)
    app = tmp_path / "phema_cli/cli/app.py"
    text = app.read_text()
    line = "    demo.demo,\n"
    added = f"{line}    steps.steps,\n"
    app.write_text(text.replace(line, added).replace("    render,\n", "    render,\n    steps,\n"))
    write_run(tmp_path / "ckpts")

    def toy_phema(*arguments):
        command = [warm.python(), "-m", "phema_cli", "steps", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert toy_phema("ckpts", "--exclude", "*25*") == "50\n75\n100\n"
    assert "phema steps ckpts/" in toy_phema("--help")
