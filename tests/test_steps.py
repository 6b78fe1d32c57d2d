"""The training step: what it computes, on any number of devices, and what it does not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtl.config import Augment, Phase
from jaxtl.data.loader import Batch
from jaxtl.errors import UserError
from jaxtl.freeze import freezing, partition, training_graph
from jaxtl.models import build, merge, split
from jaxtl.optim import optimizer
from jaxtl.steps import (
    AXIS,
    TrainState,
    check_batch_size,
    make_predict_step,
    make_train_step,
    replicate,
    shard,
)

SIDE, CLASSES, BATCH = 32, 7, 16
HEAD_ONLY = {"head/.*": 1.0}
MIDDLE = {"head/.*": 1.0, "(top|block_(14|16))/.*": 0.1}  # block_15 stays frozen


def make_batch(seed=0, pictures=BATCH, side=SIDE):
    """Coarse patterns: batch statistics of pictures that are all noise are rounding errors."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (BATCH, 4, 4, 3), np.uint8)
    return Batch(
        coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2),
        rng.integers(0, CLASSES, BATCH).astype(np.int32),
        np.arange(BATCH) < pictures,
    )


def random_statistics(variables):
    """Running statistics as a trained network has them: away from zero and one."""
    rng = np.random.default_rng(1)
    drawn = {"mean": lambda n: rng.normal(0, 0.1, n), "var": lambda n: rng.uniform(0.5, 2, n)}
    return {
        path: jnp.asarray(drawn[kind](value.shape), jnp.float32)
        if (kind := path.rpartition("/")[2]) in drawn
        else value
        for path, value in variables.items()
    }


class Setup:
    """A step of a phase on some devices, with the state to begin with."""

    def __init__(self, rules, devices, *, dropout=0.0, augmentation=None, **phase):
        self.devices = jax.devices()[:devices]
        self.phase = Phase(name="p", train=rules, epochs=1, **phase)
        network = build("mobilenet_v2", num_classes=CLASSES, width=0.35, dropout=dropout)
        self.graph = split(network)[0]
        self.variables = random_statistics(split(network)[1])
        self.frozen = freezing(network, rules, self.phase.batch_norm)
        transform = optimizer(self.phase, self.frozen, steps_per_epoch=10)
        self.step = make_train_step(
            training_graph(network, self.frozen, momentum=0.9, axis_name=AXIS),
            self.frozen,
            transform,
            phase=self.phase,
            augmentation=augmentation or Augment(),
            seed=3,
            devices=self.devices,
        )
        parameters = {path: self.variables[path] for path in self.frozen.labels}
        changing, self.fixed = partition(self.variables, self.frozen.changing)
        state = TrainState(jnp.int32(0), changing, jax.jit(transform.init)(parameters))
        self.state = replicate(jax.tree.map(jnp.copy, state), self.devices)
        self.fixed = replicate(self.fixed, self.devices)

    def run(self, batches):
        """The sums of every step."""
        sums = []
        for batch in batches:
            self.state, done = self.step(self.state, self.fixed, shard(batch, self.devices))
            sums.append(jax.device_get(done))
        return sums

    def compiled(self):
        return self.step.lower(self.state, self.fixed, shard(make_batch(), self.devices)).compile()


def operations(compiled):
    cost = compiled.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_a_step_goes_down_the_gradient_of_the_mean_loss_of_real_pictures():
    setup = Setup(MIDDLE, 8, optimizer="sgd", momentum=0.0, lr=1.0, label_smoothing=0.1)
    batch = make_batch(pictures=11)

    def mean_loss(parameters):
        network = merge(setup.graph, setup.variables | parameters)
        logs = jax.nn.log_softmax(network(batch.images[:11]))
        one_hot = jax.nn.one_hot(batch.labels[:11], CLASSES)
        targets = 0.9 * one_hot + 0.1 / CLASSES
        plain = -jnp.mean(jnp.sum(one_hot * logs, axis=1))
        return -jnp.mean(jnp.sum(targets * logs, axis=1)), plain

    trained = {path: setup.variables[path] for path in setup.frozen.multipliers}
    gradients, plain = jax.jit(jax.grad(mean_loss, has_aux=True))(trained)
    (sums,) = setup.run([batch])
    np.testing.assert_allclose(sums.loss / 11, plain, rtol=1e-5)  # smoothing only trains
    assert sums.pictures == 11
    for path, multiplier in setup.frozen.multipliers.items():
        expected = trained[path] - multiplier * gradients[path]
        np.testing.assert_allclose(
            setup.state.changing[path], expected, rtol=1e-4, atol=1e-5, err_msg=path
        )


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_one_two_and_eight_devices_give_the_same_losses(batch_norm):
    augmentation = Augment(shear=5.0, zoom=0.2, horizontal_flip=True, brightness=0.2)
    batches = [make_batch(seed, count, side=64) for seed, count in enumerate([16, 16, 5, 16])]
    losses, changing = {}, {}
    for devices in (1, 2, 8):
        setup = Setup(
            MIDDLE,
            devices,
            dropout=0.3,
            augmentation=augmentation,
            optimizer="sgd",
            lr=1e-3,
            batch_norm=batch_norm,
        )
        losses[devices] = [float(sums.loss) for sums in setup.run(batches)]
        changing[devices] = jax.device_get(setup.state.changing)
    for devices in (2, 8):
        np.testing.assert_allclose(losses[devices], losses[1], rtol=1e-4)
        for path, value in changing[1].items():
            np.testing.assert_allclose(changing[devices][path], value, rtol=1e-3, atol=1e-5)


def test_augmentation_and_dropout_are_drawn_anew_each_step():
    setup = Setup(
        HEAD_ONLY, 1, dropout=0.5, augmentation=Augment(zoom=0.3), optimizer="sgd", lr=1e-12
    )
    first, second = setup.run([make_batch(), make_batch()])
    assert abs(first.loss - second.loss) > 1e-3


def test_trained_batch_norms_move_and_frozen_ones_do_not():
    setup = Setup(MIDDLE, 2, batch_norm="train", lr=1e-3)
    setup.run([make_batch()])
    statistics = {path for path in setup.variables if path.endswith(("/mean", "/var"))}
    moved = {path for path in statistics if re.match(r"(top|block_(14|16))/", path)}
    assert setup.frozen.moving == moved
    for path in moved:
        assert not np.array_equal(setup.state.changing[path], setup.variables[path]), path
    assert not statistics - moved & setup.state.changing.keys()


def test_the_state_holds_nothing_of_what_is_frozen():
    setup = Setup(HEAD_ONLY, 1, weight_decay=0.1, clip_norm=1.0)
    trained = {"head/kernel", "head/bias"}
    assert setup.state.changing.keys() == trained
    moments = [leaf.size for leaf in jax.tree.leaves(setup.state.optimizer) if leaf.size > 1]
    sizes = [setup.variables[path].size for path in trained]
    assert sorted(moments) == sorted(2 * sizes)


@pytest.mark.parametrize("side", [32, 96])
def test_a_head_only_step_needs_no_more_operations_than_a_forward_pass(side):
    setup = Setup(HEAD_ONLY, 1, weight_decay=0.1, clip_norm=1.0, dropout=0.2)
    images = np.zeros((1, BATCH, side, side, 3), np.uint8)
    batch = Batch(images, np.zeros((1, BATCH), np.int32), np.ones((1, BATCH), bool))
    step = setup.step.lower(setup.state, setup.fixed, batch).compile()
    forward = make_predict_step(setup.graph, devices=setup.devices)
    forward = forward.lower(setup.variables, images).compile()
    assert operations(step) <= 1.05 * operations(forward)


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
    trained = sum(setup.variables[path].size for path in setup.frozen.multipliers)
    scalars = 6  # the count, and the five sums of the batch
    assert trained <= sum(reduced) <= trained + scalars


def test_frozen_stages_right_of_the_frontier_are_not_differentiated():
    with_frozen = operations(Setup(MIDDLE, 1).compiled())
    all_trained = operations(Setup({"(head|top|block_1[4-6])/.*": 1.0}, 1).compiled())
    assert with_frozen < all_trained


def test_prediction_is_the_log_softmax_of_the_network():
    setup = Setup(HEAD_ONLY, 8)
    batch = make_batch()
    step = make_predict_step(setup.graph, devices=setup.devices)
    predicted = np.asarray(step(setup.variables, shard(batch.images, setup.devices)))
    logits = np.asarray(merge(setup.graph, setup.variables)(batch.images), np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(predicted.reshape(BATCH, CLASSES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "devices", "hint"), [(30, 8, "24 or 32"), (3, 8, "=8$"), (32, 8, None)]
)
def test_a_batch_that_does_not_divide_by_the_devices_is_refused(batch, devices, hint):
    if hint is None:
        check_batch_size(batch, jax.devices()[:devices])
        return
    with pytest.raises(UserError, match=hint):
        check_batch_size(batch, jax.devices()[:devices])


def test_multi_transform_is_what_holds_frozen_parameters():
    """The optimizer is one over all parameters, in which frozen ones get updates of zero."""
    setup = Setup(HEAD_ONLY, 1, weight_decay=0.1)
    transform = optimizer(setup.phase, setup.frozen, steps_per_epoch=10)
    parameters = {path: setup.variables[path] for path in setup.frozen.labels}
    state = transform.init(parameters)
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, parameters), state, parameters)
    assert isinstance(transform, optax.GradientTransformation)
    for path, label in setup.frozen.labels.items():
        assert np.any(updates[path]) == (label != "frozen"), path
