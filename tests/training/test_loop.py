"""A whole run in this process, on eight simulated devices: frozen is frozen, and patience ends."""

import dataclasses
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array
from small_network import SMALL, small
from small_run import LIKE, MODEL, NETWORK, RULES, opened, run, settings

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Context, Network
from jaxtl.models.chain import Spec
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.training import saving, step
from jaxtl.training.parallel import data_parallel
from jaxtl.training.trainable import select_trainable

pytestmark = pytest.mark.usefixtures("small")


def limit_traces(monkeypatch, **most):
    """Fails a run that traces its steps more often, by the names of what is traced."""

    def limited(function, *arguments, **options):
        checked = chex.assert_max_traces(function, n=most[function.__name__])
        return data_parallel(checked, *arguments, **options)

    chex.clear_trace_counter()
    monkeypatch.setattr(step, "data_parallel", limited)


def test_what_is_frozen_keeps_its_bits_through_decay_clipping_and_momentum(tmp_path, monkeypatch):
    # Validation enters where its activations are kept, and the result is measured on images.
    limit_traces(monkeypatch, train_steps=1, feature_step=1, predict_step=2)
    config = settings(
        {
            "train": RULES,
            "optimizer": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "batch_norm": "train",
            "restore_best": False,
        },
        augment={"horizontal_flip": True},
    )
    _, checkpoints = run(config, tmp_path / "run")
    before = checkpoints.initial(LIKE)
    after = checkpoints.variables(checkpoints.newest().number, LIKE)
    changing = select_trainable(NETWORK, RULES, "train").variables
    assert {path.partition("/")[0] for path in changing} == {"head", "top", "block_14", "block_16"}
    for path in LIKE:
        same = np.asarray(before[path]).tobytes() == np.asarray(after[path]).tobytes()
        assert same == (path not in changing), path


@dataclass(frozen=True)
class Ended:
    directory: RunDirectory
    checkpoints: Checkpoints


@pytest.fixture(scope="module")
def patient(small, tmp_path_factory):
    """The same run with a checkpoint after every epoch, and with none but those that must be.

    A learning rate of 1e-12 changes no prediction, so nothing gets better than the first epochs.
    """
    config = settings(
        {"train": {"head/.*": 1.0}, "epochs": 2, "lr": 1e-3},
        {"train": {"head/.*": 1.0}, "epochs": 9, "lr": 1e-12, "patience": 2},
    )
    runs = {}
    for seconds in (0.0, 1e9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", seconds)
            runs[seconds] = Ended(*run(config, tmp_path_factory.mktemp("run") / "run"))
    return runs


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_patience_ends_a_phase_and_its_best_parameters_go_on(patient, seconds):
    directory, checkpoints = patient[seconds].directory, patient[seconds].checkpoints
    lines = [line for line in read_metrics(directory.metrics) if line["split"] == "val"]
    second = [line for line in lines if line["phase"] == "p1"]
    best = max(second, key=lambda line: (line["accuracy"], -line["loss"]))
    assert len(second) < 9
    newest = checkpoints.newest()
    assert newest.stale == 2
    assert newest.best_step == best["step"]
    result = directory.metadata().result
    assert result["accuracy"] == best["accuracy"]
    assert result["loss"] == pytest.approx(best["loss"], rel=1e-6)


def test_how_often_checkpoints_are_written_changes_no_result(patient):
    """The best epoch of the second phase is not its last, and without a checkpoint of its own it
    has to be remembered."""
    often, seldom = patient.values()
    newest = often.checkpoints.newest()
    assert newest == seldom.checkpoints.newest()
    assert newest.best_step < newest.step
    assert often.directory.metadata().result == seldom.directory.metadata().result
    for number in (newest.best_number, newest.number):
        chex.assert_trees_all_equal(
            *(ended.checkpoints.variables(number, LIKE) for ended in (often, seldom))
        )


def test_a_phase_that_ends_with_its_last_epoch_saves_no_best_one_between(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", 1e9)
    head = {"train": {"head/.*": 1.0}, "restore_best": False}
    config = settings({**head, "lr": 1e-3}, {**head, "epochs": 4, "lr": 1e-12})
    directory, checkpoints = run(config, tmp_path / "run")
    newest = checkpoints.newest()
    assert newest.best_step < newest.step
    kept = {int(path.name) for path in (directory.checkpoints / "steps").iterdir()}
    assert kept == {13, newest.number}  # the ends of both phases


def test_a_run_without_its_metadata_is_refused_and_keeps_its_checkpoints(tmp_path):
    config = settings({"train": {"head/.*": 1.0}})
    directory, checkpoints = run(config, tmp_path / "run")
    newest = checkpoints.newest()
    (directory.path / "run.json").unlink()
    with pytest.raises(UserError, match=r"no run in .*: it has no run\.json"):
        run(config, tmp_path / "run")
    assert Checkpoints(directory.checkpoints, read_only=True).newest() == newest


@pytest.mark.slow
def test_a_phase_traces_its_steps_once_however_many_epochs_there_are(tmp_path, monkeypatch):
    limit_traces(monkeypatch, train_steps=2, predict_step=3, feature_step=4)
    phases = ({"train": {"head/.*": 1.0}}, {"train": RULES, "batch_norm": "train"})
    config = settings(
        *({"epochs": 3, **phase} for phase in phases),
        augment={"horizontal_flip": True},
        views=2,  # cached
    )
    _, checkpoints = run(config, tmp_path / "run")
    assert checkpoints.newest().step == 6 * 6  # epochs, and batches in each


class HungryPool(nnx.Module):
    """A stage that needs four gigabytes for each image of a validation, and none to train."""

    def __call__(self, x: Array, context: Context) -> Array:
        features = x.mean(axis=(1, 2))
        if context.keys is None:  # no dropout
            many = jax.lax.iota(np.float32, 2**30)
            features += jnp.einsum("bi,i->b", jnp.sin(features[:, :1] + many), many)[:, None]
        return features


def hungry(spec: Spec) -> Network:
    network = small(spec)
    network.pool = HungryPool()
    return network


@pytest.mark.slow
def test_too_little_memory_for_a_validation_is_not_taken_for_that_of_a_step(tmp_path, monkeypatch):
    names = {"hungry": SMALL.names["small"]}
    monkeypatch.setitem(REGISTRY, "hungry", dataclasses.replace(SMALL, names=names, build=hungry))
    config = settings({"train": {".*": 1.0}}, model={**MODEL, "name": "hungry"})
    with pytest.raises(UserError, match="there is too little memory; try a smaller"):
        run(config, tmp_path / "run")
    saved = opened(tmp_path / "run")[1].newest()
    assert (saved.epoch, saved.batch) == (0, 6)


def test_a_loss_that_is_no_number_ends_the_run_and_says_what_to_do(tmp_path):
    config = settings({"train": {".*": 1.0}, "optimizer": "sgd", "lr": 1e30})
    with pytest.raises(UserError, match=r"the training loss is .* of phase p0; try a lower"):
        run(config, tmp_path / "run")
