"""Whether snapshots fit together: no tag twice, one run, the same tensors, none quantized.

Snapshots come oldest first; ``copy`` are globs of the names of tensors that are copied, whatever
their type.
"""

import re
from collections.abc import Iterator, Sequence
from glob import escape
from itertools import pairwise

from phema_cli.errors import InputError, listed
from phema_cli.formats.base import Extent
from phema_cli.formats.entries import alike
from phema_cli.formats.reader import FileReader
from phema_cli.globs import matching
from phema_cli.snapshots.base import (
    UNKNOWN,
    Finding,
    Needs,
    Snapshot,
    distinct,
    is_float,
    notice,
    reference,
    warning,
)
from phema_cli.system.processes import quoted
from phema_cli.trainers.clocks import clock_in
from phema_cli.trainers.generic import followers

#: ratio of gamma + 1 below which two averages say hardly more than one.
_HARDLY_DIFFERENT = 1.01
#: bits of the widest type that only quantized weights have.
_NARROW = 8
_UNQUANTIZED = "use checkpoints that were saved before quantization"
# Quantized weights are integers or narrow floats with scales beside them. Libraries write these
# names: torchao, optimum-quanto, bitsandbytes, compressed-tensors, GPTQ and AWQ, HQQ, the float8
# checkpoints of DeepSeek and ComfyUI, the blocks of gpt-oss.
#: endings of the values' names: the scale's name has one of _SCALES instead, or behind it.
_ENDINGS = ("_packed", "_blocks", "_quantized", "int_data", "qdata", "_data._data", "data")
_SCALES = (
    *("_scale", "_scales", "_scale_inv", "scale", "scales", ".scale", ".scales", ":scale"),
    *(".absmax", "_absmax"),
)
#: names of values, and names of their scales in the same module.
_VALUES = ("weight", "qweight", "W_q", "codes")
_BESIDE = (
    *("scale", "scales", "SCB", "weight_scale", "weight_scale_inv", "weight_scales"),
    *("scale_weight", "qscales", "codebooks"),
)
_STATE = ".quant_state."
#: bytes of a matrix of integers that are compared between snapshots.
_COMPARED = 1 << 16
#: steps from which on files that were copied in any order are hardly taken for those of a branch.
_LEAST = 6
#: files that are named in one line at most.
_MOST_NAMES = 4


def check(
    snapshots: Sequence[Snapshot], copy: Sequence[str] = (), needs: Needs = "laws"
) -> Iterator[Finding]:
    """Findings about all snapshots taken together.

    Args:
        snapshots: oldest first, by gamma within a step; small differences of tensors are settled.
        copy: see above.
        needs: what has to be known of snapshots.
    """
    errors: list[InputError] = []
    if needs != "names":
        # That a directory is of another run says more than which of its files are there twice.
        errors += (*_other_runs(snapshots), *_duplicates(snapshots), *_other_units(snapshots))
    errors += differences(snapshots, copy)
    # Of several series in a directory each is of another run.
    yield from (Finding("error", error) for error in {str(e): e for e in errors}.values())
    if needs != "names" and any(s.tag.unit == "epochs" for s in snapshots):
        yield notice("times are in epochs; epoch e, counted from 0, ends at time e + 1")
    newest = reference(snapshots).checkpoint.tensors if snapshots else {}
    for name, extent in newest.items():
        # A narrower type is quantized, which is an error of its own.
        other = extent.dtype.kind == "other" and extent.dtype.bits > _NARROW
        if other and not matching(copy)(name):
            yield Finding("warning", not_averaged(name, extent, reference(snapshots).name))
            break
    for prefix in followers(newest):
        part = prefix.rstrip(".").rpartition(".")[2]
        yield notice(
            f"the tensors below {part}. have the names of others: if they are an average of these, "
            f"leave them out with --drop '*{part}.*'"
        )
    if needs != "names":
        yield from _abandoned(snapshots)
    if needs == "laws":
        yield from _about_laws(snapshots)


def _about_laws(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """Warnings about averages of which one says hardly more than another one."""
    gammas = sorted({s.tag.gamma for s in snapshots if s.tag.gamma is not None})
    for a, b in pairwise(gammas):
        if (b + 1) / (a + 1) < _HARDLY_DIFFERENT:
            yield warning(
                f"gammas {a:.10g} and {b:.10g} hardly differ, which makes weights large",
                remedy="if they are one gamma, pass it with --gammas or in phema.toml",
            )
    if len({s.tag.label for s in snapshots}) == len(gammas) == 1:
        yield warning(
            f"all snapshots have gamma {gammas[0]:.6g}; one gamma reaches other targets only "
            "roughly",
            remedy="see expected_error, and track a second gamma in the next run",
        )


def _abandoned(snapshots: Sequence[Snapshot]) -> Iterator[Finding]:
    """A warning for later steps that were written before the run was resumed at an earlier one.

    Snapshots come oldest first, by their steps.

    By when files were last changed: up to step a in order, then, after all others, those from a to
    b in order, while those beyond b were written in between. Copies that do not keep times were
    written in the order of their names, in which step 1000 may come before 200.
    """
    changed = [max([c for *_, c in s.checkpoint.stamps.values()], default=0) for s in snapshots]
    by_name = sorted(zip([s.name for s in snapshots], changed, strict=True))
    if all(one <= other for (_, one), (_, other) in pairwise(by_name)):
        return
    written: dict[float, int] = {}
    for s, when in zip(snapshots, changed, strict=True):
        written[s.tag.step] = max(written.get(s.tag.step, 0), when)
    steps, times = list(written), list(written.values())
    falls = [i for i, (a, b) in enumerate(pairwise(times), start=1) if b <= a]
    if len(falls) != 1 or len(steps) < _LEAST:
        return
    beyond = times[falls[0] :]
    resumed = next((i for i, t in enumerate(times) if t >= beyond[0]), 0)
    if not 0 < resumed < falls[0] or not beyond[-1] < times[resumed]:
        return
    names = [s.name for s in snapshots if s.tag.step >= steps[falls[0]]]
    yield warning(
        f"written before step {steps[resumed]:.10g} was: if the run was resumed at step "
        f"{steps[resumed - 1]:.10g}, these are of the branch that it left",
        where=listed(names, _MOST_NAMES),
        remedy="leave them out with --exclude",
    )


def _duplicates(snapshots: Sequence[Snapshot]) -> Iterator[InputError]:
    """Errors for snapshots with the same average and step."""
    groups: dict[tuple[float, float, str, str], list[Snapshot]] = {}
    for snapshot in snapshots:
        tag = snapshot.tag
        gamma = -1.0 if tag.gamma is None else tag.gamma
        # Averages of unknown laws may be different ones.
        series = snapshot.series if tag.law == UNKNOWN else ""
        groups.setdefault((gamma, tag.step, tag.label, series), []).append(snapshot)
    for key in sorted(groups):
        first, *others = groups[key]
        for other in others:
            if first.checkpoint.tensors.keys().isdisjoint(other.checkpoint.tensors):
                yield _nothing_in_common(first, other)
                continue
            same = other.name == first.name
            yield InputError(
                f"has the same {other.tag.label} and step {other.tag.step:.10g} as "
                f"{first.checkpoint.path if same else first.name}",
                where=other.checkpoint.path if same else other.name,
                remedy="leave one out with --exclude",
            )


def _nothing_in_common(one: Snapshot, other: Snapshot) -> InputError:
    """The error for two snapshots that have no tensor in common."""
    return InputError(
        f"has no tensor in common with {one.name}: it is another network, or another part of it",
        where=other.name,
        remedy="gather parts into one file; synthesize several networks one by one, by --select",
    )


def _other_units(snapshots: Sequence[Snapshot]) -> Iterator[InputError]:
    """Errors for times in several units."""
    units: dict[str, Snapshot] = {}
    for snapshot in snapshots:
        units.setdefault(snapshot.tag.unit, snapshot)
    for (unit, one), (other_unit, other) in pairwise(units.items()):
        yield InputError(
            f"its time is in {unit}, but that of {other.name} is in {other_unit}",
            where=one.name,
            remedy="give one unit for all with --pattern, --steps-per-epoch or in phema.toml",
        )


def _other_runs(snapshots: Sequence[Snapshot]) -> Iterator[InputError]:
    """Errors for a series in several directories whose times overlap: these are of two runs."""
    members: dict[tuple[str, str, str], list[Snapshot]] = {}
    for snapshot in snapshots:
        home = str(snapshot.root.absolute() / home_of(snapshot))
        members.setdefault((snapshot.series, snapshot.tag.label, home), []).append(snapshot)
    # By their first steps: where any two overlap, two neighbours do.
    groups = sorted(
        (series, label, group[0].tag.step, home, group)
        for (series, label, home), group in members.items()
        if len(group) > 1
    )
    several = len({s.root for s in snapshots}) > 1
    for (*series, _, _, one), (*other_series, begin, _, other) in pairwise(groups):
        if series == other_series and begin < min(one[-1].tag.step, other[-1].tag.step):
            homes = [(group[0].root, home_of(group[0])) for group in (one, other)]
            home, other_home = (str(root / own) if several else own for root, own in homes)
            inside = not several and all(s.name.startswith(f"{other_home}/") for s in other)
            yield InputError(
                "is of another run: files of the same series and time are in "
                f"{'the directory itself' if home == '.' else home}",
                where=other[0].name if other_home == "." else other_home,
                remedy="give the directory of one run, or leave files out with --exclude",
                option=f"--exclude {quoted(f'{escape(other_home)}/*')}" if inside else None,
            )


def home_of(snapshot: Snapshot) -> str:
    """The directories that a snapshot shares with all of its series; ``.`` if there is none.

    Names that are a time do not count, and of a directory that is itself the snapshot no number.
    """
    *above, own = snapshot.name.split("/")
    if snapshot.folder is not None:
        above.append(re.sub(r"\d+", "#", own) if clock_in(own, whole=True) is None else own)
    counted = (p for p in above if not p.isdigit() and clock_in(p, whole=True) is None)
    return "/".join(counted) or "."


def differences(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> Iterator[InputError]:
    """Errors for snapshots in which tensors that are averaged are not as in the newest one."""
    if not snapshots:
        return
    newest, copied = reference(snapshots), matching(copy)
    want = newest.checkpoint.tensors
    for snapshot in snapshots:
        have = snapshot.checkpoint.tensors
        if alike(have, want):
            continue
        if have and want and want.keys().isdisjoint(have):
            yield _nothing_in_common(newest, snapshot)
            continue
        missing = [n for n in want if n not in have and is_float(want[n]) and not snapshot.partial]
        others = [n for n in want if n in have and _differ(have[n], want[n])]
        parts = [f"tensor {n} is missing" for n in missing if not copied(n)]
        parts += [f"tensor {n} is only in this one" for n in have if n not in want]
        parts += [
            f"tensor {n} is {_type(have[n])} instead of {_type(want[n])}"
            for n in others
            if not copied(n)
        ]
        if parts:
            more = f" (and {len(parts) - 1} more differences)" if len(parts) > 1 else ""
            yield InputError(
                f"does not fit {newest.name}: {parts[0]}{more}",
                where=snapshot.name,
                remedy="leave one of them out with --exclude",
            )


def _differ(first: Extent, second: Extent) -> bool:
    """Whether two tensors of a name are not of one model."""
    if is_float(first) and is_float(second):
        return first.shape != second.shape
    # A trainer may have averaged a counter, but a matrix is a weight.
    return is_float(first) != is_float(second) and max(len(first.shape), len(second.shape)) > 1


def _type(extent: Extent) -> str:
    return f"{extent.dtype.label} {list(extent.shape)}"


def not_averaged(name: str, extent: Extent, where: str) -> InputError:
    """The error that a tensor's type can't be averaged."""
    narrow = extent.dtype.bits <= _NARROW
    return InputError(
        f"tensor {name}: {extent.dtype.label} values can't be averaged",
        where=where,
        remedy=_UNQUANTIZED if narrow else f"--copy '{name}' takes them from the newest snapshot",
    )


def quantized(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> InputError | None:
    """The error for the first quantized tensor, of the first snapshot that has some.

    Integers would be copied from the newest snapshot, and their scales averaged, to a model of
    neither. Where the user wants them copied, their scales have to be copied too.
    """
    if (changing := _changing(snapshots, copy)) is not None:
        return changing
    for snapshot in distinct(snapshots):
        found = list(_with_scales(snapshot, copy))
        if found:
            extent, scale = found[0]
            beside = f" with a scale beside them ({scale})" if scale else ""
            more = f" (and {len(found) - 1} more tensors)" if len(found) > 1 else ""
            return InputError(
                f"tensor {extent.name}: {extent.dtype.label} values{beside} are quantized "
                f"weights, which can't be averaged{more}",
                where=snapshot.name,
                remedy=_UNQUANTIZED,
            )
    return None


def _changing(snapshots: Sequence[Snapshot], copy: Sequence[str]) -> InputError | None:
    """The error for a matrix of integers that training changes, whatever its name.

    Buffers of that kind stay as they are; packed weights move with the weights.
    """
    whole = [s for s in snapshots if not s.partial]
    if len(whole) <= 1:
        return None
    first, last = whole[0].checkpoint.tensors, whole[-1].checkpoint.tensors
    for name, extent in last.items():
        if extent.dtype.kind != "exact" or not _may_be_quantized(extent) or matching(copy)(name):
            continue
        other = first.get(name)
        if other is None or (other.dtype, other.shape) != (extent.dtype, extent.shape):
            continue
        # The beginnings of the two are enough to see a change.
        size = extent.dtype.bits // 8
        rows = [bytearray(min(extent.elements * size, _COMPARED)) for _ in range(2)]
        with FileReader() as reader:
            parts = zip((other, extent), rows, strict=True)
            reader.read_many([(e, 0, memoryview(row)) for e, row in parts])
        if rows[0] != rows[1]:
            return InputError(
                f"tensor {name}: {extent.dtype.label} values that change during training are "
                "quantized or packed weights, which can't be averaged",
                where=whole[-1].name,
                remedy=_UNQUANTIZED,
            )
    return None


def _with_scales(snapshot: Snapshot, copy: Sequence[str]) -> Iterator[tuple[Extent, str | None]]:
    """Quantized tensors, each with the name of its scale if it has one."""
    tensors = snapshot.checkpoint.tensors
    suspects = [e for e in tensors.values() if _may_be_quantized(e)]
    if not suspects:
        return
    copied = matching(copy)
    states = {n.partition(_STATE)[0]: n for n in tensors if _STATE in n}
    for extent in suspects:
        beside = (n for n in _scale_names(extent.name) if n in tensors and n != extent.name)
        scale = next(beside, None) or states.get(extent.name)
        if scale is None and extent.dtype.kind != "other":
            continue
        # Both copied make a model; values of one snapshot and the mean of scales don't.
        if not all(copied(n) for n in (extent.name, scale) if n is not None):
            yield extent, scale


def _may_be_quantized(extent: Extent) -> bool:
    """Whether a tensor's type and shape are those of quantized weights."""
    if extent.dtype.kind == "exact":
        return len(extent.shape) > 1 and extent.dtype.name != "BOOL"
    return extent.dtype.bits <= _NARROW


def _scale_names(name: str) -> Iterator[str]:
    """Names that the scale of values of that name may have."""
    module, dot, own = name.rpartition(".")
    for stem in (name, *(name.removesuffix(e) for e in _ENDINGS if name.endswith(e))):
        yield from (stem + ending for ending in _SCALES)
    if own in _VALUES:
        yield from (module + dot + other for other in _BESIDE)
