"""What an output records of how it was made, and the metadata that it keeps of a source."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from phema_cli._version import __version__
from phema_cli.formats.base import Checkpoint
from phema_cli.profiles import Array, Profile, describe
from phema_cli.snapshots import Snapshot
from phema_cli.snapshots.base import METADATA_FIELDS
from phema_cli.snapshots.reading import PROVENANCE_KEY
from phema_cli.solver import Figures

SCHEMA = "phema/synthesis/1"
#: the method of a combination that was asked for as it is.
EXACT = "exact"
#: entries that phema writes or reads itself: no tensor's name may replace them.
RESERVED = frozenset({"format", PROVENANCE_KEY, *METADATA_FIELDS})
#: a hash of the file as it was before this entry was in it, which can't be made again.
_LEGACY_HASH = "sshs_legacy_hash"


def provenance(
    sources: Sequence[Snapshot],
    weights: Array,
    target: Profile,
    step: float,
    figures: Figures,
    method: str,
    copy: Sequence[str],
    drop: Sequence[str] = (),
) -> str:
    """How an output was made, as JSON: sorted keys, no time of day, no path.

    Args:
        sources: n snapshots, oldest first.
        weights: (n,) float64.
        target: the profile that was built.
        step: its time as the trainer counts.
        figures: how good it is expected to be.
        method: the method that solved the weights.
        copy: globs of tensors that were copied.
        drop: globs of tensors that were left out.
    """
    numbers: dict[str, float | None] = asdict(figures)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "method": EXACT if figures.verdict == EXACT else method,
        "target": describe(target, step),
        "sources": [
            source_entry(s) | {"weight": float(w)} for s, w in zip(sources, weights, strict=True)
        ],
        "figures": {k: v if v is None or math.isfinite(v) else None for k, v in numbers.items()},
        "copy": sorted(copy),
    }
    if drop:
        record["drop"] = sorted(drop)
    return _dumps(record | {"digest": _digest(record)})


def is_whole(record: dict[str, Any]) -> bool:
    """Whether a record was not changed: its digest is that of all other entries."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return record.get("digest") == _digest(rest)


def _digest(record: dict[str, Any]) -> str:
    """A checksum of a record. It guards against accidents, not against forgery."""
    return hashlib.blake2b(_dumps(record).encode(), digest_size=16).hexdigest()


def _dumps(record: dict[str, Any]) -> str:
    """A record as text, always the same."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def source_entry(snapshot: Snapshot) -> dict[str, str | float | None]:
    """A source in a record: its average as the trainer called it, its time, bytes of tensors.

    The time is None where nothing says it.
    """
    tag = snapshot.tag
    timed = tag.step_origin != "order"
    return {
        "name": snapshot.name,
        "average": tag.label,
        "gamma": tag.gamma,
        "step": tag.step if timed else None,
        "time": tag.profile.end if timed else None,
        "size_bytes": snapshot.checkpoint.size_bytes,
    }


def output_metadata(carried: Checkpoint, origin: str) -> dict[str, str]:
    """The metadata of an output: those of the checkpoint that it continues, and its provenance."""
    dropped = {*METADATA_FIELDS, _LEGACY_HASH, PROVENANCE_KEY}
    # Further names of tensors: those that the output has are added with its header.
    dropped |= {k for k in carried.ties if carried.metadata.get(k) in carried.tensors}
    kept = carried.metadata if carried.format == "safetensors" else {}
    ours = {"format": "pt", PROVENANCE_KEY: origin}
    return {k: v for k, v in kept.items() if k not in dropped} | ours
