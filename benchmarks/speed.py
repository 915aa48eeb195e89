"""Speed and memory of a synthesis, as ratios to reading all inputs and writing all outputs.

    python -m benchmarks.speed            a quarter of an hour, 20 GB; writes docs/performance.md
    python -m benchmarks.speed --print    writes it to stdout

Each figure is the median of rounds in which all that is compared runs in turn, so that a machine
that is slow for a while is slow for all of it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.measuring import (
    MIB,
    PHEMA,
    Inputs,
    drop,
    emptied,
    measures_of,
    peak_above_torch,
    process,
    ratio,
    rounds,
)
from phema_cli.system.ranks import default_jobs

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
ROUNDS = 5
Lines = Iterator[str]


def one_target(root: Path) -> Lines:
    """One target of 16 snapshots, by element type."""
    yield "| | floor, s | flushed, s | phema, s | / floor | / flushed | `safe_open` loop, s |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    whole = []
    for dtype in ("float16", "bfloat16", "float32"):
        inputs = Inputs(root / dtype, dtype, 16, 256 * MIB, 32)
        inputs.make()
        with emptied(root / "out") as out:
            taken = rounds(measures_of(inputs, 1, out, whole=True), ROUNDS)
        if dtype != "float16":
            shutil.rmtree(inputs.folder)
        middle = {name: statistics.median(values) for name, values in taken.items()}
        yield (
            f"| {dtype} | {middle['floor']:.2f} | {middle['flushed']:.2f} | {middle['phema']:.2f} "
            f"| {ratio(taken, 'phema', 'floor'):.2f} | {ratio(taken, 'phema', 'flushed'):.2f} "
            f"| {middle['naive']:.2f} |"
        )
        whole.append(
            f"| {dtype} | {middle['whole']:.2f} | {middle['import']:.2f} "
            f"| {middle['import'] + 1.6 * middle['flushed'] + 0.5:.2f} |"
        )
    yield ""
    yield "The loop over `safe_open` holds whole tensors, and does not flush."
    yield ""
    yield "| whole process | s | `import torch`, s | bar, s |"
    yield "| --- | --- | --- | --- |"
    yield from whole
    yield ""
    yield "The bar is `import torch`, 1.6 times the flushed floor and half a second."


def many_targets(root: Path) -> Lines:
    """Several targets in one pass over 16 snapshots of float16."""
    inputs = Inputs(root / "float16", "float16", 16, 256 * MIB, 32)
    yield "| targets | floor, s | flushed, s | phema, s | / floor | / flushed |"
    yield "| --- | --- | --- | --- | --- | --- |"
    middles = {}
    for targets in (1, 8, 31):
        with emptied(root / "out") as out:
            count = ROUNDS if targets < 31 else 2
            taken = rounds(measures_of(inputs, targets, out), count)
        middle = {name: statistics.median(values) for name, values in taken.items()}
        middles[targets] = middle
        yield (
            f"| {targets} | {middle['floor']:.2f} | {middle['flushed']:.2f} "
            f"| {middle['phema']:.2f} | {ratio(taken, 'phema', 'floor'):.2f} "
            f"| {ratio(taken, 'phema', 'flushed'):.2f} |"
        )
    seven = middles[8]["flushed"] - middles[1]["flushed"]
    yield ""
    times = (middles[8]["phema"] - seven) / middles[1]["phema"]
    yield f"Eight targets take {times:.2f} times as long as one, and the {seven:.2f} s of writing"
    yield "the other seven."


def ranks(root: Path) -> Lines:
    """One rank and two, of one worker each."""
    inputs = Inputs(root / "float16", "float16", 16, 256 * MIB, 32)
    launcher = PHEMA.with_name("torchrun")

    def launch(count: int) -> float:
        with emptied(root / "out") as out:
            done = subprocess.run(
                [
                    *(launcher, "--standalone", f"--nproc-per-node={count}"),
                    *("-m", "benchmarks.rank", inputs.folder, out / "o.safetensors"),
                ],
                check=True,
                capture_output=True,
                text=True,
            )
        return float(done.stdout)

    taken = rounds({"one": lambda: launch(1), "two": lambda: launch(2)}, ROUNDS)
    rate = 16 * 256 * MIB / statistics.median(taken["one"])
    one, two = (statistics.median(taken[name]) for name in ("one", "two"))
    faster = ratio(taken, "one", "two")
    yield f"One rank with one worker takes {one:.2f} s, two ranks {two:.2f} s: {faster:.2f} times"
    yield "as fast."
    yield ""
    yield f"A worker reads and averages {rate / 1e9:.1f} GB/s from the cache. At that rate, or that"
    yield "of the storage where it is lower, 100 snapshots of 10^12 parameters in bfloat16 (200 TB"
    yield "read, 2 TB written) take, with 16 workers a node:"
    yield ""
    yield "| nodes | workers alone | storage of 2 GB/s a node | of 10 GB/s a node |"
    yield "| --- | --- | --- | --- |"
    for nodes in (1, 8, 64):
        hours = [
            202e12 / (nodes * min(16 * rate, storage)) / 3600 for storage in (math.inf, 2e9, 10e9)
        ]
        yield f"| {nodes} | " + " | ".join(f"{60 * h:,.0f} min" for h in hours) + " |"


def cold(root: Path) -> Lines:
    """Inputs that have to come from the disk."""
    inputs = Inputs(root / "float16", "float16", 16, 256 * MIB, 32)

    def cat() -> float:
        drop(inputs.files)
        return process("sh", "-c", f"cat {inputs.folder}/* > /dev/null")

    with emptied(root / "out") as out:
        warm = measures_of(inputs, 1, out)

        def phema() -> float:
            drop(inputs.files)
            return warm["phema"]()

        taken = rounds({"cat": cat, "phema": phema}, 3)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    yield f"The same inputs out of the cache: `cat` to /dev/null {middle['cat']:.2f} s, phema in"
    yield f"process {middle['phema']:.2f} s, {ratio(taken, 'phema', 'cat'):.2f} of it."


def memory(root: Path) -> Lines:
    """Peak memory of a checkpoint of 64 GiB, in a file that takes no space."""
    folder = root / "sparse"
    folder.mkdir()
    size = 64 << 30
    for step in (1, 2):
        head = {
            "__metadata__": {"gamma": "5.0", "step": str(step)},
            "w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
        }
        text = json.dumps(head)
        text += " " * (-len(text) % 8)
        with (folder / f"s{step}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text.encode())
            file.truncate(8 + len(text) + size)
    with emptied(root / "out") as out:
        peak = peak_above_torch(
            *(PHEMA, "synthesize", folder, "-q", "--trust-tags", "-g", "7"),
            *("--dtype", "float8_e5m2", "-o", out),
        )
    shutil.rmtree(folder)
    yield "Two sparse snapshots of 64 GiB, one tensor each, one target in float8: phema and its"
    yield f"workers take {peak:.0f} MiB above a process that only imports torch."


def start_up(_root: Path) -> Lines:
    """What starts without torch."""
    demo = Path(tempfile.mkdtemp())
    subprocess.run([str(PHEMA), "demo", str(demo / "d")], check=True, capture_output=True)
    ckpts = demo / "d" / "ckpts"
    taken = rounds(
        {
            "phema --help": lambda: process(PHEMA, "--help"),
            "phema inspect": lambda: process(PHEMA, "inspect", ckpts),
            "phema weights": lambda: process(PHEMA, "weights", ckpts, "-g", "7", "--no-sample"),
            "python -c 'import numpy'": lambda: process("python3", "-c", "import numpy"),
        },
        ROUNDS,
    )
    shutil.rmtree(demo)
    yield "| | s |"
    yield "| --- | --- |"
    for name, values in taken.items():
        yield f"| `{name}` | {statistics.median(values):.2f} |"


SECTIONS = {
    "One target": one_target,
    "Many targets": many_targets,
    "Ranks": ranks,
    "Cold": cold,
    "Memory": memory,
    "Start-up": start_up,
}

HEAD = """\
# Performance

`python -m benchmarks.speed` wrote this page. Medians and ratios within a round, on {jobs}
processors ({machine}), torch {torch}; the machine is shared with others.

The *floor* only reads all inputs and writes all outputs, in blocks of 1 MiB, by as many processes
as phema has workers. *Flushed* also flushes the outputs to the disk, as phema does. Inputs are 16
snapshots of 256 MiB in the cache, unless a section says otherwise.

Where phema is not fast: importing torch is most of the second that a small synthesis takes.
Packed snapshots in the cache take 1.2 times as long as float16, and packed ones of 8 bits from the
disk as long ([packing-measured.md](packing-measured.md)).
Transposed matrices of `.pt` files take up to twice as long as others where few snapshots are read,
and three times with 16, whose bands have to share the memory; channels last costs a tenth.
"""


def page(root: Path) -> Lines:
    """The page, line by line."""
    yield HEAD.format(jobs=default_jobs(), machine=platform.machine(), torch=torch.__version__)
    for title, section in SECTIONS.items():
        yield f"## {title}"
        yield ""
        yield from section(root)
        yield ""


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="write to stdout")
    parser.add_argument("--folder", type=Path, help="where the inputs go; removed afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        lines = []
        for line in page(Path(folder)):
            lines.append(line)
            if arguments.print:
                print(line, flush=True)
    if not arguments.print:
        # What growth, peers and summing have written stays.
        _, *others = PAGE.read_text(encoding="utf-8").partition("\n## Growth\n")
        PAGE.write_text("\n".join(lines).rstrip() + "\n" + "".join(others), encoding="utf-8")


if __name__ == "__main__":
    main()
