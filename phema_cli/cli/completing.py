"""Candidates by which a shell completes values of options and arguments, without loading torch.

Without candidates the shell completes names of files by itself.
"""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

#: examples of what ``--profile`` takes.
PROFILES = (
    "uniform:last=0.1",
    "uniform:last=0.2",
    "uniform:last=2000steps",
    "exponential:beta=0.999",
    "exponential:halflife=2000",
    "decay:last=0.2,shape=linear",
    "decay:last=0.2,shape=cosine",
    "decay:last=0.2,shape=sqrt",
    "cooldown:last=0.2",
    "raw",
    "checkpoints:last=5",
    "csv:",
)
#: paths that need no quotes in any shell; others are left to the shell's own completion.
_PLAIN = re.compile(r"[\w./~+@%,-]*")
#: entries that are read of a huge directory: of one that is listed, and of one in the list.
_LISTED, _LOOKED_AT = 2000, 200


def paths(incomplete: str) -> list[tuple[str, str]]:
    """Directories with snapshots, then checkpoints, then other directories, each with its kind.

    A directory that is the only candidate is replaced by what it contains.
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
    candidates = [(path, kind) for kind, members in kinds.items() for path in members]
    only = kinds["directory"] if len(candidates) == 1 else []
    return (paths(only[0]) if only else []) or candidates


def _entries(folder: str, most: int) -> Iterator[os.DirEntry[str]]:
    """The first entries of a directory; none if it can't be listed."""
    try:
        with os.scandir(Path(folder).expanduser()) as entries:
            yield from islice(entries, most)
    except (OSError, RuntimeError):
        return


def _holds(folder: str, *, deeper: bool = True) -> bool:
    """Whether a directory has checkpoints, or has a directory named by a step that does."""
    return any(
        (deeper and re.search(r"\d", entry.name) and _holds(f"{folder}/{entry.name}", deeper=False))
        if entry.is_dir()
        else _is_checkpoint(entry.name) or entry.name.endswith(".distcp")
        for entry in _entries(folder, _LOOKED_AT)
    )


def _is_checkpoint(name: str) -> bool:
    from phema_cli.formats import endings

    return name.endswith(endings())


def profiles() -> Sequence[str]:
    """Target profiles; typer keeps those that go on with what is typed."""
    return PROFILES


def averages() -> Sequence[str]:
    """Decay laws of stored averages, with those of single trainers."""
    from phema_cli.profiles import LAWS
    from phema_cli.trainers.registry import LAWS as TRAINERS_LAWS

    return [law.example for law in (*LAWS.values(), *TRAINERS_LAWS.values())]


def methods() -> Sequence[str]:
    """Methods that solve weights."""
    from phema_cli.solver import METHODS

    return METHODS


def formats() -> Sequence[str]:
    """Formats of outputs."""
    from phema_cli.formats import writable

    return writable()


def dtypes() -> Sequence[str]:
    """Types of floats."""
    from phema_cli.formats.base import DTYPES

    return [d.label for d in DTYPES.values() if d.kind == "float"]
