"""What a training step costs: operations by XLA's count, and bytes that go to the devices."""

import jax
import numpy as np
import pytest
from step_setup import BATCH, CLASSES, HEAD_ONLY, MIDDLE, Setup, make_batch, operations

from jaxtl.data.loader import Loader
from jaxtl.data.sources import ArraySource
from jaxtl.training import inference
from jaxtl.training.feature_cache import Feed
from jaxtl.training.inference import make_predict_step
from jaxtl.training.parallel import replicate, shard

FEATURES = 1280
UP_FROM_14 = {"(head|top|block_1[4-6])/.*": 1.0}
ROWS = np.arange(BATCH, dtype=np.int32)


@pytest.fixture(autouse=True)
def whole_batches(monkeypatch):
    """XLA counts the body of a loop once, so no batch goes through in pieces here."""
    monkeypatch.setattr(inference, "_PIXELS_AT_A_TIME", 10**9)


def forward(setup, inputs, **options):
    """The operations of inference on one device."""
    step = make_predict_step(setup.graph, devices=setup.devices, **options)
    inputs = shard(inputs, setup.devices)
    return operations(step.lower(setup.variables, None, inputs).compile())


@pytest.mark.parametrize("side", [32, pytest.param(96, marks=pytest.mark.slow)])
def test_a_head_only_step_on_images_needs_no_more_operations_than_a_forward_pass(side):
    setup = Setup(HEAD_ONLY, 1, weight_decay=0.1, clip_norm=1.0, dropout=0.2)
    batch = make_batch(side=side)
    step = operations(setup.compiled(batch))
    assert step <= 1.05 * forward(setup, batch.inputs)


def test_a_head_only_step_on_cached_features_costs_a_few_products_with_the_head():
    """Twice B x F x C for the logits and again for the kernel's gradient; there is no third
    product, as nothing left of the head is differentiated. The rest is Adam and the loss."""
    setup = Setup(HEAD_ONLY, 1, cached=np.float32)
    table = replicate(np.ones((50, FEATURES), np.float32), setup.devices)
    needed = operations(setup.compiled(make_batch()._replace(inputs=ROWS), table=table))
    products = 4 * BATCH * FEATURES * CLASSES
    adam = 20 * FEATURES * CLASSES
    assert products < needed < products + adam
    assert needed < 6 * BATCH * FEATURES * CLASSES
    assert needed < forward(setup, make_batch().inputs) / 50


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_a_step_on_cached_activations_costs_three_passes_of_the_stages_that_train(batch_norm):
    setup = Setup(UP_FROM_14, 1, cached=np.float32, batch_norm=batch_norm)
    batch = make_batch(side=96)
    activations = setup.features(batch.inputs)
    assert activations.shape == (BATCH, 3, 3, 56)
    table = replicate(activations, setup.devices)
    needed = operations(setup.compiled(batch._replace(inputs=ROWS), table=table))
    once = forward(setup, activations, start="block_14", cached=np.float32)
    assert 2 * once < needed < 3.2 * once


@pytest.mark.slow
def test_frozen_stages_right_of_the_frontier_are_not_differentiated():
    with_frozen = operations(Setup(MIDDLE, 1).compiled())
    all_trained = operations(Setup(UP_FROM_14, 1).compiled())
    assert with_frozen < all_trained


IMAGES, GLOBAL_BATCH = 150, 8  # 19 batches an epoch, the last one short


@pytest.fixture
def loader():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(IMAGES, dtype=np.int32) % CLASSES
    return Loader(
        ArraySource("noise", pixels, labels, tuple("abcdefg")),
        image_size=32,
        resize="stretch",
        batch_size=GLOBAL_BATCH,
        seed=0,
        shuffle=True,
        memory_bytes=1e9,
    )


def feeds(loader, devices):
    """The ways to feed a head: from the devices' memory, from disk, and with images."""
    rows = np.random.default_rng(0).normal(size=(2 * IMAGES, FEATURES)).astype(np.float32)
    cached = {"views": 2, "stage": "head", "dtype": np.float32, "rows": rows}
    return {
        "memory": Feed(loader, **cached, table=replicate(rows, devices)),
        "disk": Feed(loader, **cached),
        "images": Feed(loader, 2),
    }


@pytest.mark.parametrize("kind", ["memory", "disk", "images"])
def test_nothing_is_transferred_but_what_is_asked_for(loader, kind):
    """After an epoch that compiles, another runs where JAX refuses implicit transfers."""
    setup = Setup(HEAD_ONLY, 2, dropout=0.2, cached=None if kind == "images" else np.float32)
    feed = feeds(loader, setup.devices)[kind]

    def run(epoch, hyper):
        done = []
        for chunk in (shard(chunk, setup.devices, axis=1) for chunk in feed.chunks(epoch)):
            setup.state, sums = setup.step(setup.state, setup.fixed, feed.table, hyper, chunk)
            done.append(sums.images)
        return sum(int(n) for images in jax.device_get(done) for n in images)

    run(0, setup.hyper)
    on_host = jax.device_get(setup.hyper)
    with jax.transfer_guard("disallow"):
        assert run(1, setup.hyper) == IMAGES
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            run(2, on_host)


def sent(feed, devices):
    """The bytes of everything that goes to the devices in an epoch."""
    chunks = (shard(chunk, devices, axis=1) for chunk in feed.chunks(3))
    return sum(leaf.nbytes for chunk in chunks for leaf in jax.tree.leaves(chunk))


def test_an_epoch_on_what_the_devices_hold_sends_numbers_of_rows_and_no_activations(loader):
    devices = jax.devices()[:2]
    fed = feeds(loader, devices)
    padded = -(-IMAGES // GLOBAL_BATCH) * GLOBAL_BATCH
    about = 4 + 1 + 4 + 4  # label, valid, index, view
    assert sent(fed["memory"], devices) == padded * (4 + about)
    assert sent(fed["disk"], devices) == padded * (4 * FEATURES + about)
    assert sent(fed["images"], devices) == padded * (3 * 32 * 32 + about)
