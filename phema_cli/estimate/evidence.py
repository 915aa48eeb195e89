"""Whether the snapshots fit their tags, and what untagged averages look like, in words.

docs/evidence.md says how both are tested; ``phema_cli.solver.evidence`` tests.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from itertools import pairwise
from typing import Any

from phema_cli.errors import InputError, PhemaError, listed
from phema_cli.estimate.sample import sample
from phema_cli.profiles import Profile
from phema_cli.snapshots import Finding, Scan, Snapshot
from phema_cli.snapshots.base import Tag, notice, warning
from phema_cli.snapshots.consistency import differences
from phema_cli.solver import Sample
from phema_cli.solver.evidence import (
    Alternative,
    Evidence,
    Law,
    Series,
    State,
    law_of,
    propose,
    weigh,
)
from phema_cli.system.processes import quoted
from phema_cli.trainers.registry import parse_law

#: ratio from which "so many times better" says no more.
_MOST_TIMES = 1000
#: files, or tensors, that are named in one line at most.
_MOST_NAMES = 8
_INSIST = "or --trust-tags to insist"
_NEITHER = "the snapshots fit neither their tags nor any others that were tried"
#: origins of a tag that the user can change by an option.
_OURS = ("command line", "phema.toml", "name")


@dataclass(frozen=True, slots=True)
class TagCheck:
    """How far tags are known.

    Attributes:
        state: ``confirmed``, ``plausible``, ``unchecked``, ``doubtful`` or ``contradicted``.
        evidence: the test's figures; None where nothing was tested.
        findings: what the user should know: an error where the tags are contradicted.
    """

    state: State = "unchecked"
    evidence: Evidence | None = None
    findings: tuple[Finding, ...] = ()

    def __repr__(self) -> str:
        """``<TagCheck confirmed>``."""
        return f"<TagCheck {self.state}>"

    def require(self) -> None:
        """Refuse tags that are contradicted.

        Raises:
            InputError: they are; it says what the snapshots look like instead.
        """
        for finding in self.findings:
            if finding.level == "error":
                raise finding.error

    def entry(self) -> dict[str, Any]:
        """The check in a JSON document."""
        evidence = self.evidence
        return {
            "tags": self.state,
            "tag_error": None if evidence is None else evidence.tag_error,
            "later": evidence is not None and evidence.later,
            "alternatives": [
                {
                    "averages": [law.label for law in other.laws],
                    "offset": other.offset,
                    "update_every": other.every,
                    "times_better": min(other.times_better, float(_MOST_TIMES)),
                    "harm": other.harm,
                }
                for other in (() if evidence is None else evidence.alternatives)
            ],
        }


def check_tags(snapshots: Sequence[Snapshot], sample: Sample) -> TagCheck:
    """Test the tags of snapshots, oldest first, on a sample of their elements."""
    groups = [(s.series, s.tag.label) for s in snapshots]
    evidence = weigh([s.tag.profile for s in snapshots], sample, groups)
    others = tuple(_with_every(other, snapshots) for other in evidence.alternatives)
    evidence = replace(evidence, alternatives=others)
    findings = _Messages(snapshots, evidence).findings()
    if sample.copied:
        findings.append(_of_copied(sample.copied))
    return TagCheck(evidence.state, evidence, tuple(findings))


def _of_copied(names: Sequence[str]) -> Finding:
    """The warning for tensors of an average that are no averages."""
    option = " ".join(f"--copy {quoted(escape(name))}" for name in names)
    return warning(
        f"{listed(names, _MOST_NAMES)}: copies of the raw weights in an average, as trainers make "
        "them of batch norms; what is made of them as averages is wrong",
        remedy=f"pass {option if len(names) <= _MOST_NAMES else '--copy with globs of them'}",
    )


def _with_every(other: Alternative, snapshots: Sequence[Snapshot]) -> Alternative:
    """The alternative with all steps between updates, those that the tags have included."""
    if other.every is None:
        return other
    laws = {s.tag.law for s in snapshots} - {"", "raw"}
    tagged = {parse_law(law).parameters.get("every", 1.0) for law in laws}
    return replace(other, every=round(other.every * tagged.pop()) if len(tagged) == 1 else None)


@dataclass(frozen=True, slots=True)
class _Messages:
    """The outcome of a test in words."""

    snapshots: Sequence[Snapshot]
    evidence: Evidence

    def findings(self) -> list[Finding]:
        """What the user should know; nothing of tags that are confirmed."""
        state = self.evidence.state
        if state == "contradicted":
            return [Finding("error", self._contradiction())]
        found = [warning(self._doubt())] if state == "doubtful" else []
        if state in {"plausible", "unchecked"}:
            found += map(notice, self._uncertainty())
        for rows in self.evidence.findings.alike:
            names = ", ".join(self.snapshots[row].name for row in rows)
            found.append(notice(f"these hold the same weights: {names}"))
        return found

    def _contradiction(self) -> InputError:
        """The error for tags that are contradicted."""
        exact = self.evidence.findings
        if exact.still:
            many = len(self.evidence.series[exact.still[0]].rows)
            return self._of_series(
                exact.still[0],
                f": all {many} snapshots hold the same weights: was the average ever updated?",
                "pass --raw to use raw weights beside it",
            )
        if exact.copies:
            what = " equals the raw weights in every snapshot: it is no average"
            return self._of_series(exact.copies[0][0], what, "pass --raw")
        if exact.stalled:
            return self._of_series(
                exact.stalled[0],
                " is kept in 16 bits during training, where small updates are lost: between two "
                "snapshots many elements stand still, and the others move by many units",
                "keep averages in float32 (they may be stored in any type); pass --raw to use raw "
                "weights beside it",
            )
        if self.evidence.foreign:
            return self._foreign([self.snapshots[row].name for row in self.evidence.foreign])
        return self._misfit([a for a in self.evidence.alternatives if a.fits])

    def _of_series(self, number: int, what: str, instead: str) -> InputError:
        """The error for one of the series."""
        series = self.evidence.series[number]
        return InputError(
            f"{self._tag(series).label}{what}",
            where=self.snapshots[series.rows[0]].name,
            remedy=f"{instead}, {_INSIST}",
        )

    def _misfit(self, fitting: Sequence[Alternative]) -> InputError:
        """The error for tags that the snapshots do not fit."""
        if self.evidence.later:
            what = f"{self._better(fitting)}; did the decay change?" if fitting else _NEITHER
            return InputError(
                self._later(what),
                remedy=f"pass --raw, or --select the snapshots of one decay, {_INSIST}",
            )
        if fitting:
            option = self._option(fitting[0])
            say = f"pass {option}" if option else "say so in phema.toml"
            return InputError(self._better(fitting), remedy=f"{say}, {_INSIST}", option=option)
        worst = ", ".join(self.snapshots[row].name for row, _ in self.evidence.suspects)
        return InputError(
            f"{_NEITHER}: there may be raw weights among averages, files of two runs, or a run "
            f"that diverged (the worst fit: {worst})",
            remedy=f"say what they are with --average, --gammas or --raw, {_INSIST}",
        )

    def _foreign(self, names: Sequence[str]) -> InputError:
        """The error for snapshots that are not of this run."""
        one = len(names) == 1
        option = " ".join(f"--exclude {quoted(escape(name))}" for name in names)
        return InputError(
            f"{'is' if one else 'are'} of another run or another step: without "
            f"{'it' if one else 'them'} all others fit their tags",
            where=listed(names, _MOST_NAMES),
            remedy=f"leave {'it' if one else 'them'} out with --exclude, {_INSIST}",
            option=option if len(names) <= _MOST_NAMES else None,
        )

    def _better(self, fitting: Sequence[Alternative]) -> str:
        """That other laws explain the snapshots better than their tags."""
        best, *others = map(self._laws, fitting)
        tags = " and ".join(self._tag(s).label for s in self.evidence.compared)
        ratio = fitting[0].times_better
        times = f"over {_MOST_TIMES}" if ratio > _MOST_TIMES else f"{ratio:.2g}"
        return (
            f"the snapshots do not fit their tags, {tags}: they predict each other {times} times "
            f"better as {', or as '.join([best, *others])}"
        )

    def _doubt(self) -> str:
        """The warning for tags where other laws fit clearly better."""
        if not self.evidence.alternatives:
            return "the snapshots hardly fit their tags"
        best = self.evidence.alternatives[0]
        what = (
            f"the snapshots fit {self._laws(best)} better than their tags, which changes the "
            f"result by {best.harm:.0%} of what averaging moves"
        )
        if self.evidence.later:
            return self._later(f"{what}; did the decay change?")
        option = self._option(best)
        return f"{what}; if so, pass {option}" if option else what

    def _later(self, what: str) -> str:
        """What is true of the snapshots that were looked at, from the first of these on."""
        rows = (row for s in self.evidence.compared for row in s.rows)
        return f"from step {min(self.snapshots[row].tag.step for row in rows):.10g} on {what}"

    def _uncertainty(self) -> list[str]:
        """The notice for tags that are not confirmed, where no file's content states them."""
        averages = [self._tag(s) for s in self.evidence.series]
        ours = [t.label for t in averages if t.label != "raw" and t.profile_origin in _OURS]
        if not ours:
            return []
        labels = " and ".join(dict.fromkeys(ours))
        text = f"there are too few times to check that these are {labels}"
        if self.evidence.state == "plausible" and self.evidence.alternatives:
            text = (
                f"these may be {labels}, but {self._laws(self.evidence.alternatives[0])} would fit "
                f"as well and change the result by {self.evidence.tag_error or 0.0:.0%} of what "
                "averaging moves"
            )
        elif len(averages) == 1:
            text = f"only one average is stored, and nothing can check that it is {labels}"
        return [text]

    def _tag(self, series: Series) -> Tag:
        return self.snapshots[series.rows[0]].tag

    def _laws(self, other: Alternative) -> str:
        """What an alternative takes the series for."""
        if other.every is not None:
            return f"averages updated once in {other.every} steps"
        tags = [self._tag(s).label for s in self.evidence.compared]
        words = " and ".join(
            law.label if law.label == tag else f"{law.label} (tagged {tag})"
            for tag, law in zip(tags, other.laws, strict=True)
        )
        if other.offset:
            return f"{words}, counted from {-other.offset:.6g}"
        # The tags have other steps between updates, which no label of a gamma says.
        same = [law.label for law in other.laws] == tags
        return f"{words}, updated at every step" if same else words

    def _option(self, other: Alternative) -> str | None:
        """What to pass for an alternative, where one option says it."""
        if other.every is not None:
            return f"--update-every {other.every}"
        pairs = zip(self.evidence.compared, other.laws, strict=True)
        changed = [(s, law) for s, law in pairs if self._tag(s).label != "raw"]
        origins = {self._tag(s).profile_origin for s, _ in changed}
        if other.offset or not changed or not origins <= {"command line", "phema.toml"}:
            # No such option changes what files say of themselves.
            return None
        if len(changed) < sum(self._tag(s).label != "raw" for s in self.evidence.series):
            # An option is about all averages, and some were not looked at.
            return None
        changed.sort(key=lambda pair: _group(self.snapshots[pair[0].rows[0]]))
        laws = [law for _, law in changed]
        return "--raw" if [law.kind for law in laws] == ["raw"] else _gammas_option(laws, 4)


def _gammas_option(laws: Sequence[Law], digits: int) -> str | None:
    """``--gammas 5,10`` for power functions; None where there are other laws."""
    if any(law.kind != "power" for law in laws):
        return None
    return f"--gammas {','.join(f'{law.scale - 1:.{digits}g}' for law in laws)}"


#: key and index of an average.
_Group = tuple[str, int]


def with_proposal(scan: Scan) -> Scan:
    """The scan with errors that say what to pass, where only laws are missing and data show them.

    A sample of its snapshots is read if all of its errors are missing laws.
    """
    missing = {str(u.error.error) for u in scan.untagged}
    errors = {str(f.error) for f in scan.findings if f.level == "error"}
    if not missing or not errors <= missing:
        return scan
    laws = _untagged_laws(scan)
    if laws is None:
        return scan
    findings = [
        Finding("error", _proposing(f.error, laws)) if str(f.error) in missing else f
        for f in scan.findings
    ]
    return replace(scan, findings=tuple(findings))


def _group(one: Snapshot) -> _Group:
    """What an average's snapshots have in common, and what options tell averages apart by."""
    return one.series, one.index or 0


def _untagged_laws(scan: Scan) -> Mapping[_Group, Law] | None:
    """What each average without a law looks like; None where the snapshots can't tell."""
    pairs: list[tuple[Hashable, Snapshot]] = [((s.series, s.tag.label), s) for s in scan.snapshots]
    pairs += [(_group(u.snapshot), u.snapshot) for u in scan.untagged]
    # ``last.pt`` may be of the same time as a file with a number.
    pairs = list({(group, s.tag.step): (group, s) for group, s in pairs}.values())
    pairs.sort(key=lambda pair: pair[1].tag.step)
    snapshots = [s for _, s in pairs]
    try:
        values = None if any(differences(snapshots, scan.copy)) else sample(snapshots, scan.copy)
    except PhemaError:
        # An error of reading them is reported once their tags are known.
        return None
    if values is None:
        return None
    members: dict[Hashable, list[Profile]] = {}
    for snapshot in scan.snapshots:
        group = snapshot.series, snapshot.tag.label
        members.setdefault(group, []).append(snapshot.tag.profile)
    known = {group: law_of(profiles) for group, profiles in members.items()}
    times = [s.tag.profile.end for s in snapshots]
    groups = [group for group, _ in pairs]
    proposed = propose(times, groups, known, values)
    if proposed is None:
        return None
    told = {**known, **proposed}
    profiles = [
        one.tag.profile if group in members else told[group].profile(time)
        for (group, one), time in zip(pairs, times, strict=True)
    ]
    if weigh(profiles, values, groups).state in {"contradicted", "doubtful"}:
        # The best of those that were tried, and phema itself would not believe it.
        return None
    laws = {_group(u.snapshot): proposed[_group(u.snapshot)] for u in scan.untagged}
    counted = {_group(u.snapshot) for u in scan.untagged if u.snapshot.index is not None}
    steps = sorted({s.tag.step for s in snapshots})
    by_step = all(s.tag.unit == "steps" for s in snapshots) and any(
        b - a != 1 for a, b in pairwise(steps)
    )
    # What names count by an index are power functions, and nothing else is proposed for them; nor
    # is a decay per step where times are epochs, or count these or files.
    powers = counted if by_step else laws.keys()
    return laws if all(laws[group].kind == "power" for group in powers) else None


def _average_option(law: Law) -> str:
    """``--average power:gamma=5``, ``--average exponential:beta=0.999``, of a law with a scale."""
    if law.kind == "power":
        return f"--average power:gamma={law.scale - 1:.6g}"
    return f"--average {law.kind}:beta={math.exp(-law.scale):.10g}"


def _proposing(error: PhemaError, laws: Mapping[_Group, Law]) -> InputError:
    """The error with what the averages look like, and the option that says so."""
    groups = sorted(laws)
    ordered = [laws[g] for g in groups]
    option = _gammas_option(ordered, 6)
    if option is None:
        option = " ".join(map(_average_option, ordered))
    keys = dict.fromkeys(key for key, _ in groups)
    if len(keys) > 1:
        option = f"--key {','.join(map(quoted, keys))} {option}"
    subject = "it looks" if len(ordered) == 1 else "these look"
    return InputError(
        f"{error.what}; {subject} like {' and '.join(law.label for law in ordered)}",
        where=error.where,
        remedy=f"pass {option} if that is what the trainer had",
        option=option,
    )
