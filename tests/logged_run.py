"""Run directories that hold a config, metadata and a log, and no network."""

from jaxtl.config import Config
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import MetricsLog

PHASE = {"name": "head", "train": {"head/.*": 1.0}, "epochs": 2}


def logged_run(path, lr, accuracies, val="same", **metrics):
    """A run with these validation accuracies, epoch by epoch."""
    directory = RunDirectory(path)
    path.mkdir()
    data = {"train": {"images": 50, "sha256": "t"}, "val": {"images": 100, "sha256": val}}
    metadata = RunMetadata.model_validate({"classes": ["a", "b"], "data": data})
    directory.begin(Config.model_validate({"phases": ({**PHASE, "lr": lr},)}), metadata)
    log = MetricsLog(directory.metrics, directory.tensorboard, until=0)
    for epoch, accuracy in enumerate(accuracies, start=1):
        speed = {"images_per_second": 100.0 * epoch}
        log.write("head", epoch, epoch, "train", {"loss": 1.0, "accuracy": 0.5, **speed})
        log.write("head", epoch, epoch, "val", {"loss": 0.25, "accuracy": accuracy, **metrics})
    log.close()
    return path
