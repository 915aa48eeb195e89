"""phema beside what people use instead, as whole processes: time and peak memory.

    pip install --no-deps mergekit immutables
    python -m benchmarks.peers            a few minutes, 10 GB; its section of docs/performance.md
    python -m benchmarks.peers --print    writes it to stdout

Each row is one job that both sides do to the same files: the mean of the checkpoints of a language
model, the mean of files of tensors, and an average of another length of what ema-pytorch stores.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measuring import (
    MIB,
    PHEMA,
    Inputs,
    emptied,
    measured_command,
    publish,
    rounds,
)

ROUNDS = 3
_STEPS = range(1000, 17000, 1000)

#: the loop that people write: every tensor of every file, whole, in float32.
_LOOP = """
import pathlib, sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
folder, out = map(pathlib.Path, sys.argv[1:])
files, total, dtypes = sorted(folder.iterdir()), {}, {}
for path in files:
    with safe_open(path, "pt") as file:
        for name in file.keys():
            value = file.get_tensor(name)
            dtypes[name] = value.dtype
            total[name] = total.get(name, torch.zeros(())) + value.float() / len(files)
save_file({n: v.to(dtypes[n]) for n, v in total.items()}, out / "mean.safetensors")
"""
_EMA_PYTORCH = """
import sys, torch
from ema_pytorch import PostHocEMA
folder, out, width = sys.argv[1:]
net = torch.nn.Sequential(*(torch.nn.Linear(int(width), int(width)) for _ in range(8)))
emas = PostHocEMA(net, sigma_rels=(0.05, 0.28), checkpoint_folder=folder)
made = emas.synthesize_ema_model(sigma_rel=0.15)
torch.save(made.state_dict(), out + "/ema.pt")
"""
_HEAD = """\
## Beside other programs

Whole processes, inputs in the cache; memory with what torch takes, and with files that a program
maps into it. `python -m benchmarks.peers` measures it.

| job | phema, s | MiB | other | s | MiB | time, times phema's | memory |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
_MERGE = """\
merge_method: linear
dtype: float16
models:
"""


@dataclass(frozen=True)
class Job:
    """What two programs do to the same files.

    Attributes:
        title: of the row.
        peer: the other program.
        phema: arguments of the command, with ``{out}`` for the output.
        other: the other's command line, in the same way.
    """

    title: str
    peer: str
    phema: list[str]
    other: list[str]


def language_model(root: Path) -> Job:
    """16 checkpoints of a Llama of 170 million parameters in float16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
    )
    model = LlamaForCausalLM(config).half()
    run = root / "llama"
    lines = [_MERGE]
    for step in _STEPS:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.001)
        model.save_pretrained(run / f"checkpoint-{step}")
        lines.append(f"  - model: {run}/checkpoint-{step}\n    parameters: {{weight: 1.0}}\n")
    (root / "merge.yml").write_text("".join(lines))
    program = "from mergekit.scripts.run_yaml import main; main()"
    return Job(
        "mean of 16 checkpoints of a Llama, 170 M parameters in float16",
        "mergekit, linear",
        ["synthesize", str(run), "--profile", "checkpoints:last=16", "-q", "-o", "{out}/mean"],
        [sys.executable, "-c", program, str(root / "merge.yml"), "{out}", "--no-copy-tokenizer"],
    )


def tensors(root: Path) -> Job:
    """16 files of 256 MiB in float16."""
    inputs = Inputs(root / "tensors", "float16", 16, 256 * MIB, 32)
    inputs.make()
    weights = root / "mean.csv"
    weights.write_text("".join(f"{path.name},{1 / inputs.count}\n" for path in inputs.files))
    return Job(
        "mean of 16 files of 256 MiB in float16",
        "loop over `safe_open`",
        ["synthesize", str(inputs.folder), "--weights", str(weights), "-q", "-o", "{out}"],
        [sys.executable, "-c", _LOOP, str(inputs.folder), "{out}"],
    )


def post_hoc(root: Path) -> Job:
    """16 checkpoints of each of the two averages of ema-pytorch, 33.6 M parameters in float16."""
    from ema_pytorch import PostHocEMA

    width, folder = 2048, root / "ema_pytorch"
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(8)))
    emas = PostHocEMA(
        net,
        sigma_rels=(0.05, 0.28),
        checkpoint_folder=str(folder),
        checkpoint_every_num_steps=20,
        checkpoint_dtype=torch.float16,
        update_every=1,
    )
    for _ in range(320):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=1e-4)
        emas.update()
    return Job(
        "sigma_rel 0.15 of 32 checkpoints of ema-pytorch, 33.6 M parameters",
        "ema-pytorch",
        [
            *("synthesize", str(folder), "--sigma-rels", "0.05,0.28", "--sigma-rel", "0.15"),
            *("--update-every", "1", "-q", "-o", "{out}"),
        ],
        [sys.executable, "-c", _EMA_PYTORCH, str(folder), "{out}", str(width)],
    )


def row(job: Job, out: Path) -> str:
    """A line of the table: medians of whole processes, and their peaks."""
    peaks: dict[str, float] = {}

    def run(name: str, command: list[str]) -> Callable[[], float]:
        def measure() -> float:
            with emptied(out):
                filled = [a.replace("{out}", str(out)) for a in command]
                taken, peaks[name] = measured_command(*filled)
            return taken

        return measure

    taken = rounds(
        {"phema": run("phema", [str(PHEMA), *job.phema]), "peer": run("peer", job.other)}, ROUNDS
    )
    own, other = (statistics.median(taken[name]) for name in ("phema", "peer"))
    return (
        f"| {job.title} | {own:.1f} | {peaks['phema']:.0f} | {job.peer} | {other:.1f} "
        f"| {peaks['peer']:.0f} | {other / own:.1f} | {peaks['peer'] / peaks['phema']:.1f} |"
    )


def section(root: Path) -> str:
    """The section of the page."""
    rows = [row(make(root), root / "out") for make in (language_model, tensors, post_hoc)]
    return "\n".join([_HEAD, *rows])


def main() -> None:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as folder:
        publish(section(Path(folder)))


if __name__ == "__main__":
    main()
