"""The range test of learning rates."""

import re

import numpy as np
import pytest
from rich.console import Console

from jaxtl import lr_find
from jaxtl.config.config_file import load
from jaxtl.errors import UserError
from jaxtl.training.lr_finder import range_test
from jaxtl.training.lr_range import _found, _smoothed
from jaxtl.training.setup import open_data

QUIET = Console(quiet=True)
SMALL = {
    "model.width": "0.35",
    "model.image_size": "32",
    "model.weights": "None",
    "data.batch_size": "64",
}


def test_losses_are_smoothed_as_by_a_corrected_moving_average():
    losses = list(np.random.default_rng(0).uniform(1, 3, 20))
    weights = 0.98 ** np.arange(20)[::-1]
    expected = [np.average(losses[: n + 1], weights=weights[19 - n :]) for n in range(20)]
    np.testing.assert_allclose(_smoothed(losses), expected)


def test_the_steepest_descent_before_the_lowest_loss_is_suggested():
    lrs = np.geomspace(1e-7, 10, 100)
    falls = 2 - np.tanh(2 * np.log(lrs / 1e-3)) + 40 * np.maximum(np.log10(lrs), -0.5) + 20
    assert _found(lrs, falls).suggestion == pytest.approx(1e-3, rel=0.2)
    with pytest.raises(UserError, match="does not fall"):
        _found(lrs, np.arange(100.0))


@pytest.mark.slow
def test_a_phase_is_tested_after_the_phases_before_it_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load("mnv2.py", {"model.image_size": "64", "phases.head.epochs": "1"})
    data = open_data(config)
    first, second = (range_test(config, data, name, QUIET) for name in ("head", "finetune"))
    for found in (first, second):
        assert 1e-5 < found.suggestion < 1
        assert found.losses.min() < 0.9 * found.losses[0]
    assert second.losses[0] < first.losses[0] - 0.5  # the head has learned
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no phase is called 'p7'"):
        range_test(config, data, "p7", QUIET)


@pytest.mark.slow
def test_the_command_prints_a_flag_and_draws_the_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [f"--cfg.{key}={value}" for key, value in SMALL.items()]
    assert lr_find.main(["--cfg", "mnv2.py", *flags]) == 0
    said = capsys.readouterr().out
    assert re.search(r"--cfg\.phases\.head\.lr=[\d.e-]+  \(lr_find\.svg\)", said)
    assert "<svg" in (tmp_path / "lr_find.svg").read_text()
    assert lr_find.main(["--cfg", "mnv2.py", "--plot", "curve.PNG", *flags]) == 0
    assert (tmp_path / "curve.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_curve_of_an_unknown_format_is_refused_before_it_is_measured():
    with pytest.raises(UserError, match=r"--plot curve\.txt: give a name that ends in \.svg"):
        lr_find.main(["--cfg", "mnv2.py", "--plot", "curve.txt"])
