"""What can be asked of ``phema plan``."""

from dataclasses import dataclass

from phema_cli.options import option

#: snapshots of each gamma that a plan may have.
MOST_SNAPSHOTS = 1024
_RUN, _STORED, _SERVED = "Run", "Snapshots", "Targets"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A run, what to store of it, and the targets to plan for.

    The help of each option says what it holds. None, an empty tuple and 0 steps are left open;
    ``budget`` is in bytes. With ``keep`` nothing but the snapshots to remove is planned.
    """

    steps: int = option(
        "Length of the run: 400000 or 400k; with --like, as long by default.",
        default=0,
        group=_RUN,
        metavar="COUNT",
        common=True,
    )
    parameters: int | None = option(
        "Parameters of the model, for sizes: 280M, 1.2B.",
        group=_RUN,
        metavar="COUNT",
        common=True,
    )
    schedule: str | None = option(
        "Schedule of the learning rate: constant, cosine, cosine:end=0.1, linear, "
        "wsd:last=0.2, rsqrt:start=0.06; or walk, which --no-sample assumes.",
        group=_RUN,
        metavar="NAME",
        common=True,
    )
    like: str | None = option(
        "Snapshots of an earlier run of the same kind, to measure how weights move.",
        group=_RUN,
        metavar="PATH",
        common=True,
    )
    keep: int | None = option(
        "With --like: name the checkpoints of that run which may go at the least loss, but for N.",
        group=_RUN,
        metavar="N",
        type=int,
        least=2,
        variable="PHEMA_PLAN_KEEP",
    )
    gammas: tuple[float, ...] = option(
        "Gammas to store: 5,10; phema finds the best by default.",
        default=(),
        group=_STORED,
        metavar="LIST",
    )
    sigma_rels: tuple[float, ...] = option(
        "The same by sigma_rel.", default=(), group=_STORED, metavar="LIST"
    )
    snapshots: int | None = option(
        "Snapshots of each gamma; 64 by default.",
        group=_STORED,
        metavar="N",
        type=int,
        least=1,
        most=MOST_SNAPSHOTS,
    )
    every: int | None = option("Steps between snapshots.", group=_STORED, metavar="COUNT")
    dtype: str | None = option(
        "Type of the stored snapshots: float16 (the default), bf16, ...",
        group=_STORED,
        metavar="TYPE",
    )
    packing: int | None = option(
        "Bits of packed snapshots: 16, 8 or 4, as PowerEMA.save and phema pack write them.",
        group=_STORED,
        metavar="16|8|4",
        type=int,
    )
    budget: int | None = option(
        "Disk space for all snapshots, 200GB: phema finds the best gammas and number.",
        group=_STORED,
        metavar="SIZE",
        common=True,
    )
    range: tuple[float, float] = option(
        "Targets to plan for, by sigma_rel: least and largest.",
        default=(0.03, 0.2),
        group=_SERVED,
        metavar="LOW,HIGH",
    )
