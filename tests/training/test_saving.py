"""What is saved when: within an epoch, before an error, and never a state that diverged."""

import contextlib
import re
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from full_disk import files_no_longer_than
from small_run import RULES, bits, metrics, opened, run, settings, watched

from jaxtl.errors import Interrupted, UserError
from jaxtl.sweeps.failure import Failure
from jaxtl.training import saving
from jaxtl.training.divergence import Diverged
from jaxtl.training.evaluation import Evaluator

pytestmark = pytest.mark.usefixtures("small")

HEAD = {"train": {"head/.*": 1.0}}
# Steps on cached features run in chunks of 60, and those on images one by one.
KINDS = {
    "features": (
        {**HEAD, "epochs": 2, "lr": 1e-3},
        {"data": {"source": "digits", "batch_size": 8}},
    ),
    "images": (
        {"train": RULES, "epochs": 2, "lr": 1e-3, "batch_norm": "train"},
        {"augment": {"horizontal_flip": True}, "views": 0},
    ),
}


@pytest.mark.parametrize("kind", ["features", pytest.param("images", marks=pytest.mark.slow)])
def test_checkpoints_within_an_epoch_change_no_bit(tmp_path, kind):
    """Each of them reads on from the middle of the epoch: chunks, dropout and views stay."""
    phase, sections = KINDS[kind]
    run(settings(phase, **sections), tmp_path / "seldom")
    run(settings(phase, **sections, checkpoint={"every_minutes": 1e-9}), tmp_path / "often")
    assert len(metrics(tmp_path / "seldom")) == 4
    assert metrics(tmp_path / "often") == metrics(tmp_path / "seldom")
    assert bits(tmp_path / "often") == bits(tmp_path / "seldom")


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("features", 1e9),
        pytest.param("images", 1e9, marks=pytest.mark.slow),
        pytest.param("images", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_stops_after_any_epoch_goes_on_to_the_same_bits(
    tmp_path, monkeypatch, kind, seconds
):
    monkeypatch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", seconds)
    phase, sections = KINDS[kind]
    config = settings(phase, {**phase, "lr": 1e-4}, **sections)
    run(config, tmp_path / "whole")
    for text in ("p0 1/2", "p0 2/2", "p1 1/2", "p1 2/2"):
        with pytest.raises(Interrupted):
            run(config, tmp_path / "stopped", watched(text, ctrl_c))
    run(config, tmp_path / "stopped")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")


def all_arrays(workdir):
    """Every array that Orbax finds in the checkpoints of a run."""
    folders = [path.parent for path in (workdir / "checkpoints").rglob("_METADATA")]
    assert folders
    with ocp.StandardCheckpointer() as reader:
        return [leaf for folder in folders for leaf in jax.tree.leaves(reader.restore(folder))]


# Adam moves each of the head's 64 x 10 weights by the learning rate, whatever the gradient.
FAR_TOO_HIGH = {**HEAD, "epochs": 3, "lr": 2.56e36}


def test_a_phase_that_diverges_ends_the_run_and_is_never_saved(tmp_path):
    config = settings({**HEAD, "epochs": 2, "lr": 1e-3}, FAR_TOO_HIGH)
    with pytest.raises(Diverged, match=r"after step \d+ of phase p1; try a lower learning rate"):
        run(config, tmp_path / "run")
    newest = opened(tmp_path / "run")[1].newest()
    assert (newest.phase, newest.epoch) == (0, 2)
    assert all(np.isfinite(array).all() for array in all_arrays(tmp_path / "run"))


def test_a_step_that_ruins_the_variables_is_not_saved_before_the_loss_shows_it(tmp_path):
    """The only step of an epoch, whose loss is that of the variables before it."""
    phase = {**HEAD, "epochs": 2, "lr": 1e38, "optimizer": "sgd", "momentum": 0.9}
    data = {"source": "digits", "batch_size": 1504}  # all of the images
    with pytest.raises(Diverged, match="after step 1 of phase p0"):
        run(settings({**phase, "weight_decay": 1e5}, data=data), tmp_path / "run")
    assert opened(tmp_path / "run")[1].newest() is None


def test_the_best_epoch_is_kept_when_a_phase_diverges_later(tmp_path, monkeypatch):
    """Decay makes the weights grow by a factor of 1e3 with every step; 1e38 is the end."""
    monkeypatch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", 1e9)
    growing = {**HEAD, "epochs": 9, "lr": 1.0, "weight_decay": 1e3, "optimizer": "sgd"}
    with pytest.raises(Diverged, match="of phase p1"):
        run(settings({**HEAD, "lr": 1e-3}, growing), tmp_path / "run")
    lines = [line for line in metrics(tmp_path / "run") if line["phase"] == "p1"]
    best = max(lines[1::2], key=lambda line: (line["accuracy"], -line["loss"]))
    newest = opened(tmp_path / "run")[1].newest()
    assert (newest.step, newest.best_step) == (best["step"], best["step"])
    assert all(np.isfinite(array).all() for array in all_arrays(tmp_path / "run"))


@pytest.mark.parametrize(("lr", "batch_size", "step"), [(2e38, 1504, 2), (6.4e35, 256, 18)])
def test_a_checkpoint_that_the_next_loss_shows_to_be_ruined_stays_only_if_it_was_validated(
    tmp_path, monkeypatch, lr, batch_size, step
):
    """Or else the one before it does, and the same command ends in the same words."""
    monkeypatch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    phases = {**HEAD, "epochs": 2, "lr": 1e-3}, {**FAR_TOO_HIGH, "lr": lr}
    config = settings(*phases, data={"source": "digits", "batch_size": batch_size})
    said = []
    for _ in range(2):
        with pytest.raises(Diverged) as ended:
            run(config, tmp_path / "run")
        said.append(str(ended.value))
        newest = opened(tmp_path / "run")[1].newest()
        assert (newest.step, newest.batch) == (step, 0)  # the end of a phase begins the next
    assert said[0] == said[1]


@pytest.mark.parametrize("on_nan", ["stop", pytest.param("halve_lr", marks=pytest.mark.slow)])
def test_a_phase_begins_anew_whose_only_checkpoint_is_ruined(tmp_path, monkeypatch, on_nan):
    """It was written before the validation that shows it, by a process that then ended."""
    data, path = {"source": "digits", "batch_size": 1504}, tmp_path / "run"
    config = settings({**FAR_TOO_HIGH, "lr": 2e38}, data=data, on_nan=on_nan)
    evaluate = Evaluator.evaluate

    def stopped(*arguments, **options):
        ctrl_c()
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", stopped)
        with pytest.raises(Interrupted):
            run(config, path)
    newest = opened(path)[1].newest()
    assert (newest.step, newest.batch) == (1, 1)
    words = {
        "stop": "try a lower learning rate",
        "halve_lr": "the same command begins phase p0 anew",
    }
    with pytest.raises(UserError, match=f"validation loss is .* after step 1 .*{words[on_nan]}"):
        run(config, path)
    assert opened(path)[1].newest() is None
    if on_nan == "halve_lr":
        whole = run(config, path)[1].newest()
        assert (whole.epoch, whole.halvings >= 1) == (3, True)


def test_a_signal_is_not_lost_where_the_run_cannot_be_saved(tmp_path):
    with contextlib.ExitStack() as until:

        def stop_on_a_full_disk():
            until.enter_context(files_no_longer_than(0))
            ctrl_c()

        with pytest.raises(Interrupted) as stopped:
            run(settings({**HEAD, "epochs": 9}), tmp_path, watched("p0 2/9", stop_on_a_full_disk))
    assert isinstance(stopped.value.__cause__, UserError | OSError)


HALVING = ({**HEAD, "epochs": 2, "lr": 1e-3}, FAR_TOO_HIGH | {"restore_best": False})


@pytest.fixture(scope="module")
def halved(small, tmp_path_factory):
    """A run whose second phase diverges until its learning rate is low enough, and what it said.

    It has no checkpoint within that phase, and so begins it again each time.
    """
    path = tmp_path_factory.mktemp("run") / "whole"
    out = watched("nothing", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", 1e9)
        run(settings(*HALVING, on_nan="halve_lr"), path, out)
    return path, out.file.getvalue()


def test_a_phase_that_diverges_begins_again_at_half_the_learning_rate(halved):
    path, said = halved
    newest = opened(path)[1].newest()
    assert 1 <= newest.halvings <= 10
    assert newest.lr_factor == 0.5**newest.halvings
    told = [line for line in said.splitlines() if "half the learning rate" in line]
    assert len(told) == newest.halvings
    assert "of phase p1; back to step 12, with half the learning rate: 1.28e+36" in told[0]
    assert [(line["phase"], line["epoch"], line["split"]) for line in metrics(path)] == [
        (phase, epoch, split)
        for phase, epochs in (("p0", 2), ("p1", 3))
        for epoch in range(1, epochs + 1)
        for split in ("train", "val")
    ]


def test_the_lower_learning_rate_is_that_of_a_run_that_began_with_it(halved, tmp_path):
    path, _ = halved
    factor = opened(path)[1].newest().lr_factor
    first, second = HALVING
    run(settings(first, {**second, "lr": second["lr"] * factor}), tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(path)
    assert bits(tmp_path / "run") == bits(path)


def test_a_run_that_stops_goes_on_with_the_lower_learning_rate(halved, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", 1e9)
    config = settings(*HALVING, on_nan="halve_lr")
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", watched("p1 2/3", ctrl_c))
    out = watched("nothing", None)
    run(config, tmp_path / "run", out)
    assert "half the learning rate" not in out.file.getvalue()
    assert metrics(tmp_path / "run") == metrics(halved[0])
    assert bits(tmp_path / "run") == bits(halved[0])


def test_the_next_phase_has_its_own_learning_rate(tmp_path):
    config = settings(FAR_TOO_HIGH, {**HEAD, "lr": 1e-3}, on_nan="halve_lr")
    newest = run(config, tmp_path / "run")[1].newest()
    assert (newest.phase, newest.lr_factor) == (1, 1.0)
    assert newest.halvings >= 1


def returns(out):
    """The steps that a run went back to."""
    return re.findall(r"back to step (\d+), with half", out.file.getvalue())


def test_a_phase_that_diverges_goes_back_to_its_newest_checkpoint(tmp_path, monkeypatch):
    """Which is its best epoch here, and none comes after it at any learning rate."""
    monkeypatch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    growing = {**HEAD, "epochs": 9, "lr": 1.0, "weight_decay": 1e5, "optimizer": "sgd"}
    out = watched("nothing", None)
    with pytest.raises(UserError, match="10 lower learning rates did not help") as caught:
        run(settings(growing, on_nan="halve_lr"), tmp_path / "run", out)
    assert Failure.of(caught.value).again  # the same command may do better
    assert returns(out) == ["6"] * 10
    lines = metrics(tmp_path / "run")
    assert len({(line["step"], line["split"]) for line in lines}) == len(lines)


@pytest.mark.parametrize(
    ("phases", "batch_size"), [((FAR_TOO_HIGH | {"lr": 2e38},), 1504), (HALVING, 256)]
)
def test_a_phase_goes_back_further_where_its_newest_checkpoint_is_ruined(
    tmp_path, monkeypatch, phases, batch_size
):
    """Its variables are finite, and the loss of the next step or of the validation is not."""
    monkeypatch.setattr(saving, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    data = {"source": "digits", "batch_size": batch_size}
    config = settings(*phases, on_nan="halve_lr", data=data)
    out = watched("back to step", ctrl_c)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", out)
    _, checkpoints = run(config, tmp_path / "run", out)
    start = 12 * (len(phases) - 1)  # steps
    assert set(returns(out)) == {str(start)}
    newest = checkpoints.newest()
    assert (newest.phase, newest.epoch) == (len(phases) - 1, 3)
    assert newest.lr_factor == 0.5**newest.halvings < 1
    assert [
        (line["phase"], line["epoch"], line["split"]) for line in metrics(tmp_path / "run")
    ] == [
        (f"p{index}", epoch, split)
        for index, phase in enumerate(phases)
        for epoch in range(1, phase["epochs"] + 1)
        for split in ("train", "val")
    ]
