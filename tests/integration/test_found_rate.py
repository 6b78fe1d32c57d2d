"""A run whose learning rate is found when a phase begins."""

import re

import numpy as np
import pytest

from jaxtl.runs.checkpoints import Checkpoints

SHORT = {"phases.head.epochs": "2", "phases.finetune.epochs": "2"}


def found(run):
    return Checkpoints(run.path / "checkpoints", read_only=True).newest().lr_factor


@pytest.mark.slow
def test_a_phase_trains_at_the_rate_that_it_found(begin):
    auto = begin(SHORT | {"phases.head.lr": "auto"}, phases=1)
    (said,) = re.findall(r"^head: the loss falls fastest at learning rate (\S+)$", auto.said, re.M)
    assert float(said) == pytest.approx(found(auto), rel=0.05)
    given = begin(SHORT | {"phases.head.lr": repr(found(auto))}, phases=1)
    assert auto.losses == given.losses


@pytest.mark.slow
def test_each_phase_finds_its_own(begin):
    auto = begin(SHORT | {"phases.finetune.lr": "auto"})
    assert "finetune: the loss falls fastest" in auto.said
    assert "head: the loss falls" not in auto.said
    given = begin(SHORT | {"phases.finetune.lr": repr(found(auto))})
    np.testing.assert_array_equal(auto.losses, given.losses)
