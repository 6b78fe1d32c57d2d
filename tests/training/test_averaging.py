"""The average of a phase's best epochs, against brute force over runs of every length."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from small_run import NETWORK, bits, metrics, opened, run, settings, watched

from jaxtl.data.loader import Loader
from jaxtl.errors import Interrupted
from jaxtl.models import merge, split
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.progress import Progress
from jaxtl.training.averaging import greedy_soup
from jaxtl.training.setup import open_data

# So high a learning rate that epochs differ, and averages of them are better.
PHASE = {"train": {"head/.*": 1.0}, "optimizer": "sgd", "momentum": 0.0, "lr": 2.0}
EPOCHS, MOST = 5, 3


def brute_force(epochs, measure):
    """Recipe 1 of the paper, with sums in float64."""
    ranked = sorted(epochs, key=measure, reverse=True)
    soup = ranked[:1]
    for more in ranked[1:]:
        wider = [*soup, more]
        if measure(np.mean(wider, axis=0)) >= measure(np.mean(soup, axis=0)):
            soup = wider
    return np.mean(soup, axis=0), len(soup)


@pytest.mark.parametrize("seed", range(4))
def test_an_epoch_that_makes_the_average_worse_is_left_out(seed):
    wanted, *epochs = np.random.default_rng(seed).normal(size=(6, 3))

    def measure(point):
        return -float(np.square(np.asarray(point) - wanted).sum()), 0.0

    ranked = sorted(epochs, key=measure, reverse=True)
    average, best, used = greedy_soup(
        [lambda point=point: {"a": point} for point in ranked],
        measure(ranked[0]),
        lambda variables: measure(variables["a"]),
    )
    expected, count = brute_force(epochs, measure)
    np.testing.assert_allclose(average["a"], expected, rtol=1e-5)
    assert len(used) == count
    np.testing.assert_allclose(best[0], measure(expected)[0], rtol=1e-5)


def test_the_best_epochs_are_ranked_and_of_equals_the_first_comes_first():
    progress = Progress()
    for step, accuracy in enumerate([0.5, 0.9, 0.9, 0.7], start=1):
        progress = dataclasses.replace(progress, step=step).after_epoch(accuracy, 1.0, accuracy, 3)
    assert [step for step, *_ in progress.to_average] == [2, 3, 4]
    assert progress.best_step == 2
    assert progress.kept == {5, 7, 9}
    ended = progress.averaged(0.95, 0.5, 0.95)
    assert (ended.best_number, ended.kept) == (ended.number, {ended.number})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small):
    """A run that averages its best epochs."""
    folder = tmp_path_factory.mktemp("average") / "run"
    run(averaging(), folder)
    return folder


def averaging(**changes):
    return settings({**PHASE, "epochs": EPOCHS, "average_best": MOST, **changes}, views=1)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_phase_ends_with_the_greedy_average_of_the_epochs_of_shorter_runs(whole, tmp_path):
    epochs = []
    for count in range(1, EPOCHS + 1):
        config = settings({**PHASE, "epochs": count, "restore_best": False}, views=1)
        checkpoints = run(config, tmp_path / str(count))[1]
        number = checkpoints.newest().number
        epochs.append(checkpoints.variables(number, split(NETWORK)[1]))
    names = ("head/kernel", "head/bias")
    sizes = [epochs[0][name].size for name in names]
    images, labels = validation(config)
    graph = split(NETWORK)[0]
    features = jax.jit(lambda x: merge(graph, epochs[0])(x, stop="head"))(images)

    def measure(point):
        kernel, bias = np.split(np.asarray(point, np.float32), sizes[:1])
        logits = np.asarray(features, np.float32) @ kernel.reshape(-1, 10) + bias
        logs = np.asarray(jax.nn.log_softmax(logits))
        accuracy = (logs.argmax(1) == labels).mean()
        return accuracy, logs[np.arange(len(labels)), labels].mean()

    flat = [np.concatenate([np.ravel(e[name]) for name in names]) for e in epochs]
    best = sorted(flat, key=measure, reverse=True)[:MOST]
    expected, count = brute_force(best, measure)
    assert count > 1
    checkpoints = opened(whole)[1]
    progress = checkpoints.newest()
    assert progress.best_number == progress.number
    found = checkpoints.variables(progress.number, split(NETWORK)[1])
    got = np.concatenate([np.ravel(found[name]) for name in names])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(progress.best_accuracy, measure(expected)[0])
    assert progress.best_accuracy >= max(measure(epoch)[0] for epoch in flat)
    noted = RunDirectory(whole).metadata().averaged[config.phases[0].name]
    np.testing.assert_allclose(np.mean([flat[n - 1] for n in noted], axis=0), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("text", "stops"), [("p0 3/5", 1), ("val_accuracy", EPOCHS)])
def test_a_run_that_averages_is_continued_with_the_same_bits(whole, tmp_path, text, stops):
    """The second text comes at the end of each epoch, the last of which is before the average."""
    for _ in range(stops):
        with pytest.raises(Interrupted):
            run(averaging(), tmp_path / "run", watched(text, stop))
    before = opened(tmp_path / "run")[1].newest()
    assert before.best_number is not None
    assert before.best_number != before.number or not before.finished(averaging().phases[0])
    run(averaging(), tmp_path / "run")
    assert bits(tmp_path / "run") == bits(whole)
    assert metrics(tmp_path / "run") == metrics(whole)


def stop():
    os.kill(os.getpid(), signal.SIGINT)


def validation(config):
    """All validation images and labels."""
    val = open_data(config).val
    loader = Loader(
        val,
        image_size=32,
        resize="stretch",
        batch_size=len(val),
        seed=0,
        shuffle=False,
        memory_bytes=0,
    )
    (batch,) = loader.epoch(0)
    return batch.inputs, batch.labels
