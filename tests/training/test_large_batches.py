"""Accumulation, averages and the optimizers of large batches, against what they stand for."""

import os
import signal

import chex
import jax
import numpy as np
import pytest
from small_run import bits, metrics, run, settings, watched
from step_setup import HEAD_ONLY, MIDDLE, make_batch, stacked
from step_setup import SmallSetup as Setup

from jaxtl.errors import Interrupted
from jaxtl.training import accumulation
from jaxtl.training.parallel import shard
from jaxtl.training.phase import first_state

SGD = {"optimizer": "sgd", "lr": 1e-3}
ALL = {".*": 1.0}


def after(batches, rules, devices=2, **options):
    setup = Setup(rules, devices, **{**SGD, **options})
    sums = setup.run(batches)
    return [float(s.loss) for s in sums], [int(s.images) for s in sums], setup


@pytest.mark.parametrize(
    "pieces", [4, pytest.param(3, marks=pytest.mark.slow)]
)  # eight images a device: two in each piece, or up to 3
@pytest.mark.parametrize("rules", [HEAD_ONLY, pytest.param(ALL, marks=pytest.mark.slow)])
def test_accumulation_gives_the_step_of_the_whole_batch(rules, pieces):
    """With dropout, and with batches that do not fill up."""
    batches = [make_batch(seed, images) for seed, images in enumerate([16, 16, 5, 1])]
    losses, images, whole = after(batches, rules, dropout=0.3)
    piecewise, counted, split = after(batches, rules, dropout=0.3, accumulate=pieces)
    assert counted == images == [16, 16, 5, 1]
    np.testing.assert_allclose(piecewise, losses, rtol=2e-5)
    chex.assert_trees_all_close(
        jax.device_get(split.state.variables),
        jax.device_get(whole.state.variables),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.slow
def test_a_cpu_differentiates_a_few_images_at_a_time(monkeypatch):
    batches = [make_batch(seed, 13) for seed in range(2)]
    losses, _, whole = after(batches, MIDDLE, devices=1)
    of_frontier = whole.features(batches[0].inputs).shape
    assert of_frontier == (16, 8, 8, 16)
    monkeypatch.setattr(accumulation, "_PIXELS_AT_A_TIME", 5 * 8 * 8)
    piecewise, _, split = after(batches, MIDDLE, devices=1)
    loops = [setup.step.lower(*_arguments(setup)).as_text() for setup in (whole, split)]
    assert loops[1].count("stablehlo.while") > loops[0].count("stablehlo.while")
    np.testing.assert_allclose(piecewise, losses, rtol=1e-5)
    chex.assert_trees_all_close(split.state.variables, whole.state.variables, rtol=1e-4, atol=1e-6)


def _arguments(setup):
    chunk = shard(stacked([make_batch()]), setup.devices, axis=1)
    return setup.state, setup.fixed, None, setup.hyper, chunk


@pytest.mark.slow
def test_pieces_of_images_whose_batch_norms_train_are_normalised_by_themselves():
    """The statistics after four pieces are those after four batches, without a step between."""
    one = make_batch(0)
    setup = after([one], MIDDLE, devices=1, batch_norm="train", accumulate=4, lr=1e-12)[2]
    quarters = [_only(one, slice(start, None, 4)) for start in range(4)]
    apart = after(quarters, MIDDLE, devices=1, batch_norm="train", lr=1e-12)[2]
    for path in setup.trainable.statistics:
        found, expected = (s.state.variables[path] for s in (setup, apart))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=path)


def _only(batch, places):
    """A batch whose other images only fill it up."""
    chosen = np.zeros(16, bool)
    chosen[places] = True
    return batch._replace(valid=chosen)


def test_pieces_without_images_leave_the_statistics_finite():
    setup = after([make_batch(0, 2)], MIDDLE, devices=1, batch_norm="train", accumulate=4)[2]
    assert all(np.isfinite(v).all() for v in jax.device_get(setup.state.variables).values())


def test_the_average_is_that_of_all_steps_with_weights_that_fall():
    decay, batches = 0.6, [make_batch(seed) for seed in range(3)]
    plain, averaged = Setup(HEAD_ONLY, 1, **SGD), Setup(HEAD_ONLY, 1, ema=decay, **SGD)
    averaged.state = first_state(
        averaged.trainable,
        averaged.phase,
        averaged.variables,
        averaged.hyper,
        steps_per_epoch=10,
        step=0,
    )
    passed = []
    for batch in batches:
        plain.run([batch])
        averaged.run([batch])
        passed.append(jax.device_get(plain.state.variables))
    weights = decay ** np.arange(2, -1, -1)
    for path in ("head/kernel", "head/bias"):
        expected = np.average([of[path] for of in passed], axis=0, weights=weights)
        np.testing.assert_allclose(averaged.state.variables[path], expected, rtol=1e-5, atol=1e-7)
        moved = averaged.state.optimizer.variables[path]
        np.testing.assert_array_equal(moved, plain.state.variables[path])


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_run_of_an_average_is_continued_with_the_same_bits(tmp_path):
    phases = [{"train": HEAD_ONLY, "epochs": 3, "ema": 0.9, "accumulate": 2, "optimizer": "lamb"}]
    config = settings(*phases, views=1)
    run(config, tmp_path / "whole")
    stopping = watched("p0 2/3", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", stopping)
    run(config, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
