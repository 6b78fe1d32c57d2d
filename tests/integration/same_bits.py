"""Whether two runs ended with the same bits."""

import json

import numpy as np
import orbax.checkpoint as ocp
from workplace import measurements


def saved(run):
    """The folders of the newest checkpoint of a run and of its best one, with their progress."""
    files = (run / "checkpoints" / "steps").glob("*/progress/metadata")
    found = [(json.loads(file.read_text())["progress"], file.parents[1]) for file in files]
    # Which others there are depends on how long epochs took.
    last = max(progress["step"] for progress, _ in found)
    ended = {
        progress["step"]: (progress, folder) for progress, folder in found if not progress["batch"]
    }
    return [ended[last], ended[ended[last][0]["best_step"]]]


def arrays(run):
    """Every array of the variables that a run began with and of these checkpoints, as Orbax reads
    them."""
    folders = [("initial", run / "checkpoints" / "initial")]
    for progress, folder in saved(run):
        folders += [
            ((progress["step"], item), folder / item) for item in ("variables", "optimizer")
        ]
    with ocp.StandardCheckpointer() as reader:
        return {
            (place, name): np.asarray(value)
            for place, folder in folders
            for name, value in reader.restore(folder).items()
        }


def assert_same_bits(run, reference):
    assert measurements(run) == measurements(reference)
    progress = [one for one, _ in saved(run)]
    assert progress == [one for one, _ in saved(reference)]
    found, expected = arrays(run), arrays(reference)
    assert found.keys() == expected.keys()
    assert len(expected) > 300
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].tobytes() == value.tobytes(), key
