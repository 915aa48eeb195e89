"""Runs of the console script under a layer that makes chosen system calls fail: ``faults.c``."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders import PHEMA, Run
from tests.warm import Forked, popen

SOURCE = Path(__file__).with_name("faults.c")
#: times of a rule that goes on for good.
ALWAYS = 1_000_000


@dataclass(frozen=True)
class Fault:
    """What happens to which calls; ``faults.c`` says more.

    Attributes:
        call: its name.
        path: what the file's path contains, or ends in where there is a ``$`` behind.
        action: the name of an errno, or ``short``, ``zero``, ``pause``.
        nth: the first call that it happens to, from 1.
        times: to how many it happens.
    """

    call: str
    path: str
    action: str
    nth: int = 1
    times: int = ALWAYS

    def __str__(self) -> str:
        """The rule as the layer reads it."""
        action = getattr(errno, self.action, self.action)
        return f"{self.call} {self.path} {self.nth} {self.times} {action}"


def compiled(folder: Path) -> Path:
    """The layer, compiled; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang): system calls can't be made to fail")
    layer = folder / "faults.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, "-o", layer, SOURCE, "-ldl"], check=True)
    return layer


class Injected:
    """A run of the console script under the layer, started at once.

    Args:
        layer: what ``compiled`` gave.
        log: a new file that the layer writes to.
        command: the script's arguments.
        faults: what happens to it.
        trace: calls on files with that in their path are listed.
    """

    def __init__(
        self, layer: Path, log: Path, command: list[object], *faults: Fault, trace: str = ""
    ) -> None:
        self._log = log
        self._faults = faults
        # Before: the layer itself may be what fails to open it.
        log.write_text("", encoding="utf-8")
        environment = {
            "FAULTS": "\n".join(map(str, faults)),
            "FAULT_LOG": str(log),
            "OMP_NUM_THREADS": "1",
        }
        self.process = popen(
            [PHEMA, *command],
            layer=layer,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment | ({"FAULT_TRACE": trace} if trace else {}),
        )

    def lines(self, kind: str = "") -> list[list[str]]:
        """Call and path of what the layer has noted: of faults where ``kind`` is ``fired ``."""
        found = self._log.read_text().splitlines()
        fired = [line.startswith("fired ") for line in found]
        return [
            line.removeprefix("fired ").split(" ", 1)
            for line, is_fault in zip(found, fired, strict=True)
            if is_fault == bool(kind)
        ]

    @property
    def fired(self) -> list[list[str]]:
        """Call and path of each fault."""
        return self.lines("fired ")

    def wait_for(self, found: Callable[[], object]) -> None:
        """Wait until something is so; fails when the process is over before."""
        while not found():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)

    def go_on(self) -> None:
        """Let it go on after a pause."""
        Path(f"{self._log}.go").touch()

    def end(self) -> Run:
        """What the run gave, once it is over."""
        out, err = self.process.communicate(timeout=120)
        return Run(self.process.wait(), out, err)


def wait_for(found: Callable[[], object], process: Forked | subprocess.Popen[str]) -> None:
    """Wait until something is so, or the process is over."""
    while process.poll() is None and not found():
        time.sleep(0.001)


def digests(folder: Path) -> dict[str, str]:
    """What is in every file below a directory."""
    return {
        str(p.relative_to(folder)): hashlib.blake2b(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
