"""What averages look like of which nobody says what they are, where the snapshots can tell."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from shlex import quote

from phema_cli.errors import InputError, PhemaError
from phema_cli.estimate.sample import sample
from phema_cli.profiles import Profile
from phema_cli.request import Request
from phema_cli.snapshots import Finding, Scan, Snapshot, scan
from phema_cli.snapshots.base import Untagged
from phema_cli.snapshots.consistency import differences
from phema_cli.solver.evidence import Law, law_of, propose

#: key and index of an average.
_Group = tuple[str, int]


def scan_for(paths: Sequence[str | os.PathLike[str]], request: Request) -> Scan:
    """The snapshots of a request; where only their laws are missing, what these look like.

    Errors as :func:`phema_cli.snapshots.scan`.
    """
    found = scan(paths, request.config)
    return _with_proposal(found) if request.sample and found.untagged else found


def _with_proposal(found: Scan) -> Scan:
    """The scan with errors that say what to pass, where only laws are missing and data tell them.

    Args:
        found: a scan; a sample of its snapshots is read if all of its errors are missing laws.
    """
    missing = {str(u.error.error) for u in found.untagged}
    errors = {str(f.error) for f in found.findings if f.level == "error"}
    if not missing or not errors <= missing:
        return found
    laws = _laws(found)
    if laws is None:
        return found
    findings = [
        Finding("error", _proposing(f.error, laws)) if str(f.error) in missing else f
        for f in found.findings
    ]
    return replace(found, findings=tuple(findings))


def _group(one: Untagged) -> _Group:
    """What an average's snapshots have in common."""
    return one.snapshot.series, one.index or 0


def _laws(found: Scan) -> Mapping[_Group, Law] | None:
    """What each average without a law looks like; None where the snapshots can't tell."""
    pairs: list[tuple[Hashable, Snapshot]] = [((s.series, s.tag.label), s) for s in found.snapshots]
    pairs += [(_group(u), u.snapshot) for u in found.untagged]
    pairs.sort(key=lambda pair: pair[1].tag.step)
    snapshots = [s for _, s in pairs]
    try:
        if any(differences(snapshots, found.copy)):
            return None
        values = sample(snapshots, found.copy)
    except PhemaError:
        # What stands against reading them is said once their tags are known.
        return None
    if values is None:
        return None
    members: dict[Hashable, list[Profile]] = {}
    for snapshot in found.snapshots:
        group = snapshot.series, snapshot.tag.label
        members.setdefault(group, []).append(snapshot.tag.profile)
    known = {group: law_of(profiles) for group, profiles in members.items()}
    times = [s.tag.profile.end for s in snapshots]
    proposal = propose(times, [group for group, _ in pairs], known, values)
    if proposal is None:
        return None
    return {_group(u): proposal.laws[_group(u)] for u in found.untagged}


def _proposing(error: PhemaError, laws: Mapping[_Group, Law]) -> InputError:
    """The error with what the averages look like, and the option that says so."""
    groups = sorted(laws)
    ordered = [laws[g] for g in groups]
    looks = " and ".join(law.label for law in ordered)
    if all(law.kind == "power" for law in ordered):
        option = f"--gammas {','.join(f'{law.scale - 1:.6g}' for law in ordered)}"
    else:
        option = f"--average {' --average '.join(map(_text, ordered))}"
    keys = dict.fromkeys(key for key, _ in groups)
    if len(keys) > 1:
        option = f"--key {','.join(map(quote, keys))} {option}"
    subject = "it looks" if len(ordered) == 1 else "these look"
    return InputError(
        f"{error.what}; {subject} like {looks}",
        where=error.where,
        remedy=f"pass {option} if that is what the trainer had",
        option=option,
    )


def _text(law: Law) -> str:
    """A law in the words of ``--average``."""
    beta = f"{math.exp(-law.scale):.10g}"
    return f"exponential:beta={beta}" if law.kind == "exponential" else f"warmup:beta={beta}"
