"""One rank of a synthesis: ``torchrun --nproc-per-node N -m benchmarks.rank FOLDER OUT``.

Rank 0 prints the seconds that the synthesis takes, planned and with everything imported.
"""

from __future__ import annotations

import sys
import time

import torch.distributed as dist

from phema_cli.snapshots import Config, scan
from phema_cli.synthesis import Request, make_recipe
from phema_cli.synthesis.execute import execute
from phema_cli.system.ranks import Ranks


def main() -> None:
    """Plan on rank 0, and take the time of all of them."""
    folder, out = sys.argv[1:]
    dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    recipe = None
    if ranks.leads:
        request = Request(
            gamma=(7.0,), output=out, jobs=1, overwrite=True, config=Config(trust_tags=True)
        )
        recipe, _ = make_recipe(scan([folder], request.config), request)
    dist.barrier()
    start = time.perf_counter()
    execute(recipe, ranks=ranks)
    if ranks.leads:
        print(time.perf_counter() - start)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
