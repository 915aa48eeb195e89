"""Files beside the weights: those that a model needs to be loaded, and a trainer's own state."""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phema_cli.errors import reading
from phema_cli.formats.remote import is_remote, remote_errors
from phema_cli.globs import matching

#: a trainer's own state: what a run resumes from, and what it has logged.
STATE_FILES = (
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "random_states*",
    "scaler*",
    "training_args*",
    "training-state-*",
)
_LOGS = ("trainer_state.json", "*_results.json", "log*.txt", "zero_to_fp32.py", "phema.toml")
#: settings, tokenizers, templates and code of a model, and what may be done with it.
_NEEDED = (
    *("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.yaml", "*.yml"),
    *("*.tiktoken", "*.vocab", "*.bpe", "*.spm", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)
#: of other weights, whose names and shards are not the output's.
_INDEX = "*.index.json"
#: the largest tokenizers have a tenth of it.
_MOST_BYTES = 256 << 20
_MOST_FILES = 200


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file that belongs to the weights beside it.

    Attributes:
        path: the file.
        size_bytes: its size.
    """

    path: Path
    size_bytes: int


def side_files(folder: Path) -> tuple[list[SideFile], list[str]]:
    """What a directory holds that its weights need, by name, and what of it can't be copied.

    Links are not followed, nor is anything looked for in other directories.

    Raises:
        StorageError: it can't be listed.
    """
    needed, not_needed = matching(_NEEDED), matching((*STATE_FILES, *_LOGS, _INDEX))
    found: list[SideFile] = []
    refused: list[str] = []
    left = _MOST_BYTES
    with reading(folder), remote_errors(folder):
        paths = sorted(folder.iterdir(), key=lambda p: p.name)
        listed = [(p, p.stat() if is_remote(p) else p.lstat()) for p in paths]
    for path, status in listed:
        if path.name.startswith(".") or not needed(path.name) or not_needed(path.name):
            continue
        if stat.S_ISLNK(status.st_mode):
            refused.append(f"{path.name} is a link")
        elif len(found) == _MOST_FILES or status.st_size > left:
            refused.append(f"{path.name} is too large, or one of too many")
        elif stat.S_ISREG(status.st_mode):
            found.append(SideFile(path, status.st_size))
            left -= status.st_size
    return found, refused


def library_of(base_name: str, settings: Mapping[str, Any]) -> str | None:
    """The library that loads a directory, as the Hugging Face hub calls it; None if not known.

    ``base_name`` is the weights' without shard number and ending, ``settings`` are config.json's.
    """
    if base_name == "adapter_model":
        return "peft"
    if base_name in {"diffusion_pytorch_model", "pytorch_lora_weights"}:
        return "diffusers"
    return "transformers" if "model_type" in settings else None
