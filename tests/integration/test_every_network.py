"""Every network trains from a frontier in its middle on, and what is frozen keeps its bits."""

import re

import jax
import numpy as np
import pytest
from rich.console import Console
from step_setup import lively
from workplace import write_images

from jaxtl.config import Config, from_stage
from jaxtl.models import REGISTRY, build, merge, split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.training.setup import open_data, plan_run, train
from jaxtl.weights.write import write_weights

pytestmark = pytest.mark.slow

# What trains, and the stages that this means; some lie behind a frozen one.
CASES = {
    "inception_v3": ({"(head|mixed_7(a|c))/.*": 1.0}, "head|mixed_7[ac]"),
    "mobilenet_v1": ({"(head|block_(11|13))/.*": 1.0}, "head|block_(11|13)"),
    "mobilenet_v2": ({"(head|top|block_(14|16))/.*": 1.0}, "head|top|block_(14|16)"),
    "resnet50": ({"(head|conv5_block(1|3))/.*": 1.0}, "head|conv5_block[13]"),
    "resnet101": (from_stage("conv4_block23", decay=0.5), "head|conv4_block23|conv5_block[1-3]"),
    "resnet152": ({"(head|conv4_block36|conv5_block2)/.*": 1.0}, "head|conv4_block36|conv5_block2"),
    "vgg16": (from_stage("block5_conv2", decay=0.5), "head|block5_conv[23]"),
    "vgg19": ({"(head|block5_conv(1|4))/.*": 1.0}, "head|block5_conv[14]"),
}


def test_every_network_is_here():
    assert CASES.keys() == REGISTRY.keys()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Nine images to train on, so that a batch of eight and one of one, and three others."""
    path = tmp_path_factory.mktemp("images")
    write_images(path / "train", each=3, seed=1)
    write_images(path / "val", each=1, seed=2)
    return path


def weights_of(name, width, folder):
    """Fresh parameters, but for MobileNets, in which the signal fades to nothing with them."""
    if not name.startswith("mobilenet"):
        return None
    graph, variables = split(build(name, num_classes=None, width=width))
    path = folder / "weights.h5"
    write_weights(merge(graph, lively(variables)), path)
    return str(path)


@pytest.mark.parametrize("name", CASES)
def test_what_is_frozen_keeps_its_bits_and_all_else_moves(name, images, tmp_path, monkeypatch):
    """With a new view every epoch the stages left of the frontier run in every step too."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    rules, trained = CASES[name]
    of_name = REGISTRY[name]
    width = min(of_name.widths)
    phase = {
        "name": "middle",
        "train": rules,
        "epochs": 1,
        "lr": 1e-3,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "batch_norm": "frozen" if name.startswith("vgg") else "train",
        "restore_best": False,
    }
    config = Config.model_validate(
        {
            "model": {
                "name": name,
                "width": width,
                "image_size": of_name.smallest,
                "weights": weights_of(name, width, tmp_path),
            },
            "data": {"source": str(images), "batch_size": 8},
            "augment": {"horizontal_flip": True},
            "views": 0,
            "phases": (phase,),
        }
    )
    train(config, open_data(config), tmp_path / "run", Console(quiet=True))
    run = RunDirectory(tmp_path / "run")
    assert run.config() == config.with_monitor("accuracy")
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    like = split(plan_run(config, 3)[0])[1]
    before = checkpoints.initial(like)
    after = checkpoints.variables(checkpoints.newest().number, like)
    for path in like:
        same = np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()
        moves = re.fullmatch(trained, path.partition("/")[0])
        assert same == (moves is None), path
