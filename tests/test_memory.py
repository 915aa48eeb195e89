"""Memory: a synthesis larger than the limit runs under the limit."""

import json
import resource
import subprocess
import sys

import numpy as np
from safetensors import safe_open

from tests.builders import PHEMA

MIB = 1 << 20
LIMIT = 256 * MIB
#: bytes of a snapshot and their number: 1.5 GiB in all, a snapshot larger than the limit.
SNAPSHOT, COUNT = 384 * MIB, 4

MEASURE = """
import resource, sys, torch
if len(sys.argv) > 1:
    sys.argv = sys.argv[1:]
    from phema_cli.cli.app import main
    try:
        main()
    except SystemExit as done:
        assert not done.code, done.code
def data():
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) for l in file if l.startswith("VmData")) * 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, data(), file=sys.stderr)
"""


def run(*arguments, limit=None):
    """Peak RSS and private memory of a process that imports torch and runs phema, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=None
        if limit is None
        else lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    return [int(n) for n in done.stderr.split()[-2:]]


def write_large(path, step, gamma):
    """A snapshot of one float16 tensor, written piece by piece."""
    head = {
        "__metadata__": {"gamma": str(gamma), "step": str(step)},
        "w": {"dtype": "F16", "shape": [SNAPSHOT // 2], "data_offsets": [0, SNAPSHOT]},
    }
    text = json.dumps(head)
    text += " " * (-len(text) % 8)
    piece = (np.arange(MIB // 2) % 512 + step).astype(np.float16).tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text.encode())
        for _ in range(SNAPSHOT // MIB):
            file.write(piece)


def test_peak_memory_is_bounded_whatever_the_size(tmp_path):
    """Four snapshots of 384 MiB, two targets: within 256 MiB above torch, by a hard limit."""
    (tmp_path / "in").mkdir()
    for step in (1, 2):
        for gamma in (5, 10):
            write_large(tmp_path / "in" / f"{step}-{gamma}.safetensors", step, gamma)
    rss, data = run()
    arguments = (PHEMA, "synthesize", tmp_path / "in", "-g", "7,8", "-o", tmp_path / "out", "-q")
    peak, _ = run(*arguments, limit=data + LIMIT)
    assert peak < rss + LIMIT
    outputs = sorted((tmp_path / "out").iterdir())
    assert [p.stat().st_size > SNAPSHOT for p in outputs] == [True, True]
    # The walk 1, 2 of the gammas' snapshots: an element is its place plus the weighted step.
    with safe_open(outputs[0], "np") as file:
        sources = json.loads(file.metadata()["phema"])["sources"]
    step = sum(s["weight"] * s["step"] for s in sources)
    expected = np.arange(MIB // 2) % 512 + step
    tail = np.fromfile(outputs[0], dtype=np.float16, offset=outputs[0].stat().st_size - MIB)
    np.testing.assert_allclose(tail.astype(float), expected, rtol=2.0**-11)
