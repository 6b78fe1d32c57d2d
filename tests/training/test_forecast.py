"""What the steps of a config would cost, on simulated devices in place of described ones."""

import jax
import pytest
from small_network import FEATURES
from small_run import NETWORK, RULES, settings

from jaxtl.errors import UserError
from jaxtl.forecast.target import target
from jaxtl.models import split
from jaxtl.training.forecast import forecast

IMAGES = (1437, 360)

pytestmark = pytest.mark.usefixtures("small")


def forecast_of(*phases, images=IMAGES, **sections):
    config = settings(*phases, **sections)
    return forecast(config, target("tpu:v5e-8"), jax.devices(), classes=10, images=images)


def test_a_phase_on_cached_activations_has_three_steps_and_adds_up_its_head():
    (phase,) = forecast_of({"train": {"head/.*": 1.0}, "batch_norm": "frozen", "epochs": 2})
    assert "the frozen stages run once" in phase.inputs
    training, validation, frozen_pass = phase.steps
    names = [step.name for step in phase.steps]
    assert names == ["training", "validation", "frozen pass"]
    assert (training.images, frozen_pass.images) == (256, 256 * 8)
    head = sum(v.size for path, v in split(NETWORK)[1].items() if path.startswith("head/"))
    # Four metrics, and the number of valid images for the loss.
    assert training.program.all_reduced_bytes == 4 * (head + 4 + 1)
    assert validation.program.all_reduces == frozen_pass.program.all_reduces == 0
    # A matrix product forwards, and two backwards for the kernel alone: no gradient goes further.
    assert training.program.operations == 2 * (2 * 256 // 8 * FEATURES * 10)
    # The table of activations lies on every device.
    assert training.program.argument_bytes > IMAGES[0] * FEATURES * 4
    assert training.largest_batch > 256


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match="does not divide by 8 devices"):
        forecast_of({"train": RULES}, data={"source": "digits", "batch_size": 12})


def test_without_validation_images_a_cached_phase_has_no_validation():
    head_only = {"train": {"head/.*": 1.0}, "batch_norm": "frozen", "epochs": 2}
    (phase,) = forecast_of(head_only, images=(IMAGES[0], 0))
    assert [step.name for step in phase.steps] == ["training", "frozen pass"]
