"""The training step: what it computes, on any number of devices, and what it does not."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_setup import BATCH, CLASSES, HEAD_ONLY, MIDDLE, make_batch
from step_setup import SmallSetup as Setup

from jaxtl.config import Augment, Config, Data, Phase
from jaxtl.errors import UserError
from jaxtl.models import merge
from jaxtl.training import inference as inference_module
from jaxtl.training import step as step_module
from jaxtl.training.inference import make_feature_step, make_predict_step
from jaxtl.training.optimizer import hyperparameters
from jaxtl.training.parallel import AXIS, check_batch_size, replicate, shard

PHASE = Phase(name="p", train=HEAD_ONLY, epochs=1)


def test_a_step_goes_down_the_gradient_of_the_mean_loss_of_real_images():
    setup = Setup(MIDDLE, 8, optimizer="sgd", momentum=0.0, lr=1.0, label_smoothing=0.1)
    batch = make_batch(images=11)

    def mean_loss(parameters):
        network = merge(setup.graph, setup.variables | parameters)
        logs = jax.nn.log_softmax(network(batch.inputs[:11]))
        one_hot = jax.nn.one_hot(batch.labels[:11], CLASSES)
        targets = 0.9 * one_hot + 0.1 / CLASSES
        plain = -jnp.mean(jnp.sum(one_hot * logs, axis=1))
        return -jnp.mean(jnp.sum(targets * logs, axis=1)), plain

    trained = {path: setup.variables[path] for path in setup.trainable.multipliers}
    gradients, plain = jax.jit(jax.grad(mean_loss, has_aux=True))(trained)
    (sums,) = setup.run([batch])
    np.testing.assert_allclose(sums.loss / 11, plain, rtol=1e-5)  # smoothing only trains
    assert sums.images == 11
    for path, multiplier in setup.trainable.multipliers.items():
        expected = trained[path] - multiplier * gradients[path]
        np.testing.assert_allclose(
            setup.state.variables[path], expected, rtol=1e-4, atol=1e-5, err_msg=path
        )


@pytest.mark.parametrize(
    ("rules", "batch_norm"),
    [
        (HEAD_ONLY, "frozen"),
        pytest.param(MIDDLE, "frozen", marks=pytest.mark.slow),
        pytest.param(MIDDLE, "train", marks=pytest.mark.slow),
    ],
)
def test_one_two_and_eight_devices_give_the_same_losses(rules, batch_norm):
    warped = Augment(shear=5.0, zoom=0.2, horizontal_flip=True, brightness=0.2)
    batches = [make_batch(seed, count, side=64) for seed, count in enumerate([16, 16, 5, 16])]
    losses, changing = {}, {}
    for devices in (1, 2, 8):
        setup = Setup(
            rules,
            devices,
            dropout=0.3,
            augmentation=warped if batch_norm == "train" else Augment(),
            optimizer="sgd",
            lr=1e-3,
            batch_norm=batch_norm,
        )
        losses[devices] = [float(sums.loss) for sums in setup.run(batches)]
        changing[devices] = jax.device_get(setup.state.variables)
    for devices in (2, 8):
        np.testing.assert_allclose(losses[devices], losses[1], rtol=1e-4)
        chex.assert_trees_all_close(changing[devices], changing[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rules", [HEAD_ONLY, pytest.param(MIDDLE, marks=pytest.mark.slow)])
def test_many_steps_in_one_call_are_the_same_steps(rules):
    batches = [make_batch(seed, count) for seed, count in enumerate([16, 16, 16, 16, 5])]
    losses, changing = {}, {}
    for together in (1, 2):  # 2, 2 and 1 at the end
        setup = Setup(rules, 2, dropout=0.3, lr=1e-3)
        losses[together] = [float(sums.loss) for sums in setup.run(batches, together=together)]
        changing[together] = jax.device_get(setup.state)
    assert changing[1].step == 5
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-6)
    chex.assert_trees_all_close(changing[2], changing[1], rtol=1e-5, atol=1e-7)


STILL = {"optimizer": "sgd", "lr": 1e-12}  # every step begins with the same parameters
RANDOM = Augment(zoom=0.3, horizontal_flip=True, brightness=0.2)


def losses(setup, *batches):
    return [float(sums.loss) for sums in setup.run(batches)]


def test_dropout_is_drawn_anew_each_step():
    first, second = losses(Setup(HEAD_ONLY, 1, dropout=0.5, **STILL), make_batch(), make_batch())
    assert abs(first - second) > 1e-3


def test_each_view_has_its_own_augmentation_and_keeps_it():
    views = [make_batch(view=view) for view in (0, 1, 2, 0)]
    *others, again = losses(Setup(HEAD_ONLY, 1, augmentation=RANDOM, **STILL), *views)
    assert len({round(loss, 4) for loss in others}) == 3
    assert again == others[0]


def test_without_augmentation_all_views_are_the_image_as_it_is():
    one, other = losses(Setup(HEAD_ONLY, 1, **STILL), make_batch(view=0), make_batch(view=7))
    assert one == other


def test_a_view_is_of_the_image_wherever_that_is_in_a_batch():
    batch = make_batch()
    order = np.random.default_rng(0).permutation(BATCH)
    moved = type(batch)(*(array[order] for array in batch))
    strangers = moved._replace(indices=batch.indices)
    setup = Setup(HEAD_ONLY, 2, augmentation=RANDOM, **STILL)
    here, there, other = losses(setup, batch, moved, strangers)
    assert there == pytest.approx(here, rel=1e-5)
    assert abs(other - here) > 1e-3


def test_the_seed_of_the_views_draws_them():
    options = {"augmentation": RANDOM, **STILL}
    of_seed = [losses(Setup(HEAD_ONLY, 1, view_seed=s, **options), make_batch()) for s in (4, 5, 4)]
    assert of_seed[0] == of_seed[2] != of_seed[1]


def test_a_few_images_at_a_time_give_the_features_of_the_whole_batch(monkeypatch):
    setup = Setup(HEAD_ONLY, 1)
    batch = make_batch()._replace(views=np.arange(BATCH, dtype=np.int32) % 3)

    def features(images_at_a_time):
        pixels = images_at_a_time * batch.inputs[0, ..., 0].size
        monkeypatch.setattr(inference_module, "_PIXELS_AT_A_TIME", pixels)
        step = make_feature_step(setup.graph, "head", augmentation=RANDOM, devices=setup.devices)
        seed = replicate(np.int32(4), setup.devices)
        arguments = setup.variables, seed, shard(batch, setup.devices)
        loops = step.lower(*arguments).as_text().count("stablehlo.while")
        return np.asarray(step(*arguments))[0], loops

    (whole, whole_loops), (pieces, loops) = features(BATCH), features(5)  # 4 divide the batch
    assert loops == whole_loops + 1
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-4)
    assert np.ptp(whole, axis=0).max() > 0.1  # each image has its own


def test_trained_batch_norms_move_and_frozen_ones_do_not():
    setup = Setup(MIDDLE, 2, batch_norm="train", lr=1e-3)
    setup.run([make_batch()])
    statistics = {path for path in setup.variables if path.endswith(("/mean", "/var"))}
    moved = {path for path in statistics if re.match(r"(top|block_(14|16))/", path)}
    assert setup.trainable.statistics == moved
    for path in moved:
        assert not np.array_equal(setup.state.variables[path], setup.variables[path]), path
    assert not statistics - moved & setup.state.variables.keys()


def test_the_state_holds_nothing_of_what_is_frozen():
    setup = Setup(HEAD_ONLY, 1, weight_decay=0.1, clip_norm=1.0)
    trained = {"head/kernel", "head/bias"}
    assert setup.state.variables.keys() == trained
    moments = [leaf.size for leaf in jax.tree.leaves(setup.state.optimizer) if leaf.size > 1]
    sizes = [setup.variables[path].size for path in trained]
    assert sorted(moments) == sorted(2 * sizes)


@pytest.mark.parametrize("rules", [HEAD_ONLY, MIDDLE])
def test_only_trained_gradients_and_sums_are_reduced_over_devices(rules):
    setup = Setup(rules, 8)
    text = setup.compiled().as_text()
    reduced = [
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for line in text.splitlines()
        if re.search(r"= .* all-reduce(-start)?\(", line)
        for dims in re.findall(r"[a-z]\d+\[([\d,]*)\]", line.partition(" all-reduce")[0])
    ]
    trained = sum(setup.variables[path].size for path in setup.trainable.multipliers)
    scalars = 6  # the count, and the five sums of the batch
    assert trained <= sum(reduced) <= trained + scalars


def test_prediction_is_the_log_softmax_of_the_network():
    setup = Setup(HEAD_ONLY, 8)
    batch = make_batch()
    step = make_predict_step(setup.graph, devices=setup.devices)
    predicted = np.asarray(step(setup.variables, None, shard(batch.inputs, setup.devices)))
    logits = np.asarray(jax.jit(merge(setup.graph, setup.variables))(batch.inputs), np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(predicted.reshape(BATCH, CLASSES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rules", [HEAD_ONLY, MIDDLE])
def test_prediction_from_activations_is_that_from_images(rules):
    setup = Setup(rules, 8)
    batch = make_batch()
    features = setup.features(batch.inputs)
    whole = make_predict_step(setup.graph, devices=setup.devices)
    expected = whole(setup.variables, None, shard(batch.inputs, setup.devices))
    start = setup.trainable.frontier
    step = make_predict_step(setup.graph, devices=setup.devices, start=start, cached=np.float32)
    backwards = replicate(features[::-1], setup.devices)
    rows = np.arange(BATCH, dtype=np.int32)[::-1]
    for table, inputs in ((None, features), (backwards, rows)):
        predicted = step(setup.variables, table, shard(inputs, setup.devices))
        np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "devices", "hint"), [(30, 8, "24 or 32"), (3, 8, "=8$"), (32, 8, None)]
)
def test_a_batch_that_does_not_divide_by_the_devices_is_refused(batch, devices, hint):
    config = Config(phases=(PHASE,), data=Data(batch_size=batch))
    if hint is None:
        check_batch_size(config, jax.devices()[:devices])
        return
    with pytest.raises(UserError, match=hint):
        check_batch_size(config, jax.devices()[:devices])


@pytest.mark.parametrize("devices", [1, 4])
def test_more_pieces_than_images_on_a_device_are_refused(devices):
    each = 8 // devices
    for pieces in (each, each + 1):
        phase = PHASE.model_copy(update={"accumulate": pieces})
        config = Config(phases=(phase,), data=Data(batch_size=8))
        if pieces == each:
            check_batch_size(config, jax.devices()[:devices])
            continue
        with pytest.raises(UserError, match=rf"\.{PHASE.name}\.accumulate={each} or less"):
            check_batch_size(config, jax.devices()[:devices])


def test_multi_transform_is_what_holds_frozen_parameters():
    """The optimizer is one over all parameters, in which frozen ones get updates of zero."""
    setup = Setup(HEAD_ONLY, 1, weight_decay=0.1)
    parameters = {path: setup.variables[path] for path in setup.trainable.labels}
    state = setup.transform.init(parameters)
    ones = jax.tree.map(jnp.ones_like, parameters)
    updates, _ = jax.jit(setup.transform.update)(ones, state, parameters)
    assert isinstance(setup.transform, optax.GradientTransformation)
    for path, label in setup.trainable.labels.items():
        assert np.any(updates[path]) == (label != "frozen"), path


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0, "batch_norm": "train"}])
def test_mixing_does_not_depend_on_devices_or_pieces(settings):
    batches = [make_batch(0), make_batch(1, images=11)]

    def after(devices, **more):
        more |= settings | {"augmentation": Augment(horizontal_flip=True), "optimizer": "sgd"}
        setup = Setup(MIDDLE, devices, **more)
        return setup.run(batches), setup.state.variables

    sums, variables = after(1)
    others = [after(8)] if "batch_norm" in settings else [after(8), after(1, accumulate=4)]
    for other_sums, other_variables in others:
        for mine, theirs in zip(sums, other_sums, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4)
        chex.assert_trees_all_close(variables, other_variables, rtol=1e-3, atol=1e-5)
    plain = Setup(MIDDLE, 1, augmentation=Augment(horizontal_flip=True)).run(batches)
    assert abs(plain[0].loss - sums[0].loss) > 1e-3


def test_a_mixed_step_goes_down_the_gradient_of_both_labels():
    setup = Setup(HEAD_ONLY, 1, optimizer="sgd", momentum=0.0, lr=1.0, mixup=1.0)
    batch, kernel = make_batch(), setup.variables["head/kernel"]
    hyper = jax.device_get(setup.hyper)
    drawn = jax.vmap(
        lambda given: step_module._drawn(setup.phase, Augment(), hyper, jnp.int32(0), given),
        axis_name=AXIS,
    )(jax.tree.map(lambda array: jnp.asarray(array)[None], batch))
    mixtures, draws = jax.tree.map(lambda array: array[0], drawn)
    weights = np.asarray(draws.mixed[1])[:, None]
    one_hot = np.eye(CLASSES)[batch.labels]
    targets = weights * one_hot + (1 - weights) * one_hot.reshape(-1, 2, CLASSES)[:, ::-1].reshape(
        one_hot.shape
    )
    images = batch.inputs.astype(np.float32)
    swapped = images.reshape(-1, 2, *images.shape[1:])[:, ::-1].reshape(images.shape)
    expected = weights[..., None, None] * images + (1 - weights[..., None, None]) * swapped
    np.testing.assert_allclose(mixtures.inputs, expected, rtol=1e-4, atol=1e-3)
    features = setup.features(jnp.asarray(expected))
    probabilities = jax.nn.softmax(features @ kernel + setup.variables["head/bias"])
    gradient = features.T @ (probabilities - targets) / BATCH
    setup.run([batch])
    np.testing.assert_allclose(
        setup.state.variables["head/kernel"], kernel - gradient, rtol=1e-3, atol=1e-4
    )


def test_of_mirror_images_the_probabilities_are_averaged():
    setup = Setup(HEAD_ONLY, 2)
    images = make_batch().inputs
    inputs = shard(images, setup.devices)
    flips = [(False, False), (False, True), (True, False), (True, True)]
    step = make_predict_step(setup.graph, devices=setup.devices, flips=flips)
    plain = make_predict_step(setup.graph, devices=setup.devices)
    expected = np.mean(
        [
            np.exp(plain(setup.variables, None, shard(view, setup.devices)))
            for view in (images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1])
        ],
        axis=0,
    )
    averaged = np.exp(step(setup.variables, None, inputs))
    np.testing.assert_allclose(averaged, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(averaged - np.exp(plain(setup.variables, None, inputs))).max() > 1e-3


def test_an_odd_number_of_images_on_a_device_cannot_be_mixed():
    phase = PHASE.model_copy(update={"cutmix": 1.0})
    check_batch_size(Config(phases=(phase,), data=Data(batch_size=8)), jax.devices()[:4])
    with pytest.raises(UserError, match="a device has 1 of each batch"):
        check_batch_size(Config(phases=(phase,), data=Data(batch_size=8)), jax.devices()[:8])


@pytest.mark.peers
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_classes_are_those_of_pytorch(smoothing):
    """`CrossEntropyLoss(weight, label_smoothing)` divides by the sum of the labels' weights."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, CLASSES)).astype(np.float32)
    labels, weights = rng.integers(0, CLASSES, 9), rng.uniform(0.2, 3, CLASSES).astype(np.float32)
    hyper = hyperparameters(PHASE.model_copy(update={"label_smoothing": smoothing}), 0, 0, weights)
    draws = step_module.Draws(jnp.zeros(9))
    losses = step_module._losses(jnp.asarray(logits), jnp.asarray(labels), draws, hyper, 0.0)
    loss = torch.nn.CrossEntropyLoss(torch.from_numpy(weights), label_smoothing=smoothing)
    expected = loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert losses.sum() / weights[labels].sum() == pytest.approx(float(expected), rel=1e-5)


def test_a_weighted_step_goes_down_the_gradient_of_the_weighted_mean():
    weights = np.linspace(0.3, 2, CLASSES).astype(np.float32)
    batch, kernels = make_batch(images=11), []
    for devices in (1, 4):
        setup = Setup(HEAD_ONLY, devices, optimizer="sgd", momentum=0.0, lr=1.0, focal=2.0)
        setup.hyper = replicate(hyperparameters(setup.phase, 3, 4, weights), setup.devices)
        kernel, bias = (jnp.array(setup.variables[f"head/{name}"]) for name in ("kernel", "bias"))
        features, labels = setup.features(batch.inputs[:11]), batch.labels[:11]

        def mean(kernel, features=features, labels=labels, bias=bias):
            logs = jax.nn.log_softmax(features @ kernel + bias)[np.arange(11), labels]
            return (
                jnp.sum(weights[labels] * (1 - jnp.exp(logs)) ** 2 * -logs) / weights[labels].sum()
            )

        expected = kernel - jax.grad(mean)(kernel)
        setup.run([batch])
        kernels.append(np.asarray(setup.state.variables["head/kernel"]))
        np.testing.assert_allclose(kernels[-1], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*kernels, rtol=1e-5, atol=1e-6)
