"""Whether the snapshots bear their tags out, in words: docs/evidence.md says how that is tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape
from shlex import quote
from typing import Any

from phema_cli.errors import InputError
from phema_cli.snapshots import Finding, Snapshot
from phema_cli.snapshots.base import Tag
from phema_cli.solver import Sample
from phema_cli.solver.evidence import Alternative, Evidence, Series, State, weigh
from phema_cli.trainers.registry import parse_law

#: ratio from which "so many times better" says no more.
_MOST_TIMES = 1000
#: files that are named in one line at most.
_MOST_NAMES = 8
_INSIST = "or --trust-tags to insist"
_OURS = ("command line", "phema.toml", "name")


@dataclass(frozen=True, slots=True)
class TagCheck:
    """How far tags are known.

    Attributes:
        state: ``confirmed``, ``plausible``, ``unchecked``, ``doubtful`` or ``contradicted``.
        evidence: the test's figures; None where nothing was tested.
        findings: what is to be said of it: an error where the tags are contradicted.
    """

    state: State = "unchecked"
    evidence: Evidence | None = None
    findings: tuple[Finding, ...] = ()

    def require(self) -> None:
        """Refuse tags that are contradicted.

        Raises:
            InputError: they are; it says what the snapshots look like instead.
        """
        for finding in self.findings:
            if finding.level == "error":
                raise finding.error

    def entry(self) -> dict[str, Any]:
        """What a JSON document says of it."""
        found = self.evidence
        if found is None:
            return {"tags": self.state, "tag_error": None, "alternatives": []}
        return {
            "tags": self.state,
            "tag_error": found.tag_error,
            "alternatives": [
                {
                    "averages": [law.label for law in other.laws],
                    "offset": other.offset,
                    "update_every": other.every,
                    "times_better": min(other.times_better, float(_MOST_TIMES)),
                    "harm": other.harm,
                }
                for other in found.alternatives
            ],
        }


def check_tags(snapshots: Sequence[Snapshot], sample: Sample) -> TagCheck:
    """Test the tags of snapshots on a sample of their elements.

    Args:
        snapshots: oldest first.
        sample: their elements in the same order.
    """
    groups = [(s.series, s.tag.label) for s in snapshots]
    found = weigh([s.tag.profile for s in snapshots], sample, groups)
    found = replace(found, alternatives=tuple(_counted(a, snapshots) for a in found.alternatives))
    told = _Told(snapshots, found)
    return TagCheck(found.state, found, tuple(told.findings()))


def _counted(other: Alternative, snapshots: Sequence[Snapshot]) -> Alternative:
    """The alternative with the steps between updates in all: what the tags say of them counts."""
    if other.every is None:
        return other
    laws = {s.tag.law for s in snapshots} - {"", "raw"}
    told = {parse_law(law).parameters.get("every", 1.0) for law in laws}
    return replace(other, every=round(other.every * told.pop()) if len(told) == 1 else None)


@dataclass(frozen=True, slots=True)
class _Told:
    """The outcome of a test, and the snapshots that it is of."""

    snapshots: Sequence[Snapshot]
    found: Evidence

    def findings(self) -> list[Finding]:
        """What is to be said; nothing of tags that are confirmed."""
        if self.found.state == "contradicted":
            return [Finding("error", self._alarm())]
        said = [] if self.found.state != "doubtful" else [self._doubt()]
        said += self._open()
        said += [self._alike(rows) for rows in self.found.findings.alike]
        return [Finding("notice", InputError(what)) for what in said]

    def _alarm(self) -> InputError:
        """The error for tags that are contradicted."""
        exact = self.found.findings
        if exact.still:
            return self._still(self.found.series[exact.still[0]])
        if exact.copies:
            return self._copies(self.found.series[exact.copies[0][0]])
        if self.found.foreign:
            return self._foreign([self.snapshots[row].name for row in self.found.foreign])
        fitting = [a for a in self.found.alternatives if a.fits]
        if fitting:
            return self._otherwise(fitting)
        worst = ", ".join(self.snapshots[row].name for row, _ in self.found.suspects)
        return InputError(
            "the snapshots do not fit together under their tags, nor under any that were tried: "
            "raw weights among averages, files of two runs, or a run that diverged "
            f"(those that fit worst: {worst})",
            remedy=f"say what they are with --average, --gammas or --raw, {_INSIST}",
        )

    def _foreign(self, names: Sequence[str]) -> InputError:
        """The error for snapshots that do not belong."""
        few = names[:_MOST_NAMES]
        more = f" and {len(names) - len(few)} more" if len(names) > len(few) else ""
        what = "does" if len(names) == 1 else "do"
        option = " ".join(f"--exclude {quote(escape(name))}" for name in names)
        return InputError(
            f"{what} not belong to the others, which bear their tags out: of another run, or of "
            "another step",
            where=", ".join(few) + more,
            remedy=f"leave {'it' if len(names) == 1 else 'them'} out with --exclude, {_INSIST}",
            option=option if len(names) == len(few) else None,
        )

    def _still(self, series: Series) -> InputError:
        """The error for snapshots that all hold the same weights."""
        return InputError(
            f"{self._label(series)}: all {len(series.rows)} snapshots hold the same weights: was "
            "the average ever updated?",
            where=self.snapshots[series.rows[0]].name,
            remedy=f"pass --raw to use raw weights beside it, {_INSIST}",
        )

    def _copies(self, average: Series) -> InputError:
        """The error for an average that is none."""
        return InputError(
            f"{self._label(average)}: equals the raw weights in every snapshot, and is no average",
            where=self.snapshots[average.rows[0]].name,
            remedy=f"pass --raw, {_INSIST}",
        )

    def _otherwise(self, fitting: Sequence[Alternative]) -> InputError:
        """The error for tags that others explain better."""
        best = fitting[0]
        others = "".join(f", or {self._laws(a)}" for a in fitting[1:])
        told = ", ".join(map(self._label, self.found.series))
        option = self._option(best)
        return InputError(
            f"the snapshots do not fit {told}: each is foretold by the others "
            f"{_times(best.times_better)} better if they are {self._laws(best)}{others}",
            remedy=f"pass {option}, {_INSIST}" if option else f"say so in phema.toml, {_INSIST}",
            option=option,
        )

    def _doubt(self) -> str:
        """What is said of tags that others explain clearly better."""
        best = self.found.alternatives[0] if self.found.alternatives else None
        if best is None:
            return "the snapshots hardly fit their tags"
        option = self._option(best)
        advice = f"; if so, pass {option}" if option else ""
        return (
            f"the snapshots fit {self._laws(best)} better than their tags, which changes the "
            f"result by {best.harm:.0%} of what averaging moves{advice}"
        )

    def _open(self) -> list[str]:
        """What is said where the tags could not be confirmed, and no file's content says them."""
        averages = [s for s in self.found.series if self._label(s) != "raw"]
        ours = [s for s in averages if self._tag(s).profile_origin in _OURS]
        if not ours or self.found.state not in {"plausible", "unchecked"}:
            return []
        labels = " and ".join(dict.fromkeys(map(self._label, ours)))
        if self.found.state == "plausible" and self.found.alternatives:
            other, error = self._laws(self.found.alternatives[0]), self.found.tag_error or 0.0
            change = f"would change the result by {error:.0%} of what averaging moves"
            return [f"good, if these are {labels}: {other} fits as well, and {change}"]
        if len(self.found.series) == 1:
            return [f"only one average is stored: that it is {labels} can't be checked"]
        return [f"too few times to check that these are {labels}"]

    def _alike(self, rows: Sequence[int]) -> str:
        """What is said of files that hold the same."""
        names = ", ".join(self.snapshots[row].name for row in rows)
        return f"these hold the same weights: {names}"

    def _tag(self, series: Series) -> Tag:
        return self.snapshots[series.rows[0]].tag

    def _label(self, series: Series) -> str:
        """What a series is told to be."""
        return self._tag(series).label

    def _laws(self, other: Alternative) -> str:
        """What an alternative takes the series for."""
        if other.every is not None:
            return f"updated once in {other.every} steps"
        pairs = zip(self.found.series, other.laws, strict=False)
        words = " and ".join(
            law.label if law.label == self._label(s) else f"{law.label} ({self._label(s)} as told)"
            for s, law in pairs
        )
        late = f", counted from {-other.offset:.6g}" if other.offset else ""
        return words + late

    def _option(self, other: Alternative) -> str | None:
        """What to pass for an alternative, where one option says it."""
        if other.every is not None:
            return f"--update-every {other.every}"
        changed = [
            (s, law)
            for s, law in zip(self.found.series, other.laws, strict=False)
            if self._label(s) != "raw"
        ]
        told = {self._tag(s).profile_origin for s, _ in changed}
        if other.offset or not changed or not told <= {"command line", "phema.toml"}:
            # What files say of themselves no such option changes.
            return None
        ordered = sorted(changed, key=lambda pair: self.snapshots[pair[0].rows[0]].series)
        if all(law.kind == "power" for _, law in ordered):
            return f"--gammas {','.join(f'{law.scale - 1:.4g}' for _, law in ordered)}"
        if len(ordered) == 1 and ordered[0][1].kind == "raw":
            return "--raw"
        return None


def _times(ratio: float) -> str:
    """By how much better, in words."""
    return f"over {_MOST_TIMES} times" if ratio > _MOST_TIMES else f"{ratio:.2g} times"
