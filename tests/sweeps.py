"""Sweeps of a cheap metric, in this process and as processes that are killed."""

import json
from contextlib import nullcontext

from phema_cli.snapshots import scan
from phema_cli.sweep.request import SweepRequest
from phema_cli.sweep.results import NAME
from phema_cli.sweep.run import sweep
from phema_cli.synthesis import Request
from tests.injection import wait_for
from tests.warm import popen

GRID = (0.05, 0.08, 0.13, 0.2)


def curve(formula, optimum):
    """A command that prints a formula of u, the log of sigma_rel over that of the optimum."""
    return (
        f"awk -v s={{sigma_rel}} 'BEGIN {{{{u = log(s/{optimum}); printf \"%.15g\", {formula}}}}}'"
    )


class Listener:
    """Counts passes and evaluations."""

    def __init__(self):
        self.passes = []
        self.lefts = []
        self.most = 0
        self.evaluated_names = []

    def synthesizing(self, recipe):
        self.passes.append(len(recipe.targets))
        return nullcontext()

    def begun(self, *known):
        self.lefts.append(known[-1])

    def waiting(self, running, *_):
        self.most = max(self.most, len(running))

    def evaluated(self, record, *known):
        self.evaluated_names.append(record.profile)
        self.lefts.append(known[-1])


def swept(ckpts, out, command, *, listener=None, **options):
    """A sweep in this process, over GRID unless the options say otherwise."""
    request = {"sigma_rel": GRID, "sample": False, "jobs": 1, **options.pop("request", {})}
    options = {"baselines": False, **options}
    asked = SweepRequest(eval=command, output=str(out), request=Request(**request), **options)
    return sweep(scan([ckpts]), asked, listener or Listener())


def outputs(out):
    """Names of the checkpoints in the directory of a sweep."""
    return sorted(p.name for p in out.glob("*.safetensors"))


def lines(path):
    """Lines of a file, none where there is none."""
    return path.read_text().splitlines() if path.exists() else []


def whole_lines(path):
    """Lines that have an end."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def ended(pid):
    """Whether a process is gone, or gone but for its parent's asking."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:  # noqa: PTH123 - as it vanishes
            return stream.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def killed(command, folder, moments):
    """Kill a sweep whenever its file ``calls`` has so many lines.

    Yields:
        Those lines, and the entries of targets in its results.
    """
    for after in moments:
        process = popen(command, cwd=folder)
        wait_for(lambda after=after: len(lines(folder / "calls")) >= after, process)
        process.kill()
        process.wait()
        entries = map(json.loads, whole_lines(folder / "sweep" / NAME))
        yield lines(folder / "calls"), [entry for entry in entries if "target" in entry]
