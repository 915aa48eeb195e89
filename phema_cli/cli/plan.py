"""``phema plan``: before training, which snapshots to store, what they will reach and cost."""

from dataclasses import fields

from phema_cli.cli import options, render
from phema_cli.cli.plan_request import PlanRequest
from phema_cli.errors import UsageError
from phema_cli.options import typed

#: options that count with --keep.
_KEEPING = {"like", "keep", "range"}


@options.command
def plan(
    *,
    asked: PlanRequest,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Plan a run: which snapshots to store, which targets they will reach, what they cost.

    phema chooses what you leave open so that the error of the worst target in --range is least.
    The figures are those that inspect will show, if the weights move as assumed.

    Examples:
      What is best within a budget:
        $ phema plan --like ckpts/ --steps 400k --budget 50GB

      The same without an earlier run:
        $ phema plan --steps 400k --parameters 280M --schedule cosine --budget 50GB

      What gammas 5 and 10 reach, stored every 10,000 steps:
        $ phema plan --like ckpts/ --steps 400k --gammas 5,10 --every 10k

      Which checkpoints of a run may go, when disk is short:
        $ phema plan --like ckpts/ --keep 4
    """
    from phema_cli.cli import plan_choice, plan_keep, plan_report

    if asked.keep is not None:
        if asked.like is None:
            raise UsageError("--keep needs a run", remedy="pass --like RUN")
        others = typed(asked, frozenset(f.name for f in fields(asked)) - _KEEPING)
        if others:
            raise UsageError("--keep plans nothing", remedy=f"leave {others[0]} out")
        plan_keep.show(asked.like, asked.keep, asked.range, json=json, quiet=quiet)
        return
    if asked.like is None and not asked.steps:
        raise UsageError("nothing says how long the run is", remedy="pass --steps or --like")
    report = plan_choice.chosen(asked, quiet=quiet)
    if json:
        render.document("plan", plan_report.document(report, asked))
    else:
        plan_report.show(report, asked, quiet=quiet)
