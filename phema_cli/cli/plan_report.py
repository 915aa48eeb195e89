"""A plan as text and as a JSON document."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phema_cli.cli import reachable, render
from phema_cli.errors import UsageError

if TYPE_CHECKING:
    from phema_cli.formats.base import DType
    from phema_cli.solver import Figures
    from phema_cli.solver.assumptions import Packing
    from phema_cli.solver.planning import Aim, Plan

#: part of a file that its header takes, at most.
_HEADER = 1e-3
#: sigma_rel of the targets in the table.
_SHOWN = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
#: bytes that the tracker's average of a parameter takes in memory, and what it packs by.
_AVERAGE_BYTES, _PACKING_BYTES = 6, 36
#: packed snapshots whose worst error is below this part of the plan's are proposed.
_PROPOSED = 0.9


@dataclass(frozen=True, slots=True)
class Sizes:
    """What snapshots cost.

    Attributes:
        dtype: type that they are stored in; of packed ones, that of their keyframes.
        parameters: of the model, where they are known.
        packing: how they are packed; None where they are whole.
    """

    dtype: DType
    parameters: int | None
    packing: Packing | None = None

    @property
    def bits(self) -> int | None:
        """Of an element of a packed snapshot."""
        return None if self.packing is None else self.packing.bits

    @property
    def file_bytes(self) -> int | None:
        """Bytes of one snapshot, of a packed one that is no keyframe, without its header."""
        from phema_cli.formats.packing import packed_specs

        if self.parameters is None:
            return None
        if self.packing is None:
            return self.dtype.size_bytes(self.parameters)
        specs = packed_specs("", self.parameters, self.packing.bits).values()
        return sum(dtype.size_bytes(count) for dtype, (count,) in specs)

    def all_bytes(self, files: int) -> int | None:
        """Bytes of so many snapshots without their headers."""
        one = self.file_bytes
        if one is None or self.parameters is None:
            return None
        keyframes = 0 if self.packing is None else self.packing.keyframes(files)
        return one * (files - keyframes) + self.dtype.size_bytes(self.parameters) * keyframes

    def affordable(self, budget_bytes: int) -> int:
        """Number of snapshots that a budget holds; no more than a plan may have.

        Raises:
            UsageError: the size of the model is not known.
        """
        from phema_cli.solver.planning import MOST_FILES

        if self.parameters is None:
            raise UsageError("--budget needs the size of the model", remedy="pass --parameters")
        most = budget_bytes / (1 + _HEADER)
        counts = range(1, MOST_FILES + 1)
        return bisect_right(counts, most, key=lambda files: self.all_bytes(files) or 0)


@dataclass(frozen=True, slots=True)
class Report:
    """A plan and what it means.

    Attributes:
        plan: the snapshots to store.
        aim: the targets that it was made for, and the errors of such snapshots.
        sizes: what the snapshots cost.
        reach: figures of the targets of ``phema_cli.request.GRID``, by sigma_rel; those of
            ``packed`` have none.
        packed: plans of packed snapshots within the same budget.
    """

    plan: Plan
    aim: Aim
    sizes: Sizes
    reach: Mapping[float, Figures] = field(default_factory=dict)
    packed: Sequence[Report] = ()

    @property
    def worst(self) -> float:
        """The largest sigma_error in per cent."""
        from phema_cli.solver.planning import worst_error

        return worst_error(self.plan, self.aim)

    @property
    def sigma_rels(self) -> list[float]:
        """Of the gammas that are stored."""
        from phema_cli.profiles import sigma_rel_from_gamma

        return [sigma_rel_from_gamma(g) for g in self.plan.gammas]

    @property
    def disk_bytes(self) -> int | None:
        """Bytes of all snapshots."""
        return self.sizes.all_bytes(self.plan.files)

    def widest(self, *verdicts: str) -> tuple[float, float] | None:
        """Ends of the widest range of sigma_rel that has one of the verdicts throughout."""
        spans = reachable.spans(self.reach, verdicts)
        return max(spans, key=lambda span: span[1] - span[0], default=None)


def document(report: Report, assumed: Mapping[str, str | None]) -> dict[str, Any]:
    """The content of ``--json``; ``assumed`` says what is assumed of the run."""
    plan, aim, sizes = report.plan, report.aim, report.sizes
    return {
        "steps": aim.steps,
        "dtype": sizes.dtype.label,
        "parameters": sizes.parameters,
        "assumed": assumed,
        "range": [aim.low, aim.high],
        "method": "blue",
        "plan": {
            "gammas": plan.gammas,
            "sigma_rels": report.sigma_rels,
            "every": plan.every,
            "snapshots": len(plan.times),
            "files": plan.files,
            "file_bytes": sizes.file_bytes,
            "disk_bytes": report.disk_bytes,
            "worst_sigma_error": report.worst,
            "packing": sizes.bits,
            "good": report.widest("good"),
            "good_or_fair": report.widest("good", "fair"),
        },
        "packed": [
            {"bits": p.sizes.bits, "files": p.plan.files, "worst_sigma_error": p.worst}
            for p in report.packed
        ],
        "targets": reachable.entries(report.reach),
    }


def show(report: Report, *, measured: bool) -> None:
    """Print what to store, what it costs and reaches, and the lines for the training loop.

    Args:
        report: what to print.
        measured: whether movement was measured, so that errors have a unit.
    """
    plan, aim, worst = report.plan, report.aim, report.worst
    gammas = _listed([f"{g:.6g}" for g in plan.gammas])
    sigmas = _listed([f"{s:.4f}" for s in report.sigma_rels])
    last = "" if plan.steps % plan.every == 0 else f" and at step {plan.steps}"
    out = render.console()
    out.print(f"[bold]Store[/]  gamma {gammas} (sigma_rel {sigmas})")
    out.print(f"       {len(plan.times)} snapshots of each, every {plan.every} steps{last}")
    out.print(f"[bold]Cost[/]   {_cost(report)}")
    reached = f"{render.per_cent(worst)} from sigma_rel {aim.low:g} to {aim.high:g}"
    out.print(f"[bold]Worst[/]  sigma_error {reached}")
    _propose(report.packed, worst)
    out.print()
    reachable.show(report.reach, aim.steps, "blue")
    _show_figures(report.reach, measured=measured)
    _show_loop(plan, report.sizes)


def _propose(packed: Sequence[Report], worst: float) -> None:
    """Say which packed snapshots would reach more within the same budget."""
    best = min(packed, key=lambda report: report.worst, default=None)
    if best is None or best.worst > _PROPOSED * worst:
        return
    count = f"{len(best.plan.times)} of each"
    render.console().print(
        f"[bold]Packed[/] sigma_error {render.per_cent(best.worst)} within the same budget, "
        f"{count}: --packing {best.sizes.bits}"
    )


def _listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _cost(report: Report) -> str:
    """Files, disk and memory, as far as they are known."""
    plan, sizes = report.plan, report.sizes
    stored = f"in {sizes.dtype.label}"
    if sizes.packing is not None:
        keyframes = sizes.packing.keyframes(plan.files)
        stored = f"packed in {sizes.packing.bits} bits, {keyframes} of them keyframes in float32"
    files = f"{plan.files} files {stored}"
    if sizes.parameters is None or sizes.file_bytes is None or report.disk_bytes is None:
        return files
    each = _AVERAGE_BYTES * len(plan.gammas) + (_PACKING_BYTES if sizes.packing else 0)
    memory = render.size(each * sizes.parameters)
    one, disk = render.size(sizes.file_bytes), render.size(report.disk_bytes)
    return f"{files}, {one} each, {disk} in all; {memory} of memory"


def _show_figures(reach: Mapping[float, Figures], *, measured: bool) -> None:
    """Figures of a few targets."""
    from phema_cli.profiles import gamma_from_sigma_rel

    rms = ["expected rms"] if measured else []
    names = ["verdict", "expected error", *rms, "sigma error", "profile error"]
    columns = ["sigma_rel", "gamma", *map(render.stacked, names)]
    table = render.table(*columns, right=columns, gap=2)
    for sigma in _SHOWN:
        cells = render.figure_cells(reach[sigma])
        gamma = f"{gamma_from_sigma_rel(sigma):.4g}"
        table.add_row(f"{sigma:.2f}", gamma, *(cells[name] for name in names))
    out = render.console()
    render.show(table, out)
    out.print()


def _show_loop(plan: Plan, sizes: Sizes) -> None:
    """What to write into the training loop."""
    gammas = ", ".join(f"{g:.6g}" for g in plan.gammas) + ("," if len(plan.gammas) == 1 else "")
    due = f"step % {plan.every} == 0"
    due += "" if plan.steps % plan.every == 0 else f" or step == {plan.steps}"
    label = sizes.dtype.label
    stored = "" if label == "float32" else f", dtype=torch.{label}"
    if sizes.packing is not None:
        stored = f", packing={sizes.packing.bits}"
    out = render.console()
    out.print("[bold]In the training loop[/]")
    for line in (
        f"ema = PowerEMA(model, gammas=({gammas}))",
        f"for step in range(1, {plan.steps} + 1):",
        "    ...  # loss, backward, optimizer.step()",
        "    ema.update()",
        f"    if {due}:",
        f'        ema.save("ckpts"{stored})',
    ):
        out.print(f"  {render.plain(line)}", soft_wrap=True)
