"""A frozen pass in a process of its own: pass_process.py IMAGES STORE READ SECONDS SIZE BYTES.

It writes the index of each image that it reads to the file READ, SECONDS after it is asked for it.
Images have SIZE pixels a side, and the pass gets BYTES of memory; with 0 all there is.
"""

import resource
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from test_feature_cache import frozen_pass, of_model

from jaxtl.console import console
from jaxtl.errors import UserError
from jaxtl.training.feature_cache import stored_outputs
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.stopping import stop_signals

IMAGES, STORE, READ = map(Path, sys.argv[1:4])
SECONDS, SIZE, BYTES = map(float, sys.argv[4:])
FILES = frozen_pass(IMAGES).loader.source


class Watched(type(FILES)):
    """Images that are read slowly, and noted."""

    def __getitem__(self, index):
        time.sleep(SECONDS)
        with READ.open("a") as file:
            file.write(f"{index}\n")
        return super().__getitem__(index)


def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    source = Watched(FILES.root, FILES.paths, FILES.labels, FILES.classes)
    changes = of_model(image_size=int(SIZE))
    work = frozen_pass(IMAGES, devices=1, stage="block_1", source=source, **changes)
    if BYTES:
        limit_memory()
    try:
        with stop_signals() as stop:
            rows = stored_outputs(work, FeatureStore(STORE, 1e9), console(), stop.is_set)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.exit(130 if rows is None else 0)
