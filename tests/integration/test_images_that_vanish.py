"""A run whose images vanish in mid-epoch and come back ends with the bits of an undisturbed one."""

import json
import re
import threading

import pytest
from workplace import finish, measurements

FLAGS = (
    "--cfg.data.memory_gb=0",  # images are read in every epoch
    "--cfg.cache.disk_gb=0",
    "--cfg.views=0",
    "--cfg.augment.horizontal_flip=False",
    "--cfg.phases.finetune.epochs=1",
)


@pytest.mark.slow
def test_a_run_waits_for_an_image_that_is_moved_away_and_comes_back(workplace):
    image = workplace.path / "data" / "train" / "green" / "03.png"
    assert workplace.train("undisturbed", *FLAGS).code == 0
    given = ("--cfg", "tiny.py", "--workdir", "disturbed", *FLAGS)
    process = workplace.start("jaxtl.train", *given)
    shown, warned, away = [], threading.Event(), image.with_name(".away")

    def listen():
        for line in process.stderr:
            shown.append(line)
            if "trying again" in line:
                warned.set()

    listening = threading.Thread(target=listen)
    listening.start()
    for line in process.stdout:  # the first epoch is over: all headers have been read
        if line.startswith("head 1/2"):
            break
    image.rename(away)
    try:
        assert warned.wait(300), shown
    finally:
        away.rename(image)
    listening.join()
    assert process.wait(600) == 0, shown
    process.stdout.close()
    (warning,) = [line for line in shown if "trying again" in line]
    assert re.search(r"green/03\.png: cannot be read: No such file", warning)
    runs = [workplace.path / name for name in ("undisturbed", "disturbed")]
    assert measurements(runs[0]) == measurements(runs[1])


@pytest.mark.slow
def test_what_was_skipped_is_in_run_json_and_the_run_is_evaluated_on_the_rest(workplace):
    image = workplace.path / "data" / "val" / "green" / "03.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-500])
    try:
        flags = (*FLAGS, "--cfg.data.on_bad_image=skip", "--cfg.phases.head.epochs=1")
        ended = workplace.train("skipping", *flags)
        assert ended.code == 0, ended.err
        assert "skipped 1 of 18 images that cannot be used" in ended.err
        run = json.loads((workplace.path / "skipping" / "run.json").read_text())
        assert [each["path"] for each in run["skipped"]] == ["val/green/03.png"]
        assert run["skipped_images"] == 1
        assert run["skipped"][0]["reason"].startswith("damaged")
        assert run["data"]["val"]["images"] == 17
        evaluated = finish(workplace.start("jaxtl.evaluate", "--run", "skipping"))
        assert evaluated.code == 0, evaluated.err
        assert "Found 17 images" in evaluated.out
    finally:
        image.write_bytes(whole)
