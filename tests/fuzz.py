"""Coverage-guided fuzzing of every parser: ``make fuzz``, or ``python -m tests.fuzz NAME ...``.

Each parser runs in a process of its own under atheris, which ``make fuzz`` installs. An input
that ends in anything but a result or an error of phema's, takes a second, or fills 64 MiB, is
saved as ``fuzz-NAME-...``, and the exit code is 1.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

#: 1.8 million in all; cheap parsers get more of them.
RUNS = {
    "safetensors": 200_000,
    "index": 150_000,
    "packed": 60_000,
    "packing": 60_000,
    "torch": 100_000,
    "torch-pickle": 100_000,
    "edm2": 150_000,
    "dcp-metadata": 60_000,
    "dcp-chunk": 40_000,
    "toml": 100_000,
    "toml-run": 60_000,
    "template": 100_000,
    "law": 100_000,
    "globs": 60_000,
    "provenance": 60_000,
    "diffusers": 60_000,
    "csv": 150_000,
    "weights": 100_000,
    "profile": 100_000,
}
_LONGEST = 16_384
_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
_PAGE = resource.getpagesize()


def _held() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE


def child(name: str, runs: str, folder: str) -> None:
    """Fuzz one parser in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["phema_cli", "zipfile", "tomllib", "json"]):
        from tests import parsers
    from tests.limits import BYTES, LimitError

    made = parsers.parsers()[name]
    for number, seed in enumerate(made.seeds):
        (Path(folder) / str(number)).write_bytes(seed)
    # What the process held at most only grows; a new peak far above what it holds is one input's.
    peak = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]

    def one(data: bytes) -> None:
        parsers.check(name, data, memory=False)
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if now > peak[0]:
            if now - _held() > BYTES:
                raise LimitError(f"held {now - _held()} bytes more for a while")
            peak[0] = now

    options = [
        f"-runs={runs}",
        f"-max_len={_LONGEST}",
        "-timeout=20",
        "-seed=1",
        "-rss_limit_mb=4096",
        f"-artifact_prefix=fuzz-{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, folder], one)
    atheris.Fuzz()


def main(names: list[str]) -> int:
    """Fuzz the parsers of these names, all where there are none; returns the exit code."""
    total, failed = 0, False
    for name in names or RUNS:
        # Files in memory, where there is a place for such; the child leaves its own behind.
        with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
            corpus = Path(folder) / "corpus"
            corpus.mkdir()
            runs = os.environ.get("RUNS", str(RUNS[name]))
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz", "--child", name, runs, str(corpus)],
                env={**os.environ, "TMPDIR": folder},
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                check=False,
            )
        found = re.findall(r"^Done (\d+) runs|^#(\d+)", done.stderr, re.MULTILINE)
        count = max((int(a or b) for a, b in found), default=0)
        total += count
        print(f"{name:14} {count:9,} executions, exit code {done.returncode}", flush=True)
        if done.returncode:
            failed = True
            print(done.stderr[-4000:], flush=True)
    print(f"{'total':14} {total:9,} executions", flush=True)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    sys.exit(main(sys.argv[1:]))
