"""What a phase trains on: how many views, cached or not, and what a cache is found again by."""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import files_no_longer_than
from PIL import Image
from rich.console import Console
from step_setup import lively

from jaxtl.config import Config, Data, Phase
from jaxtl.data.loader import Loader
from jaxtl.data.sources import open_all
from jaxtl.data.splits import open_splits
from jaxtl.models import build, merge, output_spec, split
from jaxtl.training.feature_cache import (
    FrozenPass,
    Plan,
    has_parameters,
    open_feed,
    plan,
)
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.parallel import replicate

HEAD = {"head/.*": 1.0}
FEATURES = jax.ShapeDtypeStruct((1, 1280), np.float32)  # 5,120 bytes
IMAGES = 1000  # so that one view of each takes 5.12 MB
CHANGES = {"zoom": 0.2, "horizontal_flip": True}


def config(*, epochs=100, **sections):
    phase = Phase(name="p", train=HEAD, epochs=epochs)
    return Config.model_validate({"phases": (phase.model_dump(),), **sections})


def planned(row=FEATURES, *, runs=1, **settings):
    made = config(**settings)
    return plan(made, row, IMAGES, epochs=made.phases[0].epochs, runs=runs)


def decided(*arguments, **settings):
    found = planned(*arguments, **settings)
    return found.views, found.cached, found.resident


def test_images_that_nothing_changes_have_one_view():
    assert decided() == (1, True, True)
    assert decided(epochs=1) == (1, True, True)


@pytest.mark.parametrize(
    ("memory_gb", "views"),
    [(2.0, 8), (0.045, 8), (0.040, 7), (0.0306, 5), (0.0103, 2), (0.0102, 0), (0.0, 0)],
)
def test_changed_images_have_as_many_views_as_fit_but_no_more_than_eight(memory_gb, views):
    found = decided(augment=CHANGES, cache={"memory_gb": memory_gb})
    assert found == (views, views > 0, views > 0)


@pytest.mark.parametrize(("epochs", "views"), [(9, 8), (8, 0), (2, 0)])
def test_a_phase_that_would_not_see_a_view_twice_draws_new_ones(epochs, views):
    assert decided(augment=CHANGES, epochs=epochs)[0] == views


def test_activations_of_half_the_size_make_room_for_twice_the_views():
    cache = {"memory_gb": 0.0103, "dtype": "bfloat16"}
    assert decided(augment=CHANGES, cache=cache) == (4, True, True)


@pytest.mark.parametrize(
    ("views", "epochs", "runs", "cached"),
    [
        (1, 1, 1, True),  # the frozen stages run as often as without, and validation profits
        (2, 1, 1, False),
        (3, 3, 1, False),
        (3, 4, 1, True),
        (3, 3, 2, True),
        (50, 3, 16, False),
        (50, 3, 17, True),
    ],
)
def test_activations_are_kept_where_they_are_used_more_than_once(views, epochs, runs, cached):
    found = decided(views=views, augment=CHANGES, epochs=epochs, runs=runs)
    assert found[:2] == (views, cached)


def test_the_number_of_runs_never_changes_what_each_of_them_sees():
    for epochs in (1, 8, 9):
        views = {decided(augment=CHANGES, epochs=epochs, runs=runs)[0] for runs in (1, 2, 100)}
        assert len(views) == 1


@pytest.mark.parametrize(
    ("cache", "cached", "resident"),
    [
        ({"memory_gb": 0.0154}, True, True),  # three views take 15.36 MB
        ({"memory_gb": 0.0153}, True, False),
        ({"memory_gb": 0.0}, True, False),
        ({"memory_gb": 0.0, "disk_gb": 0.0154}, True, False),
        ({"disk_gb": 0.0153}, False, False),
        ({"disk_gb": 0.0}, False, False),
        ({"memory_gb": 0.0077, "disk_gb": 0.0077, "dtype": "bfloat16"}, True, True),
    ],
)
def test_a_cache_is_in_memory_or_on_disk_or_nowhere_and_the_views_stay(cache, cached, resident):
    assert decided(views=3, cache=cache) == (3, cached, resident)


@pytest.mark.parametrize(("memory_gb", "cached"), [(2.0, True), (0.001, False)])
def test_several_hosts_cache_what_fits_into_memory_and_say_so_otherwise(memory_gb, cached):
    wanted = config(views=3, cache={"memory_gb": memory_gb})
    found = plan(wanted, FEATURES, IMAGES, epochs=100, several_hosts=True)
    assert (found.views, found.cached, found.resident) == (3, cached, cached)
    assert (f"more than cache.memory_gb={memory_gb:g}, which hosts" in found.why) == (not cached)


def test_feature_maps_count_with_all_their_numbers():
    row = jax.ShapeDtypeStruct((1, 7, 7, 160), np.float32)  # 31.36 MB for each view of all
    assert decided(row, augment=CHANGES, cache={"memory_gb": 0.1}) == (3, True, True)


def test_no_view_is_seen_twice_with_zero_views():
    assert decided(views=0) == (0, False, False)
    assert decided(views=0, augment=CHANGES) == (0, False, False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["not augmented", "run once", "1,280 numbers", "5.1 MB in memory"]),
        ({"views": 3, "cache": {"memory_gb": 0.0}}, ["3 views", "15.4 MB on disk"]),
        ({"views": 1, "cache": {"disk_gb": 0.001}}, ["1 view an image", "cache.disk_gb=0.001"]),
        ({"views": 0}, ["a new view of each image every epoch", "run in every step"]),
        ({"augment": CHANGES, "epochs": 5}, ["a new view", "so few epochs"]),
        ({"augment": CHANGES, "cache": {"memory_gb": 0.01}}, ["10.2 MB", "cache.memory_gb=0.01"]),
        ({"views": 6, "epochs": 4}, ["6 views", "not cached", "4 epochs"]),
    ],
)
def test_the_plan_says_why(settings, words):
    why = planned(**settings).why
    assert [word for word in words if word not in why] == []


def test_validation_images_are_cached_where_they_fit():
    size = IMAGES * int(np.prod(FEATURES.shape)) * 4
    for cache, beside, cached, resident in (
        ({}, 0, True, True),
        ({"memory_gb": 0.005}, 0, True, False),
        ({"disk_gb": 0.005}, 0, False, False),
        ({"disk_gb": 1.0}, int(1e9) - size, True, True),
        ({"disk_gb": 1.0}, int(1e9) - size + 1, False, False),
    ):
        wanted = config(augment=CHANGES, cache=cache)
        found = plan(wanted, FEATURES, IMAGES, epochs=1, views=1, beside=beside)
        assert (found.views, found.cached, found.resident) == (1, cached, resident)


def test_a_frontier_with_nothing_to_run_before_it_has_no_work():
    network = build("mobilenet_v2", num_classes=3, width=0.35)
    assert [has_parameters(network, stage) for stage in ("stem", "block_0", "head")] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_is_what_the_frozen_stages_return_for_an_image(dtype):
    network = build("mobilenet_v2", num_classes=3, width=0.35, dtype=dtype)
    for stage, size in (("block_4", 96), ("head", 32)):
        spec = output_spec(network, size, stage)
        run = jax.jit(lambda image, stage=stage: network(image, stop=stage))
        row = run(np.zeros((1, size, size, 3), np.uint8))
        assert (spec.shape, spec.dtype) == (row.shape, row.dtype)


# The cache itself, on images in a folder and two stages of a small network.

SIZE, CLASSES = 32, 3
STAGE = "block_2"


def write(folder, count=7):
    rng = np.random.default_rng(0)
    for index in range(count * CLASSES):
        path = (
            folder / "abc"[index % CLASSES] / f"{index:02}.bmp"
        )  # the same size whatever it shows
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write(tmp_path_factory.mktemp("images"))


@functools.cache
def network(dtype="float32"):
    return build("mobilenet_v2", num_classes=CLASSES, width=0.35, dtype=dtype)


@functools.cache
def variables():
    return lively(split(network())[1])


def frozen_pass(
    folder, *, views=2, stage=STAGE, changed=None, devices=8, source=None, shuffle=True, **settings
):
    """The pass of a config; `changed` are variables in place of the usual ones."""
    made = config(**{"model": {"width": 0.35, "image_size": SIZE}, **settings})
    return FrozenPass(
        config=made,
        network=network(made.dtype),
        variables=replicate(variables() | (changed or {}), jax.devices()[:devices]),
        loader=Loader(
            source or open_all(str(folder)),
            image_size=made.model.image_size,
            resize=made.data.resize,
            batch_size=made.data.batch_size,
            seed=made.seed,
            shuffle=shuffle,
            memory_bytes=0,
        ),
        stage=stage,
        views=views,
        augmentation=made.augment,
        devices=jax.devices()[:devices],
    )


def made_from(folder, **changes):
    return frozen_pass(folder, **changes).metadata


def nudged(path):
    return {path: variables()[path] + 1e-6}


def of_model(**changes):
    return {"model": {"width": 0.35, "image_size": SIZE, **changes}}


OTHER = {
    "a weight left of the frontier": {"changed": nudged("block_1/depthwise/kernel")},
    "a statistic left of the frontier": {"changed": nudged("stem/bn/mean")},
    "the frontier": {"stage": "block_3"},
    "the size of images": of_model(image_size=48),
    "how they are resized": {"data": {"resize": "crop"}},
    "the augmentation": {"augment": CHANGES},
    "the number of views": {"views": 3},
    "the type of the network": {"dtype": "bfloat16"},
    "the type of what is kept": {"cache": {"dtype": "bfloat16"}},
}


@pytest.mark.parametrize("what", OTHER)
def test_another_cache_is_made_for_another(what, images):
    assert made_from(images, **OTHER[what]) != made_from(images)


def test_another_cache_is_made_for_views_that_are_drawn_or_changed_otherwise(images):
    found = [
        made_from(images, augment=augment, data={"seed": seed})
        for augment, seed in (
            (CHANGES, 0),
            (CHANGES, 1),
            ({**CHANGES, "zoom": 0.3}, 0),
            ({"horizontal_flip": True}, 0),
        )
    ]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


SAME = {
    "the run's seed": {"seed": 5},
    "the batch size": {"data": {"batch_size": 8}},
    "the order": {"shuffle": False},
    "the head": {"changed": nudged("head/kernel")},
    "a weight right of the frontier": {"changed": nudged("block_2/project/kernel")},
    "a statistic right of the frontier": {"changed": nudged("top/bn/var")},
    "dropout": of_model(dropout=0.7),
    "the number of devices": {"devices": 2},
    "the seed of views that change nothing": {"data": {"seed": 3}},
    "where it lies": {"cache": {"memory_gb": 0.0, "disk_gb": 1.0}},
    "the length of a phase": {"epochs": 3},
}


@pytest.mark.parametrize("what", SAME)
def test_the_same_cache_is_found_whatever_changes_in(what, images):
    assert made_from(images, **SAME[what]) == made_from(images)


def test_another_cache_is_made_for_an_image_that_changed_in_place(tmp_path):
    folder = write(tmp_path / "images")
    image = folder / "a" / "03.bmp"
    before = made_from(folder)
    size = image.stat().st_size
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(image)
    assert image.stat().st_size == size
    assert made_from(folder) != before


def test_the_same_cache_is_found_for_images_that_were_touched_or_moved_but_not_for_more(tmp_path):
    folder = write(tmp_path / "images")
    before = made_from(folder)
    os.utime(folder / "a" / "03.bmp", (time.time() + 5,) * 2)
    assert made_from(folder) == before
    shutil.copytree(folder, tmp_path / "copy")
    assert made_from(tmp_path / "copy") == before
    shutil.copy(folder / "a" / "03.bmp", folder / "a" / "99.bmp")
    assert made_from(folder) != before


def test_another_cache_is_made_for_another_split_of_the_same_images(images):
    parts = [
        open_splits(Data(source=str(images), val_fraction=0.3, seed=seed))[side]
        for seed, side in ((0, 0), (0, 1), (1, 0))
    ]
    train, val, other = (made_from(images, source=part) for part in parts)
    assert train != val
    assert train != other
    assert train == made_from(images, source=parts[0])


def opened(work, store, *, resident=True, stop=lambda: False):
    """The feed of a pass, and what the terminal said."""
    out = io.StringIO()
    how = Plan(views=work.views, cached=True, resident=resident, why="")
    feed = open_feed(how, work, store, Console(file=out, width=300), stop)
    return feed, out.getvalue()


@pytest.mark.parametrize("devices", [1, 8])
def test_the_views_of_an_image_lie_side_by_side_in_the_order_of_the_source(
    images, tmp_path, devices
):
    work = frozen_pass(images, views=3, devices=devices)
    feed, _ = opened(work, FeatureStore(tmp_path, 1e9))
    (batch,) = work.loader.once_through(len(work.loader)).epoch(0)
    expected = merge(split(network())[0], variables())(batch.inputs, stop=STAGE)
    assert feed.rows.shape == (3 * len(work.loader), *expected.shape[1:])
    for view in range(3):  # without augmentation they are all the same
        np.testing.assert_allclose(feed.rows[view::3], expected, rtol=1e-4, atol=1e-4)


def test_each_view_is_another_with_augmentation(images, tmp_path):
    feed, _ = opened(frozen_pass(images, views=3, augment=CHANGES), FeatureStore(tmp_path, 1e9))
    one, two, three = (feed.rows[view::3] for view in range(3))
    for a, b in ((one, two), (one, three), (two, three)):
        apart = np.abs(a - b).reshape(len(a), -1).max(axis=1)
        assert (apart > 1e-3).mean() > 0.8  # a flip may come out the same


@pytest.mark.parametrize("resident", [True, False])
def test_a_batch_holds_the_view_that_its_loader_names(images, tmp_path, resident):
    work = frozen_pass(images, views=3, augment=CHANGES, data={"batch_size": 8})
    feed, _ = opened(work, FeatureStore(tmp_path, 1e9), resident=resident)
    assert (feed.table is not None) == resident
    named = list(work.loader.rows(4, 1, views=3))
    batches = list(feed.epoch(4, 1))
    assert len(batches) == len(named) == 2
    for batch, rows in zip(batches, named, strict=True):
        places = rows.indices * 3 + rows.views
        inputs = np.asarray(feed.table)[batch.inputs] if resident else batch.inputs
        np.testing.assert_array_equal(inputs[rows.valid], feed.rows[places][rows.valid])
        for found, expected in zip(batch[1:], rows[1:], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_activations_are_kept_in_bfloat16_to_its_precision(images, tmp_path):
    store = FeatureStore(tmp_path, 1e9)
    exact, _ = opened(frozen_pass(images), store)
    half, _ = opened(frozen_pass(images, cache={"dtype": "bfloat16"}), store)
    assert half.rows.dtype == jnp.bfloat16
    assert half.rows.nbytes * 2 == exact.rows.nbytes
    assert half.dtype == np.float32  # what training computes with
    np.testing.assert_allclose(half.rows.astype(np.float32), exact.rows, rtol=2**-8)


def test_what_was_made_is_found_and_not_made_again(images, tmp_path):
    store = FeatureStore(tmp_path, 1e9)
    made, _ = opened(frozen_pass(images), store)

    class Unreadable(type(made.loader.source)):
        def __getitem__(self, index):
            pytest.fail("an image was read")

    source = made.loader.source
    blind = Unreadable(source.root, source.paths, source.labels, source.classes)
    found, _ = opened(frozen_pass(images, source=blind, seed=3), store)
    assert found.rows.tobytes() == made.rows.tobytes()
    assert len(list(tmp_path.glob("*/"))) == 1


def done(store):
    """How many rows of the only array are known to be on disk."""
    return sum(json.loads(about.read_text())["done"] for about in store.rglob("about.json"))


def stored(store):
    """The bytes of the only array."""
    return b"".join(file.read_bytes() for file in store.rglob("rows.bin"))


def watched(images, seen):
    """The images, each of which tells `seen` its index when it is read for a pass."""
    source = frozen_pass(images).loader.source
    known = source.fingerprint  # reads all of them

    class Watched(type(source)):
        fingerprint = known

        def __getitem__(self, index):
            seen(index)
            return super().__getitem__(index)

    return Watched(source.root, source.paths, source.labels, source.classes)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """90 images: on one device three batches, of which the last one is short."""
    return write(tmp_path_factory.mktemp("many"), count=30)


@pytest.fixture(scope="module")
def rows_of_many(many, tmp_path_factory):
    """The rows of a pass over them that nothing interrupts."""
    folder = tmp_path_factory.mktemp("store")
    opened(frozen_pass(many, devices=1), FeatureStore(folder, 1e9))
    return stored(folder)


@pytest.mark.parametrize(("devices", "first"), [(1, 32), (2, 0)])
def test_a_pass_that_was_stopped_goes_on_at_the_batch_of_the_first_missing_image(
    many, rows_of_many, tmp_path, devices, first
):
    store, read = FeatureStore(tmp_path, 1e9), []
    work = frozen_pass(many, devices=1)
    assert opened(work, store, stop=lambda: len(stored(tmp_path)) > 0)[0] is None
    assert done(tmp_path) == 64  # two views of each image of the first batch
    again = frozen_pass(many, devices=devices, source=watched(many, read.append))
    feed, said = opened(again, store)
    assert said == "continuing a pass that has 32 of 90 images\n"
    assert sorted(read) == list(range(first, 90))
    assert feed.rows.tobytes() == stored(tmp_path) == rows_of_many


def test_a_pass_that_is_asked_to_stop_does_not_wait_for_the_images_of_its_batch(many, tmp_path):
    stop, read = threading.Event(), []

    def seen(index):
        read.append(index)
        if index >= 5:
            stop.set()
            time.sleep(0.05)

    work = frozen_pass(many, devices=1, source=watched(many, seen))
    assert opened(work, FeatureStore(tmp_path, 1e9), stop=stop.is_set)[0] is None
    assert len(read) < 20


def test_a_pass_asks_between_the_views_of_a_batch_whether_to_stop(images, tmp_path):
    asked = []
    work = frozen_pass(images, views=9)
    opened(work, FeatureStore(tmp_path, 1e9), stop=lambda: bool(asked.append(len(asked))))
    assert len(asked) > len(work.loader) + 9


def test_an_image_that_cannot_be_read_is_named_and_no_rows_are_found(tmp_path):
    folder, store = write(tmp_path / "images"), FeatureStore(tmp_path / "store", 1e9)
    (folder / "b" / "04.bmp").write_bytes(b"BM")
    work = frozen_pass(folder)
    with pytest.raises(Exception, match=r"b/04\.bmp: "):
        opened(work, store)
    assert store.find(work.metadata) is None


def test_images_take_the_place_of_a_cache_that_vanishes_while_it_is_filled(many, tmp_path):
    folder = tmp_path / "store"

    def asked():
        if stored(folder):
            shutil.rmtree(folder)
        return False

    feed, said = opened(frozen_pass(many, devices=1), FeatureStore(folder, 1e9), stop=asked)
    assert re.fullmatch(rf"not cached after all: {folder}/\w+: No such file or directory\n", said)
    assert feed.rows is None
    assert next(feed.epoch(0)).inputs.shape == (32, SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def lots(tmp_path_factory):
    """300 images, for passes in processes of their own."""
    return write(tmp_path_factory.mktemp("lots"), count=100)


@pytest.fixture(scope="module")
def rows_of_lots(lots, tmp_path_factory):
    """The rows of a pass over them in a process that nothing interrupts."""
    folder = tmp_path_factory.mktemp("store")
    with process_over(lots, folder, folder / "read") as process:
        assert process.wait(120) == 0
    return stored(folder)


@contextlib.contextmanager
def process_over(images, store, read, *, seconds=0, size=SIZE, memory=0, stderr=None):
    """A process that makes the rows of images, see `pass_process.py`."""
    script = Path(__file__).with_name("pass_process.py")
    arguments = map(str, (images, store, read, seconds, size, memory))
    command = [sys.executable, "-u", str(script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within a minute")


def indices(read):
    return sorted(map(int, read.read_text().split()))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_process_that_is_stopped_in_a_pass_leaves_only_the_rest_to_the_next_one(
    lots, rows_of_lots, tmp_path, how, code
):
    store, read = tmp_path / "store", tmp_path / "read"
    with process_over(lots, store, tmp_path / "first", seconds=0.05) as process:
        until(lambda: done(store) > 0)
        process.send_signal(how)
        assert process.wait(60) == code
    there = done(store) // 2
    assert 0 < there < 300
    with process_over(lots, store, read) as process:
        said, _ = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, f"continuing a pass that has {there} of 300 images\n")
    assert indices(read) == list(range(there, 300))
    assert stored(store) == rows_of_lots


@pytest.mark.slow
def test_processes_that_need_the_same_rows_wait_for_the_first_and_take_over_from_it(
    lots, rows_of_lots, tmp_path
):
    store, waits = tmp_path / "store", "another process is filling the cache; waiting until it is "
    with (
        process_over(lots, store, tmp_path / "first", seconds=0.4) as first,
        contextlib.ExitStack() as stack,
    ):
        until(lambda: done(store) > 0)
        second, third = (
            stack.enter_context(process_over(lots, store, tmp_path / name))
            for name in ("second", "third")
        )
        assert [waiter.stdout.readline() for waiter in (second, third)] == [f"{waits}done\n"] * 2
        second.send_signal(signal.SIGINT)
        assert second.wait(30) == 130
        assert first.poll() is None  # it did not wait for that one
        first.kill()
        first.wait()
        there = done(store) // 2
        said, _ = third.communicate(timeout=120)
    assert said == f"continuing a pass that has {there} of 300 images\n"
    assert not (tmp_path / "second").exists()
    assert indices(tmp_path / "third") == list(range(there, 300))
    assert stored(store) == rows_of_lots


@pytest.mark.slow
def test_a_pass_that_finds_too_little_memory_goes_on_with_fewer_images_at_a_time(tmp_path):
    few = write(tmp_path / "images", count=4)
    rows = []
    for memory in (10**9, 0):
        store = tmp_path / f"store-{memory}"
        with process_over(few, store, tmp_path / "read", size=1024, memory=memory) as process:
            said, _ = process.communicate(timeout=200)
        assert process.returncode == 0
        assert ("out of memory: the frozen stages go on with " in said) == (memory > 0)
        rows.append(np.frombuffer(stored(store), np.float32))
    np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_pass_that_one_image_takes_too_much_memory_for_is_an_error_of_one_line(tmp_path):
    few = write(tmp_path / "images", count=1)
    limits = {"size": 4096, "memory": 6 * 10**8, "stderr": subprocess.PIPE}
    with process_over(few, tmp_path / "store", tmp_path / "read", **limits) as process:
        said, errors = process.communicate(timeout=200)
    assert said.splitlines()[-1] == "out of memory: the frozen stages go on with 1 image a device"
    assert errors.splitlines()[-1].startswith("error: the memory is not enough for the frozen")
    assert (process.returncode, done(tmp_path / "store")) == (1, 0)


def no_right(folder):
    folder.write_text("")  # no permission stops root, but a file in place of the folder does
    return contextlib.nullcontext()


def no_room(folder):
    return files_no_longer_than(100_000)


@pytest.mark.parametrize(
    ("failing", "words"),
    [(no_right, "not cached after all: {}: "), (no_room, "not cached after all: File too large")],
)
def test_images_take_the_place_of_a_cache_that_cannot_be_written(images, tmp_path, failing, words):
    folder = tmp_path / "store"
    work = frozen_pass(images, views=3)
    with failing(folder):
        feed, said = opened(work, FeatureStore(folder, 1e9))
    assert said.startswith(words.format(folder))
    assert len(said.splitlines()) == 1
    assert not list(folder.glob("*/"))
    assert (feed.rows, feed.table, feed.stage, feed.dtype) == (None, None, None, None)
    assert feed.views == 3
    assert next(feed.epoch(0)).inputs.shape == (32, SIZE, SIZE, 3)
