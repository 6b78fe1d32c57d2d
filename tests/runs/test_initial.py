"""Weights that are published are not stored with a run, and are read again: the same or none."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtl.errors import UserError
from jaxtl.models import build, definition
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.groups import Group
from jaxtl.runs.progress import Progress
from jaxtl.weights import Origin, load_weights, plan_network
from jaxtl.weights.write import write_weights

HEAD = ("head/bias", "head/kernel")


def bits(variables):
    return {path: np.asarray(value).tobytes() for path, value in variables.items()}


class Published:
    """A MobileNetV2 in the cache of weights, as if Keras had served it, and a run that began so."""

    def __init__(self, folder, width):
        self.folder, self.width = folder, width
        trunk = build("mobilenet_v2", num_classes=None, width=width, seed=5)
        name, _ = definition("mobilenet_v2").keras_file("mobilenet_v2", width, 96, False)
        self.file = folder / "cache" / "jaxtl" / "weights" / "keras" / Path(name).name
        self.file.parent.mkdir(parents=True)
        write_weights(trunk, folder / "trunk.h5", image_size=96)
        shutil.copy(folder / "trunk.h5", self.file)
        self.variables, self.origin = self.load("keras")

    def load(self, source):
        network = plan_network(
            "mobilenet_v2", num_classes=10, weights=source, width=self.width, fresh_head=True
        )
        network, variables, record = load_weights(
            network, source, image_size=96, fresh_head=True, seed=3
        )
        return variables, Origin.of(record, network, image_size=96, seed=3)


@pytest.fixture
def published(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Published(tmp_path, 0.35)


def saved(published, **options):
    checkpoints = Checkpoints(published.folder / "checkpoints")
    checkpoints.save_initial(published.variables, published.origin, **options)
    return checkpoints


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_head_alone_is_stored_and_all_comes_back_bit_for_bit(published):
    checkpoints = saved(published)
    about = json.loads((published.folder / "checkpoints" / "initial.json").read_text())
    assert sorted(about["arrays"]) == [*HEAD]
    assert size(published.folder / "checkpoints") < 80_000
    assert bits(checkpoints.initial(published.variables)) == bits(published.variables)
    checkpoints.close()


@pytest.mark.parametrize("full", [True, False])
def test_full_checkpoints_need_no_source(published, full):
    checkpoints = saved(published, full=full)
    published.file.write_bytes(b"\x89HDF\r\n\x1a\n and then another file")
    if full:
        assert bits(checkpoints.initial(published.variables)) == bits(published.variables)
    else:
        with pytest.raises(UserError, match="keras has another file now: its sha256 was") as error:
            checkpoints.initial(published.variables)
        assert "checkpoint.full=True" in str(error.value)
        assert "\n" not in str(error.value)
    checkpoints.close()


def test_a_source_that_cannot_be_had_is_named_in_one_line(published, monkeypatch):
    checkpoints = saved(published)
    published.file.unlink()
    monkeypatch.setattr("jaxtl.weights.sources.KERAS_ADDRESS", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match="cannot be read again: keras could not be") as error:
        checkpoints.initial(published.variables)
    assert "try again with a network connection" in str(error.value)
    assert "\n" not in str(error.value)
    checkpoints.close()


def test_a_head_that_is_damaged_is_drawn_again_and_a_line_says_so(published, caplog):
    saved(published).close()
    (published.folder / "checkpoints" / "initial" / "manifest.ocdbt").write_bytes(b"")
    reader = Checkpoints(published.folder / "checkpoints", read_only=True)
    assert bits(reader.initial(published.variables)) == bits(published.variables)
    assert "initial is damaged or incomplete" in caplog.text
    assert "it was made again" in caplog.text
    reader.close()
    writer = Checkpoints(published.folder / "checkpoints")
    assert bits(writer.initial(published.variables)) == bits(published.variables)
    caplog.clear()
    assert bits(writer.initial(published.variables)) == bits(published.variables)
    assert not caplog.text  # it is mended
    writer.close()


def test_damaged_variables_whose_source_is_another_file_now_are_refused(published):
    checkpoints = saved(published, full=True)
    shutil.rmtree(published.folder / "checkpoints" / "initial")
    published.file.write_bytes(published.file.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"initial is damaged.*cannot be made again.*backup"):
        checkpoints.initial(published.variables)
    checkpoints.close()


@pytest.mark.parametrize("name", [b"weights", b"caf\xe9"])
def test_variables_of_a_local_file_are_all_stored(published, caplog, name):
    folder = published.folder / os.fsdecode(name)  # one that is not UTF-8, too
    folder.mkdir()
    file = (published.folder / "trunk.h5").rename(folder / "trunk.h5")
    published.variables, published.origin = published.load(str(file))
    checkpoints = saved(published)
    about = json.loads((published.folder / "checkpoints" / "initial.json").read_text())
    assert about["arrays"].keys() == published.variables.keys()
    shutil.rmtree(published.folder / "checkpoints" / "initial")  # made again while it is there
    assert bits(checkpoints.initial(published.variables)) == bits(published.variables)
    assert "it was made again" in caplog.text
    file.unlink()
    assert bits(checkpoints.initial(published.variables)) == bits(published.variables)
    checkpoints.close()


def test_the_record_of_what_is_not_stored_is_damaged_by_any_bit(published):
    saved(published).close()
    file = published.folder / "checkpoints" / "initial.json"
    whole = file.read_bytes()
    for place in range(0, len(whole), 37):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        reader = Checkpoints(published.folder / "checkpoints", read_only=True)
        with contextlib.suppress(UserError):  # or else white space became other white space
            found = reader.initial(published.variables)
            assert bits(found) == bits(published.variables)
        reader.close()


def test_a_source_that_is_not_published_is_not_asked_for_what_is_missing(published):
    saved(published).close()
    file = published.folder / "checkpoints" / "initial.json"
    about = json.loads(file.read_text())
    del about["sha256"]
    about["origin"]["source"] = "/dev/zero.h5"
    file.write_text(json.dumps(about))
    reader = Checkpoints(published.folder / "checkpoints", read_only=True)
    with pytest.raises(UserError, match=r"initial\.json is damaged.*does not say where"):
        reader.initial(published.variables)
    reader.close()


def test_a_group_refers_to_its_source_too(published):
    trunk = {path: v for path, v in published.variables.items() if path not in HEAD}
    heads = {path: jnp.stack([published.variables[path]] * 3) for path in HEAD}
    (published.folder / "heads").mkdir()
    (published.folder / "run").mkdir()
    folder = published.folder / "heads" / "group"
    group = Group.write(folder, trunk, heads, published.origin, full=False)
    progress = Progress(step=1, epoch=1, best_loss=1.0)
    group.add(published.folder / "run" / "checkpoints", 2, 3, progress)
    assert size(folder) < 3 * 60_000
    reader = Checkpoints(published.folder / "run" / "checkpoints", read_only=True)
    assert bits(reader.variables(3, published.variables)) == bits(published.variables)
    reader.close()


def test_checkpoints_of_a_new_head_are_small(tmp_path, monkeypatch):
    """MobileNetV2 with ten classes has a head of 51 kB, and Adam's state is twice that."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    published = Published(tmp_path, 1.0)
    checkpoints = saved(published)
    rng = np.random.default_rng(0)
    progress = Progress()
    for step, accuracy in enumerate([0.9, 0.5, 0.6, 0.7], start=1):
        head = {p: jnp.asarray(rng.normal(size=published.variables[p].shape)) for p in HEAD}
        state = jax.tree.map(lambda a: a + 0.1, optax.adam(1e-3).init(head))
        noise = [rng.normal(size=leaf.shape) for leaf in jax.tree.leaves(state)]
        state = jax.tree.unflatten(jax.tree.structure(state), map(jnp.float32, noise))
        progress = Progress(**{**vars(progress), "step": step}).after_epoch(accuracy, 1.0, accuracy)
        checkpoints.save(progress, head, state)
    checkpoints.close()
    steps = [*(tmp_path / "checkpoints" / "steps").iterdir()]
    assert len(steps) == 3
    assert max(map(size, steps)) < 200_000
    assert size(tmp_path / "checkpoints") < 600_000
