"""A frozen pass in a process of its own: python -u pass_process.py IMAGES STORE READ SECONDS.

It writes the index of each image that it reads to the file READ, SECONDS after it is asked for it.
"""

import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from test_feature_cache import frozen_pass

from jaxtl.console import console
from jaxtl.training.feature_cache import stored_outputs
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.loop import stop_signals

IMAGES, STORE, READ, SECONDS = sys.argv[1:]
FILES = frozen_pass(Path(IMAGES)).loader.source


class Watched(type(FILES)):
    """Images that are read slowly, and noted."""

    def __getitem__(self, index):
        time.sleep(float(SECONDS))
        with Path(READ).open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


if __name__ == "__main__":
    source = Watched(FILES.root, FILES.paths, FILES.labels, FILES.classes)
    work = frozen_pass(Path(IMAGES), devices=1, source=source)
    with stop_signals() as stop:
        rows = stored_outputs(work, FeatureStore(Path(STORE), 1e9), console(), stop.is_set)
    sys.exit(130 if rows is None else 0)
