"""Every output that a test makes is verified where it is made, in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

from phema_cli.cli.app import app, command_line
from phema_cli.cli.options import made
from phema_cli.estimate.targets import needs_of
from phema_cli.request import Request
from phema_cli.snapshots import scan
from phema_cli.snapshots.reading import read_checkpoint
from phema_cli.snapshots.scan import Scan
from phema_cli.verify.check import verify
from phema_cli.verify.recipe import remake


def verify_output(path: Path, found: Scan) -> None:
    """What ``phema verify PATH ... --full`` does; raises where it would exit with 1."""
    checked = verify(remake(read_checkpoint(path), found), full=True)
    assert checked.checked_bytes == checked.total_bytes


def verify_run(
    arguments: Sequence[str], out: str, cwd: Path | None, environment: Mapping[str, str]
) -> None:
    """Verify what a command line has printed, if it is one that writes outputs."""
    if arguments[:1] != ["synthesize"] or {"--help", "-h"} & set(arguments):
        return
    with chdir(cwd or Path.cwd()), patch.dict(os.environ, environment):
        command = command_line(app).commands["synthesize"]  # type: ignore[attr-defined]
        given = command.make_context("synthesize", list(arguments[1:])).params
        if given["dry_run"]:
            return
        asked = made(Request, None, dict(given), frozenset())
        found = scan(given["paths"], asked.config, needs_of(asked))
        for path in json.loads(out)["outputs"] if given["json"] else out.splitlines():
            verify_output(Path(path), found)
