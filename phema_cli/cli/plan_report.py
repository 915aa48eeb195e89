"""A plan as text and as a JSON document."""

from collections.abc import Mapping, Sequence
from typing import Any

from phema_cli.cli import reachable, render
from phema_cli.cli.plan_choice import Report, Sizes
from phema_cli.cli.plan_request import PlanRequest
from phema_cli.errors import InputError
from phema_cli.profiles import gamma_from_sigma_rel
from phema_cli.snapshots import Finding
from phema_cli.solver import Figures
from phema_cli.solver.assumptions import WALK
from phema_cli.solver.planning import Plan

#: sigma_rel of the targets in the table.
_SHOWN = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
#: bytes that the tracker's average of a parameter takes in memory, and what it packs by.
_AVERAGE_BYTES, _PACKING_BYTES = 6, 36
#: packed snapshots whose worst error is below this part of the plan's are proposed.
_PROPOSED = 0.9


def document(report: Report, asked: PlanRequest) -> dict[str, Any]:
    """The content of ``--json``."""
    plan, aim, sizes = report.plan, report.aim, report.sizes
    return {
        "steps": aim.steps,
        "dtype": sizes.dtype.label,
        "parameters": sizes.parameters,
        "assumed": {"schedule": asked.schedule, "like": asked.like},
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


def show(report: Report, asked: PlanRequest, *, quiet: bool) -> None:
    """Print what to store, what it costs and reaches, and the lines for the training loop."""
    if asked.schedule not in {None, WALK}:
        error = InputError(
            "a schedule does not say how far the weights move, so errors may be off by a factor "
            "of 2",
            remedy="pass --like instead where there are snapshots of an earlier run",
        )
        render.findings([Finding("notice", error)], stderr=True, quiet=quiet)
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
    _show_figures(report.reach, measured=asked.like is not None)
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
    rms = ["expected rms"] if measured else []
    names = ["verdict", "expected error", *rms, "sigma error", "profile error"]
    columns = [
        ("sigma_rel", [f"{sigma:.2f}" for sigma in _SHOWN]),
        ("gamma", [f"{gamma_from_sigma_rel(sigma):.4g}" for sigma in _SHOWN]),
        *render.figure_columns([reach[sigma] for sigma in _SHOWN], names),
    ]
    out = render.console()
    render.show(columns, out, right=[head for head, _ in columns])
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
