"""A whole run in this process, on eight simulated devices: frozen is frozen, and patience ends."""

import numpy as np
import pytest
from rich.console import Console

from jaxtl.config import Config
from jaxtl.errors import UserError
from jaxtl.models import build, split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.training import loop
from jaxtl.training.setup import open_data, train
from jaxtl.training.trainable import select_trainable

MODEL = {"width": 0.35, "image_size": 32, "weights": None, "dropout": 0.2}
RULES = {"head/.*": 1.0, "(top|block_(14|16))/.*": 0.5}  # block_15 is frozen between trained ones


def settings(*phases, **sections):
    return Config.model_validate(
        {
            "model": MODEL,
            "data": {"source": "digits", "batch_size": 256},
            "phases": tuple({"name": f"p{i}", "epochs": 1, **p} for i, p in enumerate(phases)),
            **sections,
        }
    )


def run(config, workdir):
    train(config, open_data(config), workdir, Console(quiet=True))
    directory = RunDirectory(workdir)
    return directory, Checkpoints(directory.checkpoints, read_only=True)


@pytest.mark.slow
def test_what_is_frozen_keeps_its_bits_through_decay_clipping_and_momentum(tmp_path):
    config = settings(
        {
            "train": RULES,
            "epochs": 2,
            "optimizer": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "batch_norm": "train",
            "restore_best": False,
        },
        augment={"zoom": 0.1, "horizontal_flip": True},
    )
    _, checkpoints = run(config, tmp_path / "run")
    network = build("mobilenet_v2", num_classes=10, width=0.35)
    like = split(network)[1]
    before = checkpoints.initial(like)
    after = checkpoints.variables(checkpoints.newest().step, like)
    changing = select_trainable(network, RULES, "train").variables
    assert {path.partition("/")[0] for path in changing} == {"head", "top", "block_14", "block_16"}
    for path in like:
        same = np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()
        assert same == (path not in changing), path


@pytest.mark.slow
def test_patience_ends_a_phase_and_its_best_parameters_go_on(tmp_path):
    """A rate of 1e-12 changes no prediction, so nothing gets better than the first epochs."""
    config = settings(
        {"train": {"head/.*": 1.0}, "epochs": 2, "lr": 1e-3},
        {"train": {"head/.*": 1.0}, "epochs": 9, "lr": 1e-12, "patience": 2},
    )
    directory, checkpoints = run(config, tmp_path / "run")
    lines = [line for line in read_metrics(directory.metrics) if line["split"] == "val"]
    second = [line for line in lines if line["phase"] == "p1"]
    best = max(second, key=lambda line: (line["accuracy"], -line["loss"]))
    assert len(second) < 9
    newest = checkpoints.newest()
    assert newest.stale == 2
    assert newest.best_step == best["step"]
    result = directory.metadata().result
    assert result["accuracy"] == best["accuracy"]
    assert result["loss"] == pytest.approx(best["loss"], rel=1e-6)


@pytest.mark.slow
def test_how_often_checkpoints_are_written_changes_no_result(tmp_path, monkeypatch):
    """The best epoch of the second phase is not its last, and without a checkpoint of its own it
    has to be remembered."""
    config = settings(
        {"train": {"head/.*": 1.0}, "epochs": 2, "lr": 1e-3},
        {"train": {"head/.*": 1.0}, "epochs": 9, "lr": 1e-12, "patience": 2},
    )
    like = split(build("mobilenet_v2", num_classes=10, width=0.35))[1]
    ended = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKPOINTS", seconds)
        directory, checkpoints = run(config, tmp_path / str(seconds))
        newest = checkpoints.newest()
        assert newest.best_step < newest.step
        kept = [checkpoints.variables(step, like) for step in (newest.best_step, newest.step)]
        bits = [{p: np.asarray(value).tobytes() for p, value in v.items()} for v in kept]
        ended.append((newest, bits, directory.metadata().result))
    assert ended[0] == ended[1]


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_and_says_what_to_do(tmp_path):
    config = settings({"train": {".*": 1.0}, "optimizer": "sgd", "lr": 1e30})
    with pytest.raises(UserError, match=r"the training loss is .* lower learning rate"):
        run(config, tmp_path / "run")
