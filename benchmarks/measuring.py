"""Inputs of any shape, and what phema, plain reads and writes, and others take for them."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from phema_cli.snapshots import Config, scan
from phema_cli.synthesis import Request, make_recipe
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.recipe import Recipe
from phema_cli.system.ranks import default_jobs

#: characters of the lines of a page.
WIDTH = 120
MIB = 1 << 20
PHEMA = Path(sys.executable).with_name("phema")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Inputs:
    """Snapshots on disk.

    Attributes:
        folder: where they are.
        dtype: element type, as torch names it.
        count: how many.
        size: bytes of tensors in each.
        tensors: how many in each.
    """

    folder: Path
    dtype: str
    count: int
    size: int
    tensors: int

    def make(self) -> None:
        """Write them: the gammas 5 and 10 in turn, and weights that drift a little."""
        self.folder.mkdir(parents=True)
        dtype: torch.dtype = getattr(torch, self.dtype)
        elements = self.size // self.tensors // dtype.itemsize
        random = torch.Generator().manual_seed(0)
        base = [torch.randn(elements, generator=random) for _ in range(self.tensors)]
        for i in range(self.count):
            step = (i // 2 + 1) * 1000
            metadata = {"gamma": str((5.0, 10.0)[i % 2]), "step": str(step)}
            scale = 1 + 0.01 * step / 1000 + 0.001 * (i % 2)
            values = {f"layer{j:05d}": (w * scale).to(dtype) for j, w in enumerate(base)}
            save_file(values, self.folder / f"s{i:04d}.safetensors", metadata)

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return sorted(self.folder.iterdir())


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def process(*command: object) -> float:
    """How long a process takes, from its start to its end."""
    return seconds(
        lambda: subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    )


def forked(work: Callable[[int], None], jobs: int) -> None:
    """Run one function in so many processes."""
    children = []
    for number in range(jobs):
        child = os.fork()
        if child == 0:
            work(number)
            os._exit(0)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError("a worker of the floor failed")


def floor(inputs: Sequence[Path], outputs: Sequence[Path], size: int, *, flush: bool) -> float:
    """Seconds to read all inputs and write all outputs, in blocks, by as many processes as phema's.

    Args:
        inputs: files that are read whole.
        outputs: files that are made, of the size of one input.
        size: bytes of each output.
        flush: whether they are flushed to the disk, as phema's are.
    """
    jobs = default_jobs()

    def work(number: int) -> None:
        block = memoryview(bytearray(_BLOCK))
        sources = [os.open(p, os.O_RDONLY) for p in inputs]
        targets = [os.open(p, os.O_WRONLY) for p in outputs]
        for offset in range(number * _BLOCK, size, jobs * _BLOCK):
            for source in sources:
                os.preadv(source, [block], offset)
            for target in targets:
                os.pwrite(target, block[: min(_BLOCK, size - offset)], offset)

    start = time.perf_counter()
    for path in outputs:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    forked(work, jobs)
    if flush:
        flush_all(outputs)
    return time.perf_counter() - start


def flush_all(paths: Sequence[Path]) -> None:
    """Have files on the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def naive(inputs: Sequence[Path], output: Path) -> None:
    """The loop that people write: every tensor of every file, whole, in float32."""
    weight = 1 / len(inputs)
    total: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in inputs:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                value = file.get_tensor(name)
                dtypes[name] = value.dtype
                total[name] = total.get(name, torch.zeros(())) + weight * value.float()
    save_file({n: v.to(dtypes[n]) for n, v in total.items()}, output)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A directory with nothing in it, before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def gammas_of(targets: int) -> tuple[float, ...]:
    """So many targets between gamma 5 and 10."""
    return (7.0,) if targets == 1 else tuple(np.linspace(5.5, 9.5, targets))


def recipe_for(inputs: Inputs, targets: int, out: Path) -> Recipe:
    """The plan for so many targets."""
    # The inputs are made up: they are no averages of a run.
    request = Request(
        gamma=gammas_of(targets),
        output=str(out / "{gamma}.safetensors"),
        config=Config(trust_tags=True),
    )
    recipe, _ = make_recipe(scan([inputs.folder], request.config), request)
    if recipe is None:
        raise RuntimeError("nothing to do")
    return recipe


def drop(files: Sequence[Path]) -> None:
    """Have the system forget files, so that they are read from the disk."""
    flush_all(files)
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


Measures = dict[str, Callable[[], float]]


def rounds(measures: Measures, count: int) -> dict[str, list[float]]:
    """Each measure once a round, after a round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(count + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                taken[name].append(value)
    return taken


def ratio(taken: dict[str, list[float]], above: str, below: str) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(taken[above], taken[below], strict=True))


def measures_of(inputs: Inputs, targets: int, out: Path, *, whole: bool = False) -> Measures:
    """What is compared for a case."""
    recipe = recipe_for(inputs, targets, out)
    size = inputs.files[0].stat().st_size
    files = [out / f"floor{k}" for k in range(targets)]

    def in_process() -> float:
        with emptied(out):
            return seconds(lambda: execute(recipe, processes=True))

    def command() -> float:
        gammas = ",".join(f"{gamma:g}" for gamma in gammas_of(targets))
        with emptied(out):
            asked = ("-q", "--trust-tags", "-g", gammas, "-o", out)
            return process(PHEMA, "synthesize", inputs.folder, *asked)

    def floored(*, flush: bool) -> float:
        with emptied(out):
            return floor(inputs.files, files, size, flush=flush)

    def loop() -> float:
        with emptied(out):
            return seconds(lambda: naive(inputs.files, out / "naive.safetensors"))

    found: Measures = {
        "floor": lambda: floored(flush=False),
        "flushed": lambda: floored(flush=True),
        "phema": in_process,
    }
    if whole:
        found |= {
            "whole": command,
            "import": lambda: process(sys.executable, "-c", "import torch"),
            "naive": loop,
        }
    return found


def peak_above_torch(*command: object) -> float:
    """MiB that a command and its workers take at most, above a process that imports torch."""
    return measured_command(*command)[1] - torch_alone()


@cache
def torch_alone() -> float:
    """MiB of a process that imports torch, and does nothing else."""
    bare = [sys.executable, "-c", "import torch, time; print(flush=True); time.sleep(1)"]
    with subprocess.Popen(bare, stdout=subprocess.PIPE) as waiting:
        if waiting.stdout is None:
            raise RuntimeError("no stdout")
        waiting.stdout.readline()
        return _pss(waiting.pid) / 1024


def measured_command(*command: object) -> tuple[float, float]:
    """Seconds that a command takes, and MiB that it and its workers take at most.

    Memory that processes share is counted once (the sum of PSS, looked at all the time).
    """
    most, start = 0, time.perf_counter()
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            most = max(most, _pss(running.pid))
            time.sleep(0.01)
    if running.returncode:
        raise RuntimeError(f"{command} failed")
    return time.perf_counter() - start, most / 1024


def _pss(pid: int) -> int:
    """KiB of a process and its children."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return total
    return total + sum(_pss(int(child)) for child in children)


def publish(section: str, page: str = "performance.md") -> None:
    """Put a section into a page of docs, or print it where the command says ``--print``."""
    if "--print" in sys.argv[1:]:
        print(section)
        return
    path = Path(__file__).parents[1] / "docs" / page
    path.write_text(with_section(path.read_text(encoding="utf-8"), section), encoding="utf-8")


def with_section(page: str, section: str) -> str:
    """The page with a section of the second level replaced, or added at its end."""
    heading = section.partition("\n")[0]
    before, _, rest = page.partition(f"{heading}\n")
    _, mark, after = rest.partition("\n## ")
    parts = [before.rstrip("\n"), section.rstrip("\n")]
    return "\n\n".join([*parts, f"## {after}".rstrip("\n")] if mark else parts) + "\n"
