"""The optimizer of a phase, against the formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.utils.class_weight import compute_class_weight

from jaxtl.config import Phase
from jaxtl.errors import UserError
from jaxtl.training.optimizer import (
    check_schedule,
    hyperparameters,
    optimizer,
    schedule,
    weights_of_classes,
)
from jaxtl.training.trainable import Trainable

PATHS = ("stem/kernel", "top/kernel", "top/bias", "head/kernel")
FREEZING = Trainable(
    multipliers={"top/kernel": 0.1, "top/bias": 0.1, "head/kernel": 1.0},
    labels={"stem/kernel": "frozen", "top/kernel": "a", "top/bias": "a", "head/kernel": "b"},
    statistics=frozenset(),
    frontier="top",
)


def phase(**changes):
    return Phase(name="p", train={".*": 1.0}, **{"epochs": 10, "lr": 0.5, **changes})


def draw(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=(3, 2)).astype(np.float32) for path in PATHS}


def gradients_with_frozen_zeros(seed):
    return draw(seed) | {"stem/kernel": np.zeros((3, 2), np.float32)}


def optimizer_of(settings):
    return optimizer(settings, FREEZING, 10, hyperparameters(settings, 0, 0))


def rate(settings, steps_per_epoch, step):
    """The learning rate of a step, before multipliers."""
    return settings.lr * float(schedule(settings, steps_per_epoch)(step))


def run(settings, steps=3):
    """The parameters after some steps with fixed gradients, and those gradients."""
    transform = optimizer_of(settings)
    parameters = {path: jnp.asarray(value) for path, value in draw(0).items()}
    state = transform.init(parameters)
    all_gradients = [gradients_with_frozen_zeros(seed) for seed in range(1, steps + 1)]
    for gradients in all_gradients:
        updates, state = transform.update(gradients, state, parameters)
        parameters = jax.tree.map(jnp.add, parameters, updates)
    return parameters, all_gradients


def adam(gradients, rate, b1=0.9, b2=0.999, epsilon=1e-8):
    """Kingma and Ba 2015, algorithm 1: the sum of the steps."""
    m = v = total = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        total -= rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + epsilon)
    return total


def test_adam_moves_each_group_by_its_own_rate():
    parameters, gradients = run(phase())
    for path, multiplier in FREEZING.multipliers.items():
        moved = adam([g[path] for g in gradients], 0.5 * multiplier)
        np.testing.assert_allclose(parameters[path], draw(0)[path] + moved, rtol=1e-5, atol=1e-6)


def test_sgd_has_nesterov_momentum():
    parameters, gradients = run(phase(optimizer="sgd", momentum=0.9))
    velocity, position = 0.0, draw(0)["head/kernel"]
    for g in gradients:  # Sutskever et al. 2013 in the form that frameworks use
        velocity = 0.9 * velocity + g["head/kernel"]
        position = position - 0.5 * (g["head/kernel"] + 0.9 * velocity)
    np.testing.assert_allclose(parameters["head/kernel"], position, rtol=1e-5)


def test_rmsprop_divides_by_the_running_root_mean_square():
    parameters, gradients = run(phase(optimizer="rmsprop"), steps=1)
    g = gradients[0]["head/kernel"]
    expected = draw(0)["head/kernel"] - 0.5 * g / np.sqrt(0.1 * g * g + 1e-8)
    np.testing.assert_allclose(parameters["head/kernel"], expected, rtol=1e-4)


def test_decay_is_decoupled_and_spares_all_but_kernels():
    with_decay, _ = run(phase(weight_decay=0.2), steps=1)
    without, _ = run(phase(), steps=1)
    for path in ("head/kernel", "top/kernel"):
        rate = 0.5 * FREEZING.multipliers[path]
        expected = np.asarray(without[path]) - rate * 0.2 * draw(0)[path]
        np.testing.assert_allclose(with_decay[path], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(with_decay["top/bias"], without["top/bias"])


def test_clipping_uses_the_norm_of_all_trained_gradients_together():
    parameters, gradients = run(phase(optimizer="sgd", momentum=0.0, clip_norm=0.1), steps=1)
    trained = [gradients[0][path] for path in FREEZING.multipliers]
    norm = np.sqrt(sum(np.sum(g * g) for g in trained))
    expected = draw(0)["head/kernel"] - 0.5 * gradients[0]["head/kernel"] * 0.1 / norm
    np.testing.assert_allclose(parameters["head/kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop", "lion", "lars", "lamb"])
def test_nothing_is_stored_for_what_is_frozen(name):
    transform = optimizer_of(phase(optimizer=name, clip_norm=1.0, weight_decay=0.1))
    shapes = {path: (index + 2, 5) for index, path in enumerate(PATHS)}
    state = transform.init({path: jnp.zeros(shape) for path, shape in shapes.items()})
    stored = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert shapes["stem/kernel"] not in stored
    moments = 2 if name in ("adam", "lamb") else 1
    assert stored.count(shapes["head/kernel"]) == moments


def test_the_rate_is_constant_without_a_schedule():
    assert [rate(phase(lr=0.3), 7, s) for s in (0, 35, 69)] == pytest.approx([0.3] * 3)


def test_the_rate_warms_up_linearly_and_falls_as_half_a_cosine():
    settings = phase(lr=0.4, schedule="cosine", warmup_epochs=2)
    rising = [rate(settings, 5, s) for s in (0, 4, 9, 10)]
    assert rising == pytest.approx([0.04, 0.2, 0.4, 0.4])
    expected = [0.4 * 0.5 * (1 + np.cos(np.pi * (s - 10) / 40)) for s in (20, 30, 50)]
    assert [rate(settings, 5, s) for s in (20, 30, 50)] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_warm_up_that_rounds_to_the_whole_phase_ends_at_the_rate(name):
    settings = phase(lr=0.5, epochs=1, schedule=name, warmup_epochs=0.99)
    rising = [rate(settings, 10, s) for s in range(10)]
    assert rising == pytest.approx([0.05 * (s + 1) for s in range(10)])


def test_an_unknown_schedule_is_an_error():
    unknown = phase().model_copy(update={"schedule": "quadratic"})
    with pytest.raises(KeyError, match="quadratic"):
        schedule(unknown, 10)


def test_the_multiplier_scales_the_schedule():
    settings = phase(optimizer="sgd", momentum=0.0, warmup_epochs=1)
    parameters, gradients = run(settings, steps=2)
    moves = [rate * g["top/kernel"] for rate, g in zip((0.05, 0.1), gradients, strict=True)]
    expected = draw(0)["top/kernel"] - 0.1 * sum(moves)
    np.testing.assert_allclose(parameters["top/kernel"], expected, rtol=1e-5)


def test_runs_that_differ_in_rate_and_decay_share_one_program():
    """Both are arguments of what is compiled, and do there what they do outside."""
    traced = []

    @jax.jit
    def moved(hyper, gradients, parameters):
        traced.append(hyper)
        transform = optimizer(phase(), FREEZING, 10, hyper)
        return transform.update(gradients, transform.init(parameters), parameters)[0]

    gradients, parameters = gradients_with_frozen_zeros(1), draw(0)
    for settings in (phase(lr=0.5, weight_decay=0.2), phase(lr=0.01), phase(lr=0.01)):
        transform = optimizer_of(settings)
        expected, _ = transform.update(gradients, transform.init(parameters), parameters)
        found = moved(hyperparameters(settings, 0, 0), gradients, parameters)
        for path, value in expected.items():
            np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-7)
    assert len(traced) == 1


def norm_ratio(parameter, update):
    return np.linalg.norm(parameter) / np.linalg.norm(update)


def test_lars_scales_the_gradients_of_kernels_to_their_norms():
    """You et al. 2017, algorithm 1, with one step's momentum; biases take plain gradients."""
    settings = phase(optimizer="lars", weight_decay=0.1, momentum=0.8)
    parameters, gradients = run(settings, steps=2)
    kernel, bias = draw(0)["head/kernel"], draw(0)["top/bias"]
    velocity = bias_velocity = 0.0
    for g in gradients:
        decayed = g["head/kernel"] + 0.1 * kernel
        velocity = 0.8 * velocity + 0.5 * 0.001 * norm_ratio(kernel, decayed) * decayed
        kernel = kernel - velocity
        bias_velocity = 0.8 * bias_velocity + 0.05 * g["top/bias"]
        bias = bias - bias_velocity
    np.testing.assert_allclose(parameters["head/kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(parameters["top/bias"], bias, rtol=1e-5)


def test_lamb_scales_the_steps_of_adam_to_the_norms_of_kernels():
    """You et al. 2020, algorithm 2, at the first step, where Adam takes signs of gradients."""
    parameters, gradients = run(phase(optimizer="lamb", weight_decay=0.1), steps=1)
    for path, rate, decay in (("head/kernel", 0.5, 0.1), ("top/bias", 0.05, 0.0)):
        before, g = draw(0)[path], gradients[0][path]
        update = g / (np.abs(g) + 1e-6) + decay * before
        ratio = norm_ratio(before, update) if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(parameters[path], before - rate * ratio * update, rtol=1e-4)


def test_lion_takes_signs_of_an_average():
    """Chen et al. 2023, algorithm 2."""
    parameters, gradients = run(phase(optimizer="lion", weight_decay=0.1), steps=2)
    value, average = draw(0)["head/kernel"], 0.0
    for g in (gradient["head/kernel"] for gradient in gradients):
        value = value - 0.5 * (np.sign(0.9 * average + 0.1 * g) + 0.1 * value)
        average = 0.99 * average + 0.01 * g
    np.testing.assert_allclose(parameters["head/kernel"], value, rtol=1e-5)


def test_the_rate_falls_linearly_to_zero():
    settings = phase(lr=0.4, schedule="linear", warmup_epochs=2)
    found = [rate(settings, 5, s) for s in (9, 10, 20, 30, 50)]
    assert found == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.0])


def test_one_cycle_rises_over_three_tenths_and_falls_to_almost_nothing():
    settings = phase(lr=0.4, schedule="one_cycle")
    found = [rate(settings, 10, s) for s in (0, 15, 30, 65, 100)]
    assert found == pytest.approx([0.016, 0.208, 0.4, 0.2, 0.0], abs=1e-5)


def test_a_schedule_that_loses_a_change_by_rounding_is_refused():
    settings = phase(schedule="step", step_epochs=(1, 1.2))
    check_schedule(settings, 5)
    with pytest.raises(UserError, match=r"are steps \[4, 4\] of 4"):
        check_schedule(phase(epochs=1, schedule="step", step_epochs=(0.9, 0.95)), 4)
    with pytest.raises(UserError, match=r"are steps \[2, 2\]"):
        check_schedule(settings, 2)


@pytest.mark.parametrize("steps", [3, 4])
def test_one_cycle_is_refused_where_it_would_not_rise(steps):
    settings = phase(epochs=1, lr=0.4, schedule="one_cycle")
    rates = [float(optax.cosine_onecycle_schedule(steps, 0.4)(step)) for step in range(steps)]
    if rates[1] > rates[0]:
        check_schedule(settings, steps)
        return
    with pytest.raises(UserError, match="cannot rise and fall in 3 steps"):
        check_schedule(settings, steps)


def test_steps_divide_the_rate_by_ten():
    settings = phase(lr=0.4, schedule="step", step_epochs=(3, 6.5), warmup_epochs=2)
    found = [rate(settings, 10, s) for s in (9, 19, 20, 29, 31, 64, 66, 99)]
    assert found == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_automatic_weights_of_classes_are_those_of_scikit_learn():
    labels = np.repeat(np.arange(3, dtype=np.int32), (50, 7, 3))
    weights = weights_of_classes(phase(class_weights="auto"), labels, "abc")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_given_weights_are_those_of_exactly_the_classes():
    labels = np.zeros(3, np.int32)
    right, classes = {"dog": 2.0, "cat": 1.0}, ("cat", "dog")
    found = weights_of_classes(phase(class_weights=right), labels, classes)
    assert found.tolist() == [1.0, 2.0]
    wrong = {"'dog' has no weight": {"cat": 1.0}, "'cow' is not a class": right | {"cow": 1.0}}
    for message, given in wrong.items():
        with pytest.raises(UserError, match=message):
            weights_of_classes(phase(class_weights=given), labels, classes)
