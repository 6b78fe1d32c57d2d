"""Sharpness-aware minimisation: the gradient at the top of the slope, on any number of devices."""

import os
import signal

import chex
import jax
import numpy as np
import pytest
from small_run import bits, metrics, run, settings, watched
from step_setup import CLASSES, HEAD_ONLY, MIDDLE, make_batch
from step_setup import SmallSetup as Setup

from jaxtl.errors import Interrupted

RHO = 0.3
PLAIN = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0}


def test_a_step_goes_down_the_gradient_at_the_point_up_the_slope():
    """Of a linear layer, by hand."""
    setup = Setup(HEAD_ONLY, 2, sam_rho=RHO, **PLAIN)
    batch = make_batch(images=11)
    features = setup.features(batch.inputs)[:11]
    inputs = np.concatenate([features, np.ones((11, 1))], axis=1, dtype=np.float64)
    start = np.concatenate(
        [setup.variables["head/kernel"], setup.variables["head/bias"][None]], dtype=np.float64
    )

    def gradient(weights):
        scores = np.exp(inputs @ weights)
        errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(CLASSES)[batch.labels[:11]]
        return inputs.T @ errors / 11

    slope = gradient(start)
    expected = start - gradient(start + RHO * slope / np.linalg.norm(slope))
    assert abs(expected - (start - slope)).max() > 0.01
    (sums,) = setup.run([batch])
    found = np.concatenate(
        [setup.state.variables["head/kernel"], setup.state.variables["head/bias"][None]]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    logits = inputs @ start
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -logs[np.arange(11), batch.labels[:11]].sum()
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-4)  # where the step began


@pytest.mark.slow
def test_one_and_eight_devices_climb_the_same_slope():
    batches = [make_batch(seed, count) for seed, count in enumerate([16, 5])]
    changing = {}
    for devices in (1, 8):
        setup = Setup(MIDDLE, devices, sam_rho=RHO, optimizer="sgd", lr=1e-3, batch_norm="train")
        setup.run(batches)
        changing[devices] = jax.device_get(setup.state.variables)
    chex.assert_trees_all_close(changing[8], changing[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_batch_statistics_move_once_and_are_those_of_where_the_step_began():
    batch, after = make_batch(), {}
    for rho in (None, RHO):
        setup = Setup(MIDDLE, 2, sam_rho=rho, batch_norm="train", **PLAIN)
        setup.run([batch])
        after[rho] = jax.device_get(setup.state.variables)
    statistics = set(setup.trainable.statistics)
    assert statistics
    for path in statistics:
        np.testing.assert_allclose(after[RHO][path], after[None][path], rtol=1e-6, err_msg=path)
    path = "head/kernel"
    assert abs(after[RHO][path] - after[None][path]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_is_continued_with_the_same_bits(tmp_path):
    phase = {"train": HEAD_ONLY, "epochs": 2, "sam_rho": 0.05, "clip_norm": 1.0, "ema": 0.9}
    config = settings(phase, views=1)
    run(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(
            config, tmp_path / "run", watched("p0 2/2", lambda: os.kill(os.getpid(), signal.SIGINT))
        )
    run(config, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_a_batch_without_a_slope_moves_nothing():
    """All images are right beyond rounding, so that every gradient is zero."""
    setup = Setup(HEAD_ONLY, 1, sam_rho=0.05, optimizer="sgd", momentum=0.0, lr=0.1)
    bias = setup.state.variables["head/bias"].at[0].set(1e4)
    setup.state = setup.state._replace(variables={**setup.state.variables, "head/bias": bias})
    before = jax.device_get(setup.state.variables)
    batch = make_batch()
    setup.run([batch._replace(labels=np.zeros_like(batch.labels))])
    chex.assert_trees_all_equal(jax.device_get(setup.state.variables), before)
