"""What a shell offers for values of the command line: quickly, and without torch.

Where nothing is offered the shell completes names of files by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

#: what ``--profile`` may say, by examples.
PROFILES = (
    "uniform:last=0.1",
    "uniform:last=0.2",
    "exponential:beta=0.999",
    "exponential:halflife=2000",
    "cooldown:last=0.1",
    "cooldown:last=0.2",
    "raw",
    "csv:",
)
#: names that shells take as they are, wherever they stand; others are left to the shell's quoting.
_PLAIN = re.compile(r"[\w./~+@%,-]*")
# Of huge directories only so much is looked at: of what is listed, and of what is only looked into.
_LISTED, _LOOKED_AT = 2000, 200


def paths(incomplete: str) -> list[tuple[str, str]]:
    """Directories that hold snapshots, then checkpoints, then other directories, each with a word.

    A directory that is the only one is gone into, so that a shell does not stop there.
    """
    folder = incomplete[: incomplete.rfind("/") + 1]
    kinds: dict[str, list[str]] = {"snapshots": [], "checkpoint": [], "directory": []}
    for entry in sorted(_entries(folder, _LISTED), key=lambda e: e.name):
        path = folder + entry.name
        hidden = entry.name.startswith(".") and not incomplete[len(folder) :].startswith(".")
        if path.startswith(incomplete) and not hidden and _PLAIN.fullmatch(path):
            if entry.is_dir():
                kinds["snapshots" if _holds(path) else "directory"].append(f"{path}/")
            elif _is_checkpoint(entry.name):
                kinds["checkpoint"].append(path)
    found = [(path, kind) for kind, members in kinds.items() for path in members]
    only = kinds["directory"] if len(found) == 1 else []
    return (paths(only[0]) if only else []) or found


def _entries(folder: str, most: int) -> Iterator[os.DirEntry[str]]:
    """What a directory has; nothing where it can't be listed."""
    try:
        with os.scandir(Path(folder).expanduser()) as entries:
            yield from islice(entries, most)
    except (OSError, RuntimeError):
        return


def _holds(folder: str, *, deeper: bool = True) -> bool:
    """Whether checkpoints lie in a directory, or in one of it that is called by a step."""
    return any(
        (deeper and re.search(r"\d", entry.name) and _holds(f"{folder}/{entry.name}", deeper=False))
        if entry.is_dir()
        else _is_checkpoint(entry.name) or entry.name.endswith(".distcp")
        for entry in _entries(folder, _LOOKED_AT)
    )


def _is_checkpoint(name: str) -> bool:
    from phema_cli.formats import endings

    return name.endswith(endings())


def profiles(incomplete: str) -> list[str]:
    """Target profiles."""
    return _beginning(PROFILES, incomplete)


def averages(incomplete: str) -> list[str]:
    """Decay laws of stored averages, a trainer's own among them."""
    from phema_cli.profiles import LAWS
    from phema_cli.trainers.registry import LAWS as OWN

    return _beginning([form.example for form in (*LAWS.values(), *OWN.values())], incomplete)


def methods(incomplete: str) -> list[str]:
    """Methods that solve weights."""
    from phema_cli.solver import METHODS

    return _beginning(METHODS, incomplete)


def formats(incomplete: str) -> list[str]:
    """Formats of outputs."""
    from phema_cli.formats import writable

    return _beginning(writable(), incomplete)


def dtypes(incomplete: str) -> list[str]:
    """Types of floats."""
    from phema_cli.formats.base import DTYPES

    return _beginning([d.label for d in DTYPES.values() if d.kind == "float"], incomplete)


def _beginning(values: Sequence[str], incomplete: str) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]
