"""A plan as text and as a JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phema_cli.cli import reachable, render
from phema_cli.errors import UsageError
from phema_cli.request import GRID

if TYPE_CHECKING:
    from phema_cli.formats.base import DType
    from phema_cli.solver import Figures
    from phema_cli.solver.planning import Aim, Plan

#: what a file's header takes of it at most.
_HEADER = 1e-3
#: sigma_rel of the targets in the table.
_SHOWN = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
_AVERAGE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """What snapshots cost.

    Attributes:
        dtype: type that they are stored in.
        parameters: of the model, if they are known.
    """

    dtype: DType
    parameters: int | None

    @property
    def file_bytes(self) -> int | None:
        """Bytes of one snapshot, but for its header."""
        return None if self.parameters is None else self.dtype.size_bytes(self.parameters)

    def affordable(self, budget_bytes: int) -> int:
        """How many snapshots a budget holds.

        Raises:
            UsageError: nobody said how large the model is.
        """
        if self.file_bytes is None:
            raise UsageError("--budget needs the size of the model", remedy="pass --parameters")
        return int(budget_bytes / (self.file_bytes * (1 + _HEADER)))


def entry(plan: Plan, made: Sequence[Figures], aim: Aim, sizes: Sizes) -> dict[str, Any]:
    """A plan, what it reaches and costs, in a JSON document."""
    from phema_cli.profiles import sigma_rel_from_gamma
    from phema_cli.solver.planning import worst_error

    one = sizes.file_bytes
    return {
        "gammas": plan.gammas,
        "sigma_rels": [sigma_rel_from_gamma(g) for g in plan.gammas],
        "every": plan.every,
        "snapshots": len(plan.times),
        "files": plan.files,
        "file_bytes": one,
        "disk_bytes": None if one is None else one * plan.files,
        "worst_sigma_error": worst_error(plan, aim),
        "good": _widest(made, ("good",)),
        "good_or_fair": _widest(made, ("good", "fair")),
    }


def _widest(made: Sequence[Figures], verdicts: Sequence[str]) -> tuple[float, float] | None:
    """The widest range of targets of the grid that have one of the verdicts."""
    return max(reachable.spans(made, verdicts), key=lambda span: span[1] - span[0], default=None)


def document(
    aim: Aim,
    sizes: Sizes,
    known: Mapping[str, str | None],
    chosen: Mapping[str, Any],
    made: Sequence[Figures],
) -> dict[str, Any]:
    """The content of ``--json``."""
    return {
        "steps": aim.steps,
        "dtype": sizes.dtype.label,
        "parameters": sizes.parameters,
        "assumed": known,
        "range": [aim.low, aim.high],
        "method": "blue",
        "plan": chosen,
        "targets": reachable.entries(made),
    }


def show(chosen: Mapping[str, Any], sizes: Sizes, plan: Plan, aim: Aim) -> None:
    """What to store, what it costs, and the worst target."""
    out = render.console()
    gammas = _listed([f"{g:.6g}" for g in plan.gammas])
    sigmas = _listed([f"{s:.4f}" for s in chosen["sigma_rels"]])
    last = "" if plan.steps % plan.every == 0 else f" and at step {plan.steps}"
    cost = f"{plan.files} files in {sizes.dtype.label}"
    if sizes.parameters is not None:
        memory = render.size(_AVERAGE_BYTES * sizes.parameters * len(plan.gammas))
        one, disk = render.size(chosen["file_bytes"]), render.size(chosen["disk_bytes"])
        cost += f", {one} each, {disk} in all; {memory} of memory"
    worst = render.per_cent(chosen["worst_sigma_error"])
    out.print(f"[bold]Store[/]  gamma {gammas} (sigma_rel {sigmas})")
    out.print(f"       {chosen['snapshots']} snapshots of each, every {plan.every} steps{last}")
    out.print(f"[bold]Cost[/]   {cost}")
    out.print(f"[bold]Worst[/]  sigma_error {worst} from sigma_rel {aim.low:g} to {aim.high:g}")
    out.print()


def _listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def show_figures(made: Sequence[Figures], *, measured: bool) -> None:
    """Figures of a few targets."""
    from phema_cli.profiles import gamma_from_sigma_rel

    rms = ("expected_rms",) if measured else ()
    names = ("gamma", "verdict", "expected_error", *rms, "sigma_error", "profile_error")
    table = render.table("sigma_rel", *names, right=("sigma_rel", *names), gap=2)
    by_sigma = dict(zip(GRID, made, strict=True))
    for sigma in _SHOWN:
        f = by_sigma[sigma]
        table.add_row(
            f"{sigma:.2f}",
            f"{gamma_from_sigma_rel(sigma):.4g}",
            f"[{render.STYLES[f.verdict]}]{f.verdict}[/]",
            f"{f.expected_error:.2g}",
            *([f"{f.expected_rms or 0.0:.2g}"] if measured else []),
            "" if f.sigma_error is None else render.per_cent(f.sigma_error),
            f"{f.profile_error or 0.0:.2g}",
        )
    out = render.console()
    render.show(table, out)
    out.print()


def show_loop(plan: Plan, dtype: DType) -> None:
    """What to write into the training loop."""
    gammas = ", ".join(f"{g:.6g}" for g in plan.gammas) + ("," if len(plan.gammas) == 1 else "")
    due = f"step % {plan.every} == 0"
    due += "" if plan.steps % plan.every == 0 else f" or step == {plan.steps}"
    stored = "" if dtype.label == "float32" else f", dtype=torch.{dtype.label}"
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
        out.print(f"  {render.plain(line)}")
