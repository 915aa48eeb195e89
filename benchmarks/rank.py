"""One rank of a synthesis: ``torchrun --nproc-per-node N -m benchmarks.rank FOLDER OUT``.

Rank 0 prints the seconds that the synthesis takes, planned and with everything imported.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import torch.distributed as dist

from phema_cli.snapshots import scan
from phema_cli.synthesis import Request, plan
from phema_cli.synthesis.execute import execute
from phema_cli.synthesis.ranks import Team


def main() -> None:
    """Plan on rank 0, and take the time of all of them."""
    folder, out = sys.argv[1:]
    dist.init_process_group("gloo")
    team = Team(dist.get_rank(), dist.get_world_size())
    recipe = None
    if team.leads:
        recipe, _ = plan(scan([folder]), Request(gammas=(7.0,), output=out))
    recipe = team.share(recipe)
    if recipe is None:
        raise RuntimeError("nothing to do")
    team.share(None)
    start = time.perf_counter()
    execute(replace(recipe, jobs=1), overwrite=True, team=team)
    if team.leads:
        print(time.perf_counter() - start)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
