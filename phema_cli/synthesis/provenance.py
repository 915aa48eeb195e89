"""What an output says of how it was made, and what it has beside its weights.

The record is in the metadata of the weights. A directory also gets a card, which the Hugging Face
hub shows, and what the source has beside its weights.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from phema_cli._version import __version__
from phema_cli.formats import packing
from phema_cli.formats.base import Checkpoint
from phema_cli.formats.image import PROVENANCE_KEY
from phema_cli.formats.remote import is_remote
from phema_cli.options import number_text, typed
from phema_cli.profiles import Array, CombinationProfile, PowerProfile, Profile, describe
from phema_cli.profiles.specs import step_of
from phema_cli.request import SOLVING, SOURCES, Config, Request
from phema_cli.snapshots import Scan, Snapshot
from phema_cli.snapshots.base import METADATA_FIELDS, PART_FIELD
from phema_cli.solver import Figures
from phema_cli.trainers.base import read_object
from phema_cli.trainers.side_files import library_of

SCHEMA = "phema/synthesis/1"
#: the method of a combination that was asked for as it is.
EXACT = "exact"
#: entries that phema writes or reads itself: no tensor's name may replace them.
RESERVED = frozenset({"format", PROVENANCE_KEY, *packing.KEYS, *METADATA_FIELDS})
#: a hash of the file as it was before this entry was in it, which can't be made again.
_LEGACY_HASH = "sshs_legacy_hash"
#: options that change what is in an output.
_COUNTING = SOLVING | SOURCES | {"format", "dtype", "max_shard_size"}
_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}")
#: options that say what snapshots are, as a phema.toml may have them; none is a path.
SAID = (
    *("average", "exclude", "gammas", "key", "pattern", "raw", "select", "sigma_rels"),
    *("steps_per_epoch", "trust_tags", "update_every"),
)
#: sources that the text lists; the head has all of them.
_LISTED = 20
#: smaller weights are 0 to the digits that texts and tables have.
LEAST_WEIGHT = 5e-7
#: what tells a source of a record from others.
_identity = itemgetter("name", "average", "step", "size_bytes")


@dataclass(frozen=True, slots=True)
class Origin:
    """What an output is made of, and how.

    Attributes:
        sources: n snapshots, oldest first: those that weigh, and those that tensors are copied of.
        weights: (n,) float64.
        base: the source that the output continues: its metadata, and what it has of what is copied.
        target: the profile that is built.
        step: its time as the trainer counts.
        figures: how good it is expected to be.
        request: its method solved the weights; its config is what was said of the snapshots.
        scan: what found them.
    """

    sources: Sequence[Snapshot]
    weights: Array
    base: Snapshot
    target: Profile
    step: float
    figures: Figures
    request: Request
    scan: Scan

    @property
    def command(self) -> str:
        """The command line that makes it."""
        return command(self.scan.roots, self.request, self.target)

    @property
    def is_exact(self) -> bool:
        """Whether it is a combination that was asked for as it is."""
        return isinstance(self.target, CombinationProfile)

    @property
    def method(self) -> str:
        """How its weights were found."""
        return EXACT if self.is_exact else self.request.method

    def record(self) -> str:
        """The record, as JSON: sorted keys, no time of day, no path."""
        figures: dict[str, float | None] = asdict(self.figures)
        pairs = zip(self.sources, self.weights, strict=True)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "version": __version__,
            "method": self.method,
            "target": describe(self.target, self.step),
            "sources": [source_entry(s) | {"weight": float(w)} for s, w in pairs],
            "figures": {
                n: v if v is None or math.isfinite(v) else None for n, v in figures.items()
            },
            "copy": sorted(self.scan.copy),
        }
        if self.scan.drop:
            record["drop"] = sorted(self.scan.drop)
        if said := _said_of(self.request.config):
            record["options"] = said
        return _dumps(record | {"digest": _digest(record)})

    def card(self) -> bytes:
        """The card, with a head that ``huggingface_hub.ModelCard`` reads; no time of day, no path.

        It has the sources that weigh.
        """
        weighing = [
            (s, float(w)) for s, w in zip(self.sources, self.weights, strict=True) if w != 0
        ]
        newest, _ = weighing[-1]
        step = step_of(self.target, self.step)
        when = "" if step is None else f" at step {number_text(step)}"
        count = f"{len(weighing)} stored snapshot{'s' if len(weighing) > 1 else ''}"
        lines = ["---", *_yaml(self._head(newest, step, weighing)), "---", ""]
        lines += [f"# {_escaped(self.target.label)}", ""]
        what = f"{_meaning(self.target)}{when}, made of {count} by phema {__version__}"
        lines += [f"These weights are {what}:", ""]
        lines += ["```sh", _printable(self.command), "```", ""]
        if not self.is_exact:
            distance = "the distance by which averaging moves them"
            part = f"{self.figures.expected_error:.2g} of {distance}"
            lines += [f"Expected error: {part} ({self.figures.verdict}).", ""]
        return ("\n".join([*lines, *_table(weighing)]) + "\n").encode()

    def _head(
        self, newest: Snapshot, step: float | None, weighing: Sequence[tuple[Snapshot, float]]
    ) -> dict[str, Any]:
        """The card's head: what the hub itself reads, then phema's own; None is left out."""
        error = self.figures.expected_error
        known = not (self.is_exact or math.isinf(error))
        settings = _json(newest, "config.json")
        return {
            "library_name": library_of(newest.checkpoint.base_name, settings),
            "base_model": _base_model(newest),
            "tags": ["merge", "checkpoint-averaging", "phema"],
            "phema": {
                "version": __version__,
                "merge_method": self.method,
                "target": self.target.label,
                "step": int(step) if step is not None and float(step).is_integer() else step,
                "expected_error": float(f"{error:.3g}") if known else None,
                "command": self.command,
                "sources": [
                    {"name": s.name, "average": s.tag.label, "weight": w} for s, w in weighing
                ],
            },
        }


def _said_of(config: Config) -> dict[str, Any]:
    """What the user has said of the snapshots, as a phema.toml may have it."""
    said = {name: value for name in SAID if (value := getattr(config, name))}
    # From Python numbers may be of any kind.
    return said | {n: [*map(float, said[n])] for n in ("gammas", "sigma_rels") if n in said}


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


def otherwise(
    metadata: Mapping[str, str], target: Profile, step: float, snapshots: Sequence[Snapshot]
) -> str | None:
    """How a checkpoint says that it is not what a target would be; None where it doesn't.

    Args:
        metadata: the checkpoint's.
        target: the target.
        step: its time as the trainer counts, but for combinations.
        snapshots: what it would be made of.
    """
    try:
        record = json.loads(metadata[PROVENANCE_KEY])
        made, sources = record["target"], record["sources"]
        weights = sorted((s["name"], s["weight"]) for s in sources if s["weight"])
        before = set(map(_identity, sources))
        was = f"is {_said(made)}"
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    wanted = describe(target, step)
    if any(made[name] != wanted[name] for name in ("profile", "step")):
        return f"{was}, not {_said(wanted)}"
    if isinstance(target, CombinationProfile):
        rows = zip(target.places, target.weights, strict=True)
        if weights != sorted((snapshots[i].name, float(w)) for i, w in rows if w):
            return f"{was} of other snapshots, or by other weights"
    known = {_identity(source_entry(s)) for s in snapshots}
    lost = sorted(str(name) for name, *_ in before - known)
    if not lost:
        return None
    here = lost[0] in {s.name for s in snapshots}
    return f"{was} of other snapshots: {lost[0]} is not {'as it was' if here else 'among these'}"


def _said(target: Mapping[str, Any]) -> str:
    """A target of a record, in words."""
    step = target["step"]
    return f"{target['profile']}{'' if step is None else f' at step {number_text(step)}'}"


def carried_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of a checkpoint that say nothing of its average."""
    dropped = {*METADATA_FIELDS, PART_FIELD, *packing.KEYS, _LEGACY_HASH, PROVENANCE_KEY}
    # Further names of tensors: those that an output has are added with its header.
    dropped |= {k for k in checkpoint.ties if checkpoint.metadata.get(k) in checkpoint.tensors}
    kept = checkpoint.metadata if checkpoint.format == "safetensors" else {}
    return {k: v for k, v in kept.items() if k not in dropped}


def command(roots: Sequence[str], request: Request, target: Profile) -> str:
    """The command line that makes one target, whatever else its call made.

    ``roots`` are the snapshots as the user named them; of absolute paths the last part is given.
    """
    if isinstance(target, PowerProfile):
        words = ["--gamma", number_text(target.gamma)]
    elif isinstance(target, CombinationProfile) and target.kind == "weights":
        file = request.weights
        # From Python weights have no file.
        name = "weights.csv" if file is None or isinstance(file, Mapping) else Path(file).name
        words = ["--weights", name]
    else:
        words = ["--profile", target.label]
    plain = replace(request, output=None, jobs=None)
    paths = [Path(root).name if Path(root).is_absolute() else root for root in roots]
    return shlex.join(["phema", "synthesize", *paths, *words, *typed(plain, _COUNTING)])


def _table(weighing: Sequence[tuple[Snapshot, float]]) -> list[str]:
    """Lines of a table of the sources with the largest weights, oldest first."""
    seen = [i for i, (_, weight) in enumerate(weighing) if abs(weight) >= LEAST_WEIGHT]
    seen = sorted(sorted(seen, key=lambda i: -abs(weighing[i][1]))[:_LISTED])
    lines = ["| snapshot | average | step | weight |", "| --- | --- | ---: | ---: |"]
    for source, weight in (weighing[i] for i in seen):
        tag = source.tag
        stored_at = "" if tag.step_origin == "order" else number_text(tag.step)
        cells = (source.name, tag.label, stored_at, f"{weight:+.6f}")
        lines.append(f"| {' | '.join(map(_escaped, cells))} |")
    if len(weighing) > len(seen):
        lines.append(f"\nand {len(weighing) - len(seen)} more with smaller weights: see the head.")
    return lines


def _meaning(target: Profile) -> str:
    """The target in words."""
    if isinstance(target, CombinationProfile):
        return "a plain mean" if target.kind == "mean" else "a weighted sum"
    name = target.label
    if isinstance(target, PowerProfile):
        name = f"gamma {number_text(target.gamma)} (sigma_rel {target.sigma_rel:.4g})"
    return f"an estimate of the average of the profile {name}"


def _base_model(newest: Snapshot) -> str | None:
    """The hub's name of the model that an adapter belongs to; None if it looks like none."""
    name = _json(newest, "adapter_config.json").get("base_model_name_or_path")
    return name if isinstance(name, str) and _ID.fullmatch(name) else None


def _json(snapshot: Snapshot, name: str) -> Mapping[str, Any]:
    """The JSON object in a file beside the weights; empty where there is none."""
    if snapshot.folder is None or is_remote(snapshot.folder):
        return {}
    path = snapshot.folder / name
    try:
        return {} if path.is_symlink() else read_object(path)
    except OSError:
        # The card can do without.
        return {}


def _yaml(entry: Any, indent: str = "") -> list[str]:  # noqa: ANN401 - what a head may hold
    """Lines of YAML; None is left out."""
    lines: list[str] = []
    for key, value in entry.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_yaml(value, f"{indent}  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}- {_flow(item)}" for item in value]
        elif value is not None:
            lines.append(f"{indent}{key}: {_flow(value)}")
    return lines


def _flow(value: Any) -> str:  # noqa: ANN401 - as above
    """A value in one line, as in JSON; readers of YAML need a dot in numbers such as 1e-05."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return mantissa if not e else f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}"
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _escaped(text: str) -> str:
    """Text in one line in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", _printable(text))


def _printable(text: str) -> str:
    """Text in one line."""
    return "".join(c if c.isprintable() else "?" for c in text)
