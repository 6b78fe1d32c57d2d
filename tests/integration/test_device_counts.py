"""A config gives the same training curve on any number of devices."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from workplace import STEPS, finish, measurements, saved_steps, wait_until

pytestmark = pytest.mark.slow

# A batch leaves one image on each of eight devices, and the last one of an epoch leaves three of
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


def test_a_run_saved_on_eight_devices_is_continued_and_used_on_one(curves, workplace):
    path = workplace.path / "eight-then-one"
    given = ("--cfg", "tiny.py", "--workdir", "eight-then-one", *FLAGS)
    process = workplace.start("jaxtl.train", *given, devices=8, saving_often=True)
    wait_until(lambda: len(measurements(path)) > 4 and 2 * STEPS in saved_steps(path), process)
    process.kill()
    finish(process)
    assert len(measurements(path)) < 8 or "result" not in (path / "run.json").read_text()
    continued = workplace.train("eight-then-one", *FLAGS, devices=1)
    assert continued.code == 0, continued.err
    assert re.search(
        "continuing eight-then-one in phase (head after epoch 2|finetune)", continued.out
    )
    for one, moved in zip(curves[1], measurements(path), strict=True):
        assert moved == one | {"loss": pytest.approx(one["loss"], rel=1e-4)}
    measured = workplace.run("jaxtl.evaluate", "--run", "on-8", devices=1)
    assert measured.code == 0, measured.err
    result = json.loads((workplace.path / "on-8" / "run.json").read_text())["result"]
    assert f" accuracy {result['accuracy']:.4f} " in measured.out.splitlines()[-1]
