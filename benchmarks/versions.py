"""Two versions of phema on the same snapshots: how far their outputs are apart.

    git worktree add ../old v0.1.0
    python -m benchmarks.versions ../old synthesize --gamma 7 ckpts/ -o ema.safetensors
    python -m benchmarks.versions --rounds 5 ../old synthesize ...

Runs the command with the phema of ``../old`` and then with this one, and prints on stderr how many
tensors differ and by how many units in the last place of the output's type. All else is as the
command of this version has it: its stdout and stderr, its output, its exit code. So it can stand
wherever ``phema`` stands (``PHEMA`` of a script); with VERSIONS_LOG its line goes to that file.
With rounds both run that often in turn, with --overwrite, and the line has their median times.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

HERE = Path(__file__).parents[1]
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def run(tree: Path, arguments: list[str], *, quiet: bool) -> int:
    """Run the phema that lies in a directory; returns its exit code."""
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    command = [sys.executable, "-P", "-m", "phema_cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=quiet, check=False).returncode


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of an output: a file, or a directory of shards."""
    if path.is_dir():
        files = sorted(path.rglob("*.safetensors"))
        return {n: t for file in files for n, t in load_file(file).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    return dict(torch.load(path, weights_only=True))


def units_apart(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest distance of two tensors' elements, in units in the last place.

    Floats of one sign are ordered as the integers of their bits are; negative ones count down.
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        return sys.maxsize
    if not a.is_floating_point():
        return 0 if torch.equal(a, b) else sys.maxsize
    bits = INTEGERS[a.element_size()]
    places = []
    for tensor in (a, b):
        integers = tensor.contiguous().reshape(-1).view(bits).to(torch.int64)
        least = torch.iinfo(bits).min
        places.append(torch.where(integers < 0, least - integers, integers))
    return int((places[0] - places[1]).abs().max()) if a.numel() else 0


def compare(old: Path, new: Path) -> str:
    """What differs between two outputs, in a line."""
    if not (old.exists() and new.exists()):
        return (
            f"old {'wrote' if old.exists() else 'none'}, new {'wrote' if new.exists() else 'none'}"
        )
    before, after = tensors(old), tensors(new)
    apart = {n: units_apart(before[n], after[n]) for n in before.keys() & after.keys()}
    differ = sum(units > 0 for units in apart.values())
    worst = max(apart.values(), default=0)
    others = sorted(before.keys() ^ after.keys())
    return f"{len(apart)} tensors, {differ} differ, by at most {worst} units in the last place" + (
        f"; only in one: {', '.join(others[:3])}" if others else ""
    )


def timed(old: Path, before: list[str], after: list[str], rounds: int) -> str:
    """Seconds that whole processes take, and their ratio, in words."""
    seconds: dict[Path, list[float]] = {old: [], HERE: []}
    for _ in range(rounds):
        for tree, arguments in ((old, before), (HERE, after)):
            start = time.perf_counter()
            run(tree, [*arguments, "--overwrite"], quiet=True)
            seconds[tree].append(time.perf_counter() - start)
    ratios = [new / was for was, new in zip(*seconds.values(), strict=True)]
    was, new = (statistics.median(values) for values in seconds.values())
    return f"; {was:.2f} and {new:.2f} s, ratio {statistics.median(ratios):.2f}"


def main() -> int:
    """Run both and compare; the exit code is this version's."""
    given = sys.argv[1:]
    rounds = 0
    if given[0] == "--rounds":
        rounds, given = int(given[1]), given[2:]
    old, *arguments = given
    place = next((i + 1 for i, a in enumerate(arguments) if a in {"-o", "--output"}), None)
    if place is None:
        raise SystemExit("pass -o: the outputs are compared there")
    output = Path(arguments[place])
    with tempfile.TemporaryDirectory() as folder:
        # The same name: endings and directories mean something.
        before = Path(folder) / output.name
        asked = [*arguments[:place], str(before), *arguments[place + 1 :]]
        earlier = run(Path(old), asked, quiet=True)
        code = run(HERE, arguments, quiet=False)
        line = f"exit {earlier} and {code}: {compare(before, output)}"
        if rounds:
            line += timed(Path(old), asked, arguments, rounds)
    log = os.environ.get("VERSIONS_LOG")
    if log:
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{' '.join(arguments)}\n    {line}\n")
    else:
        print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
