"""`python -m jaxtl.train` that knows the network `small`, and saves after every epoch."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_network import SMALL

from jaxtl import cli, train
from jaxtl.models import REGISTRY
from jaxtl.training import saving

if __name__ == "__main__":
    REGISTRY["small"] = SMALL
    saving._SECONDS_BETWEEN_CHECKPOINTS = 0
    cli.run(train.main)
