"""Data and weights on an object store, a server of S3's protocol on this machine."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtl.config import Data
from jaxtl.data.loader import Loader
from jaxtl.data.packing import pack
from jaxtl.data.sources import absolute
from jaxtl.data.splits import open_splits
from jaxtl.errors import UserError
from jaxtl.objects import read_object
from jaxtl.runs.directory import RunDirectory

pytestmark = pytest.mark.slow

BUCKET = "s3://pictures"


@pytest.fixture(scope="module")
def store():
    """A client of boto3 for a store with an empty bucket."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        yield client
    server.stop()


def upload(store, folder, to):
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload_file(str(path), "pictures", f"{to}/{path.relative_to(folder)}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for kind in ("ant", "bee wasp"):
            for number in range(count):
                path = tmp_path / "data" / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(path)
    return tmp_path / "data"


def split(spec):
    return open_splits(Data(source=str(spec)))


def batches(source):
    load = Loader(
        source,
        image_size=9,
        resize="stretch",
        batch_size=4,
        seed=0,
        shuffle=True,
        memory_bytes=0,
    )
    return np.concatenate([batch.inputs for batch in load.epoch(1)])


def test_class_folders_on_a_store_are_the_same_data_as_on_a_disk(store, folder):
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    upload(store, folder, "same")
    here, there = split(folder), split(f"{BUCKET}/same/")
    for one, other in zip(here.named.values(), there.named.values(), strict=True):
        assert one.fingerprint == other.fingerprint
        np.testing.assert_array_equal(batches(one), batches(other))
    assert there.train.describe(0) == f"{BUCKET}/same/train/ant/0.png"
    assert absolute(f"{BUCKET}/same") == f"{BUCKET}/same"


def test_an_object_that_is_replaced_is_noticed_and_others_are_not_read_again(store, folder, caplog):
    upload(store, folder, "replaced")
    before = split(f"{BUCKET}/replaced").train.fingerprint
    path = folder / "train" / "ant" / "0.png"
    Image.new("RGB", (9, 9)).save(path)
    store.upload_file(str(path), "pictures", "replaced/train/ant/0.png")
    caplog.clear()
    assert split(f"{BUCKET}/replaced").train.fingerprint != before
    expected = f"images changed since they were last read: {BUCKET}/replaced/train/ant/0.png"
    assert [r.getMessage() for r in caplog.records if r.name == "jaxtl"] == [expected]
    requests = [message for message in caplog.messages if "GET /pictures/replaced/" in message]
    assert len(requests) == 1  # as the server says


def test_an_object_that_vanishes_is_named(store, folder):
    upload(store, folder, "gone")
    train = split(f"{BUCKET}/gone").train
    store.delete_object(Bucket="pictures", Key="gone/train/ant/0.png")
    with pytest.raises(UserError, match=f"{BUCKET}/gone/train/ant/0.png: cannot be read"):
        batches(train)


def test_packed_data_on_a_store_are_copied_once(store, folder, tmp_path, caplog):
    pack(str(folder), tmp_path / "packed")
    upload(store, tmp_path / "packed", "packed")
    here = split(f"tfds:{tmp_path}/packed")
    with caplog.at_level(logging.INFO, "jaxtl"):
        there = [split(f"tfds:{BUCKET}/packed") for _ in range(2)]
    assert sum(message.startswith("copying") for message in caplog.messages) == 1
    for one in there:
        assert one.train.fingerprint == here.train.fingerprint
        assert one.val.fingerprint == here.val.fingerprint
        np.testing.assert_array_equal(batches(one.train), batches(here.train))


def test_what_is_not_there_is_refused_in_one_line(store):
    for spec in (f"{BUCKET}/nothing", "s3://no-such-bucket/x", f"tfds:{BUCKET}/nothing"):
        with pytest.raises(UserError) as caught:
            split(spec)
        assert "\n" not in str(caught.value)
        assert "nothing below" in str(caught.value) or "no such bucket" in str(caught.value)


def test_weights_are_read_from_a_store(store, tmp_path):
    from jaxtl.models import split as parts
    from jaxtl.weights import create_model
    from jaxtl.weights.write import write_weights

    network = create_model("mobilenet_v1", width=0.25, image_size=32, seed=3)
    write_weights(network, tmp_path / "w.h5")
    store.upload_file(str(tmp_path / "w.h5"), "pictures", "w.h5")
    assert read_object(f"{BUCKET}/w.h5") == (tmp_path / "w.h5").read_bytes()
    again = create_model("mobilenet_v1", width=0.25, image_size=32, weights=f"{BUCKET}/w.h5")
    for path, value in parts(network)[1].items():
        np.testing.assert_array_equal(value, parts(again)[1][path])
    with pytest.raises(UserError, match="does not exist"):
        create_model("mobilenet_v1", width=0.25, weights=f"{BUCKET}/other.h5")


def test_without_the_package_one_line_says_what_to_install(tmp_path):
    (tmp_path / "s3fs.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-m", "jaxtl.check", "--data", "s3://pictures/x"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{':'.join(filter(None, sys.path))}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: s3://pictures/x needs: pip install 'jaxtl[s3]'\n"


def test_a_run_directory_on_a_store_is_refused():
    with pytest.raises(UserError, match="s3://pictures/run: a run directory is on a disk"):
        RunDirectory(Path("s3://pictures/run"))
