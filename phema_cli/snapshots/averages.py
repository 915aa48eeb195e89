"""What a checkpoint says of an average that is no power function: decays in its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phema_cli.errors import InputError, StorageError, UsageError
from phema_cli.formats.base import Checkpoint
from phema_cli.profiles import ProfileSpec, Warmup, WarmupProfile

_CONFIG = "config.json"
_MOST_CONFIG_BYTES = 1 << 20
#: entries of diffusers' EMAModel; all of them make one.
_DIFFUSERS = ("decay", "inv_gamma", "power", "update_after_step", "use_ema_warmup")
_TIMM_KEY = "state_dict_ema"
_DIFFUSERS_FIELDS = (*_DIFFUSERS, "min_decay", "optimization_step")


@dataclass(frozen=True, slots=True)
class _Reader:
    """Numbers out of text."""

    fields: Mapping[str, str]

    def number(self, name: str, default: float) -> float:
        """The entry as a number."""
        text = self.fields.get(name, "")
        if text in {"", "None"}:
            return default
        try:
            return float(text)
        except ValueError:
            raise InputError(f"its {name} is {text!r}, not a number") from None

    def flag(self, name: str) -> bool:
        """Whether the entry is true."""
        return self.fields.get(name) == "True"


def described(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Its metadata, and what diffusers wrote of its EMA into the config.json beside it.

    Raises:
        StorageError: the config can't be read.
    """
    path = checkpoint.files[0].with_name(_CONFIG) if checkpoint.files else Path(_CONFIG)
    try:
        if not path.is_file() or path.stat().st_size > _MOST_CONFIG_BYTES:
            return checkpoint.metadata
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError.wrap(error, path, "read") from error
    except (ValueError, RecursionError):
        # Some other tool's file: it says nothing of an EMA.
        return checkpoint.metadata
    if not isinstance(config, dict) or not set(_DIFFUSERS) <= set(config):
        return checkpoint.metadata
    found = {k: str(config[k]) for k in _DIFFUSERS_FIELDS if _plain(config.get(k))}
    return {**found, **checkpoint.metadata}


def average_in(metadata: Mapping[str, str], key: str | None) -> ProfileSpec | None:
    """The average that a checkpoint's metadata describe, None where they describe none.

    Args:
        metadata: what is said of the checkpoint.
        key: where its weights lie; arguments speak of an average that is stored elsewhere as well.

    Raises:
        InputError: what stands there is no average.
    """
    try:
        if set(_DIFFUSERS) <= set(metadata):
            return _spec(_diffusers(_Reader(metadata)))
        if "args.model_ema_decay" in metadata and key == _TIMM_KEY:
            return _spec(_timm(_Reader(metadata)))
    except UsageError as error:
        raise InputError(error.what, remedy="say what the average is in phema.toml") from error
    return None


def _plain(value: Any) -> bool:  # noqa: ANN401 - whatever JSON has
    return isinstance(value, int | float | bool)


def _spec(warmup: Warmup) -> ProfileSpec:
    """The profile for any number of updates."""
    return ProfileSpec(
        WarmupProfile(warmup, 1.0).label, lambda end: WarmupProfile(warmup, max(end, 1.0))
    )


def _diffusers(entries: _Reader) -> Warmup:
    """``EMAModel``: with warm-up a power of the step, without it (1 + s)/(10 + s)."""
    return Warmup(
        decay=entries.number("decay", 0.9999),
        least=entries.number("min_decay", 0.0),
        start=int(entries.number("update_after_step", 0)),
        growth="power" if entries.flag("use_ema_warmup") else "ratio",
        inv_gamma=entries.number("inv_gamma", 1.0),
        power=entries.number("power", 2 / 3),
    )


def _timm(entries: _Reader) -> Warmup:
    """``ModelEmaV3`` as timm's training script makes it from its arguments."""
    return Warmup(
        decay=entries.number("args.model_ema_decay", 0.9998),
        growth="power" if entries.flag("args.model_ema_warmup") else "constant",
    )
