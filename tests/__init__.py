"""The tests, whose process has one thread for its arithmetic, as the commands that they call have.

Threads that share processors with other tests wait for each other ten times as long as they work.
"""

import os

from phema_cli.cli.process import load_numpy

os.environ["OMP_NUM_THREADS"] = "1"
load_numpy()
