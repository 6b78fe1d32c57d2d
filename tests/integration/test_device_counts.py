"""A config gives the same training curve on any number of devices."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from workplace import measurements

pytestmark = pytest.mark.slow

# A batch leaves one picture on each of eight devices, and the last one of an epoch leaves three of
# them with padding. The learning rate is low: normalising batches of eight, and of five, makes
# training chaotic enough to turn rounding into visible differences within few epochs.
FLAGS = ("--cfg.phases.finetune.epochs=2", "--cfg.phases.finetune.lr=1e-4")


@pytest.fixture(scope="module")
def curves(workplace):
    """The measurements of the same run on 1, 2 and 8 devices."""

    def train(devices):
        ended = workplace.train(f"on-{devices}", *FLAGS, devices=devices)
        assert ended.code == 0, ended.err
        return devices, measurements(workplace.path / f"on-{devices}")

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(train, (8, 1, 2)))


@pytest.mark.parametrize("devices", [2, 8])
def test_the_number_of_devices_does_not_change_what_is_learnt(curves, devices):
    assert len(curves[1]) == 8
    for one, many in zip(curves[1], curves[devices], strict=True):
        assert many == one | {"loss": pytest.approx(one["loss"], rel=1e-4)}


def test_the_run_records_its_devices(curves, workplace):
    text = (workplace.path / "on-8" / "run.json").read_text()
    assert all(f'"cpu:{number} ' in text for number in range(8))
