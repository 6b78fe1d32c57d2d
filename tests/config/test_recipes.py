"""Configs that follow from the number of images."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxtl.config import Counts, Model, everything, from_stage, recipe
from jaxtl.config.config_file import load, read
from jaxtl.config.recipes import size_of
from jaxtl.data.splits import OpenOnce
from jaxtl.errors import UserError
from jaxtl.sweeps.variations import load_sweep

MODEL = Model(image_size=96)


@pytest.fixture
def images(tmp_path):
    """A data set of three classes with 5, 10 and 15 images."""
    for number, count in enumerate((5, 10, 15)):
        folder = tmp_path / "images" / f"class{number}"
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = np.full((8, 8, 3), 10 * number + index, np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def counting(tmp_path):
    """A config that stores what it was given."""
    path = tmp_path / "counting.py"
    path.write_text(
        "from jaxtl.config import *\n"
        "def get_config(counts):\n"
        f"    open({str(tmp_path / 'counts.json')!r}, 'w').write(str(list(counts)))\n"
        "    return recipe(counts, Model(), from_stage='block_14')\n"
    )
    return path


@pytest.mark.parametrize("val_fraction", [0.2, 0.4])
def test_a_config_gets_the_counts_of_the_training_images(images, counting, tmp_path, val_fraction):
    flags = {"data.source": str(images), "data.val_fraction": str(val_fraction)}
    load(str(counting), flags, OpenOnce().count)
    assert json.loads((tmp_path / "counts.json").read_text()) == [30 * (1 - val_fraction), 3, 32]


def test_images_that_are_counted_are_looked_at_and_warned_of_once(images, caplog):
    (images / "class2" / "14.png").write_bytes(b"no image")
    opened = OpenOnce()
    flags = {"data.source": str(images), "data.on_bad_image": "skip"}
    config = load("auto.py", flags, opened.count)
    splits = opened(config.data.model_copy(update={"balanced": True}))
    assert (len(splits.train), len(splits.val)) == (23, 6)
    assert ["skipped 1 of 30" in record.message for record in caplog.records] == [True]


def test_flags_change_what_followed_from_the_counts(images):
    flags = {"data.source": str(images), "phases.finetune.epochs": "7", "model.name": "resnet50"}
    config = load("auto.py", flags, OpenOnce().count)
    assert (config.phases[1].epochs, config.model.name) == (7, "resnet50")


def test_images_that_cannot_be_counted_are_asked_for(images, counting, tmp_path):
    with pytest.raises(UserError, match=r"'data.source' is not set; add --cfg.data.source="):
        load(str(counting), {}, OpenOnce().count)
    with pytest.raises(UserError, match="missing"):
        load(str(counting), {"data.source": str(tmp_path / "missing")}, OpenOnce().count)
    with pytest.raises(UserError, match="needs images to count"):
        read(str(counting), {"data.source": str(images)})


def test_a_config_that_splits_otherwise_than_it_was_counted_is_refused(images, tmp_path):
    path = tmp_path / "split.py"
    path.write_text(
        "from jaxtl.config import *\n"
        "def get_config(counts):\n"
        "    data = Data(source=REQUIRED, val_fraction=0.5)\n"
        "    phases = (Phase(name='head', train=head_only(), epochs=1),)\n"
        "    return Config(data=data, phases=phases)\n"
    )
    with pytest.raises(UserError, match=r"with data.val_fraction=0.5: .* --cfg.data.val_fraction="):
        load(str(path), {"data.source": str(images)}, OpenOnce().count)


def test_a_sweep_cannot_change_what_was_counted(images, counting):
    flags = {"data.source": str(images)}
    with counting.open("a") as file:
        file.write(
            "def sweep():\n"
            "    yield {'data.fold': 1, 'data.folds': 5, 'data.balanced': True}\n"
            "    yield {'data.batch_size': 2}\n"
        )
    with pytest.raises(UserError, match=r"with data.batch_size=2: .* --cfg.data.batch_size="):
        load_sweep(str(counting), flags, OpenOnce().count)


def test_a_config_with_defaults_gets_no_counts(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from jaxtl.config import *\n"
        "def get_config(size=160):\n"
        "    phases = (Phase(name='head', train=head_only(), epochs=1),)\n"
        "    return Config(model=Model(image_size=size), phases=phases)\n"
    )
    assert load(str(path), {}, OpenOnce().count).model.image_size == 160


@pytest.mark.parametrize(
    ("a_class", "size"),
    [(1, "small"), (19.9, "small"), (20, "medium"), (199.9, "medium"), (200, "large")],
)
def test_the_size_follows_from_the_images_a_class(a_class, size):
    counts = Counts(round(10 * a_class), 10, 32)
    assert size_of(counts) == size
    of_size = recipe(counts, MODEL, from_stage="block_14", size=size)
    assert recipe(counts, MODEL, from_stage="block_14") == of_size


@pytest.mark.parametrize(
    ("images", "batch", "head_epochs", "small_epochs", "epochs"),
    [(8, 32, 200, 250, 250), (600, 64, 20, 50, 150), (20_000, 32, 1, 15, 15)],
)
def test_a_recipe_trains_a_number_of_steps(images, batch, head_epochs, small_epochs, epochs):
    for size in ("small", "medium", "large"):
        config = recipe(Counts(images, 2, batch), MODEL, from_stage="block_14", size=size)
        head, finetune = config.phases
        assert (config.data.batch_size, head.epochs) == (batch, head_epochs)
        assert finetune.epochs == (small_epochs if size == "small" else epochs)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_large_trains_everything_with_its_batchnorm_at_a_lower_rate(size):
    finetune = recipe(Counts(600, 2, 32), MODEL, from_stage="block_14", size=size).phases[1]
    settings = (finetune.train, finetune.batch_norm, finetune.lr)
    if size == "large":
        assert settings == (everything(), "train", 3e-4)
    else:
        assert settings == (from_stage("block_14", decay=1.0), "frozen", 1e-3)
