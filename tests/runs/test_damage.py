"""Files of a real run are damaged in every way: never other numbers without a word."""

import io
import json
import logging
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from small_network import small_network

from jaxtl.config import Config
from jaxtl.errors import UserError
from jaxtl.models import split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.progress import Progress
from jaxtl.training.optimizer import hyperparameters, optimizer
from jaxtl.training.predictor import load_run
from jaxtl.training.setup import open_data, train
from jaxtl.training.trainable import select_trainable

pytestmark = pytest.mark.usefixtures("small")

HEAD = {"head/.*": 1.0}
CONFIG = Config.model_validate(
    {
        "model": {"name": "small", "image_size": 32, "weights": None},
        "data": {"source": "digits", "batch_size": 256},
        "phases": (
            {"name": "a", "epochs": 1, "train": HEAD, "lr": 1e-3},
            {"name": "b", "epochs": 1, "train": HEAD, "lr": 1e-3},
        ),
    }
)
NETWORK = small_network(num_classes=10)
LIKE = split(NETWORK)[1]
TRAINABLE = select_trainable(NETWORK, HEAD, "frozen")
OLDER, NEWEST = 13, 25  # at the end of each phase, six steps long


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def optimizer_state():
    phase = CONFIG.phases[0]
    parameters = {path: np.zeros(LIKE[path].shape, np.float32) for path in TRAINABLE.labels}
    return optimizer(phase, TRAINABLE, 6, hyperparameters(phase, 0, 0)).init(parameters)


@dataclass(frozen=True)
class Seen:
    """All that a run directory gives."""

    progress: Progress
    variables: list[bytes]
    optimizer: list[bytes]
    initial: list[bytes]


def read(folder: Path) -> Seen:
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        newest = checkpoints.newest()
        return Seen(
            newest,
            bits(checkpoints.variables(newest.number, LIKE)),
            bits(checkpoints.optimizer(newest.number, optimizer_state())),
            bits(checkpoints.initial(LIKE)),
        )
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    """A run, and what is to be read of it: with both checkpoints, and with the older one alone."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(CONFIG, open_data(CONFIG), folder, Console(quiet=True))
    whole = read(folder)
    older = folder.with_name("older")
    shutil.copytree(folder, older)
    shutil.rmtree(older / "checkpoints" / "steps" / str(NEWEST))
    return folder, whole, read(older)


def flipped(file, chance):
    data = bytearray(file.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def cut(file, chance):
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def emptied(file, chance):
    file.write_bytes(b"")


def deleted(file, chance):
    file.unlink()


def damage(run, tmp_path, how, each, seed, inside="."):
    """Yields, for each file of the checkpoints and so many times, a run with that file damaged."""
    folder = run[0]
    chance = random.Random(seed)
    files = [f for f in sorted((folder / "checkpoints" / inside).rglob("*")) if f.is_file()]
    assert len(files) > 5
    for file in files:
        for number in range(each if file.stat().st_size else 0):
            copy = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
            shutil.copytree(folder, copy)
            how(copy / file.relative_to(folder), chance)
            yield copy, file.relative_to(folder), number
            shutil.rmtree(copy)


def assert_nothing_other(run, copy, caplog):
    """Reads a damaged run: it gives what was written, or what the checkpoint before it held and a
    line that names the damaged one, or is refused in one line."""
    _, whole, older = run
    caplog.clear()
    refusal = None
    try:
        seen = read(copy)
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        return "refused"
    said = [record for record in caplog.records if record.name == "jaxtl"]
    if seen == older:
        (line,) = said
        assert f"steps/{NEWEST}" in line.getMessage()
        assert "\n" not in line.getMessage()
        return "older"
    assert seen == whole
    assert not said
    return "whole"


@pytest.mark.parametrize(
    "how", [flipped, *(pytest.param(how, marks=pytest.mark.slow) for how in (cut, deleted))]
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(
    run, tmp_path, caplog, how
):
    caplog.set_level(logging.WARNING, "jaxtl")
    damaged = damage(run, tmp_path, how, 1, 1, inside=f"steps/{NEWEST}")
    ends = {assert_nothing_other(run, copy, caplog) for copy, *_ in damaged}
    assert "older" in ends
    assert ends <= {"older", "whole"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [cut, emptied, deleted])
def test_a_damaged_file_never_gives_other_numbers_without_a_word(run, tmp_path, caplog, how):
    caplog.set_level(logging.WARNING, "jaxtl")
    damaged = damage(run, tmp_path, how, 2, 1)
    ends = {assert_nothing_other(run, copy, caplog) for copy, *_ in damaged}
    assert {"older", "refused"} <= ends  # `initial` cannot be made again: it was random


@pytest.mark.slow
def test_no_bit_of_a_checkpoint_flips_without_a_word(run, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "jaxtl")
    ends = [
        assert_nothing_other(run, copy, caplog) for copy, *_ in damage(run, tmp_path, flipped, 5, 2)
    ]
    assert len(ends) > 125
    assert ends.count("older") > 12


@pytest.mark.slow
def test_swapped_files_never_give_other_numbers_without_a_word(run, tmp_path, caplog):
    """Files of the same name in two checkpoints, and the largest file of each with every other."""
    folder = run[0] / "checkpoints"
    caplog.set_level(logging.WARNING, "jaxtl")
    files = [f.relative_to(folder) for f in sorted(folder.rglob("*")) if f.is_file()]
    largest = sorted(files, key=lambda f: -(folder / f).stat().st_size)[:3]
    pairs = [(a, b) for a in files for b in files if a < b and a.name == b.name]
    pairs += [(a, b) for a in largest for b in files if a != b]
    assert len(pairs) > 40
    for number, (a, b) in enumerate(pairs):
        copy = tmp_path / str(number)
        shutil.copytree(run[0], copy)
        first, second = copy / "checkpoints" / a, copy / "checkpoints" / b
        first.rename(copy / "aside")
        second.rename(first)
        (copy / "aside").rename(second)
        assert_nothing_other(run, copy, caplog)
        shutil.rmtree(copy)


@pytest.mark.parametrize("part", [".", "variables", "optimizer", "progress"])
def test_a_part_of_another_checkpoint_is_no_part_of_this_one(run, tmp_path, caplog, part):
    caplog.set_level(logging.WARNING, "jaxtl")
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    steps = copy / "checkpoints" / "steps"
    shutil.rmtree(steps / str(NEWEST) / part)
    shutil.copytree(steps / str(OLDER) / part, steps / str(NEWEST) / part)
    assert assert_nothing_other(run, copy, caplog) == "older"


def newest_damaged(run, copy):
    shutil.copytree(run[0], copy)
    (copy / "checkpoints" / "steps" / str(NEWEST) / "optimizer" / "_METADATA").write_text("{")
    return copy


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_to_the_same_bits(run, tmp_path, caplog):
    copy = newest_damaged(run, tmp_path / "run")
    train(CONFIG, open_data(CONFIG), copy, Console(quiet=True))
    assert f"steps/{NEWEST}/optimizer is damaged" in caplog.text
    caplog.clear()
    assert read(copy) == run[1]
    assert not caplog.text


def test_the_end_of_a_phase_is_gone_back_to_though_its_best_epoch_is_older(run, tmp_path, caplog):
    """The first phase is at its best after its first epoch, the second after its only one."""
    phases = (CONFIG.phases[0].model_copy(update={"lr": 1e-12, "epochs": 3}), CONFIG.phases[1])
    config = CONFIG.model_copy(update={"phases": phases})
    copy = tmp_path / "run"
    train(config, open_data(config), copy, Console(quiet=True))
    whole = read(copy)
    steps = copy / "checkpoints" / "steps"
    best, older, newest = sorted(int(folder.name) for folder in steps.iterdir())
    assert (best, older, newest) == (OLDER, 37, whole.progress.number)
    (steps / str(newest) / "optimizer" / "_METADATA").write_text("{")
    load_run(copy)
    assert f"steps/{newest}/optimizer is damaged" in caplog.text
    train(config, open_data(config), copy, Console(quiet=True))
    assert read(copy) == whole


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_alone(run, tmp_path):
    copy = newest_damaged(run, tmp_path / "run")
    (copy / "checkpoints" / "steps" / str(OLDER) / "progress" / "metadata").unlink()
    before = sorted(copy.rglob("*"))
    for use in (load_run, lambda path: train(CONFIG, open_data(CONFIG), path, Console(quiet=True))):
        with pytest.raises(UserError, match="no checkpoint that is whole") as error:
            use(copy)
        assert "\n" not in str(error.value)
        assert "backup" in str(error.value)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("how", [flipped, deleted])
def test_initial_variables_without_their_digests_are_refused(run, tmp_path, how):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    how(copy / "checkpoints" / "initial.json", random.Random(0))
    checkpoints = Checkpoints(copy / "checkpoints", read_only=True)
    with pytest.raises(UserError, match="backup") as error:
        checkpoints.initial(LIKE)
    checkpoints.close()
    assert "\n" not in str(error.value)


def test_a_run_that_lost_its_checkpoints_says_that_it_begins_anew(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    shutil.rmtree(copy / "checkpoints" / "steps")
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(about | {"result": None}))
    (copy / "report.html").unlink()
    out = Console(file=io.StringIO(), width=1000)
    result = train(CONFIG, open_data(CONFIG), copy, out)
    assert f"{copy} has metrics and no checkpoint: its run begins anew\n" in out.file.getvalue()
    assert result == about["result"]


@pytest.mark.parametrize("lost", ["checkpoints/steps", "checkpoints"])
def test_a_complete_run_that_lost_its_checkpoints_does_not_begin_anew(run, tmp_path, lost):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    shutil.rmtree(copy / lost)
    lines = (copy / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="is a complete run without a checkpoint"):
        train(CONFIG, open_data(CONFIG), copy, Console(quiet=True))
    assert (copy / "metrics.jsonl").read_text() == lines


def test_a_damaged_best_checkpoint_is_refused_and_the_line_says_what_can_be_done(run, tmp_path):
    """The second phase is at its best before its last epoch."""
    copy = tmp_path / "run"
    phases = (
        CONFIG.phases[0],
        CONFIG.phases[1].model_copy(update={"lr": 1e-12, "epochs": 3}),
    )
    config = CONFIG.model_copy(update={"phases": phases})
    train(config, open_data(config), copy, Console(quiet=True))
    newest = read(copy).progress
    assert newest.best_number < newest.number
    best = copy / "checkpoints" / "steps" / str(newest.best_number)
    (best / "variables" / "manifest.ocdbt").write_bytes(b"")
    for use in (load_run, lambda path: train(config, open_data(config), path, Console(quiet=True))):
        with pytest.raises(
            UserError, match=rf"{newest.best_number}/variables is damaged.*backup"
        ) as error:
            use(copy)
        assert "\n" not in str(error.value)


def test_nothing_that_is_read_is_unpickled(run):
    """`pickle` tells an audit hook of each class that it looks up."""
    found, listening = [], [True]
    sys.addaudithook(lambda event, _: found.append(event) if listening[0] else None)
    read(run[0])
    load_run(run[0])
    listening[0] = False
    assert "open" in found
    assert "pickle.find_class" not in found
