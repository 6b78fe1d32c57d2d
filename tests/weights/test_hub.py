"""Weights come from a model hub once, and only such as suit the images that a network sees."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import refused_address
from hub_server import COMMIT, Hub, serving
from safetensors.numpy import save

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, build, split
from jaxtl.weights import WeightsRecord, create, hub

NAME = "mobilenet_v2"
WIDTH = 0.35
SOURCE = "hf:timm/mobilenetv2_035.some_in1k"
REPOSITORY = SOURCE.removeprefix("hf:")
# As timm writes it, and the numbers of torchvision's documentation.
CONFIG = {
    "architecture": "mobilenetv2_035",
    "num_classes": 3,
    "pretrained_cfg": {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
    },
}


@pytest.fixture(scope="module")
def weights() -> bytes:
    """What timm would publish of a network of 3 classes."""
    network = build(NAME, num_classes=3, width=WIDTH, convention="torch")
    variables = split(network)[1]
    state = {}
    for layer in REGISTRY[NAME].torch_layers(network, "timm") or []:
        if layer.kind == "batch_normalization":
            names = {"weight": "scale", "bias": "bias", "running_mean": "mean"}
            names |= {"running_var": "var"}
        else:
            names = {"weight": "kernel"} | ({"bias": "bias"} if layer.path == "head" else {})
        for theirs, ours in names.items():
            value = np.asarray(variables[f"{layer.path}/{ours}"])
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            state[f"{layer.name}.{theirs}"] = np.ascontiguousarray(value)
    return save(state)


@pytest.fixture
def server(weights) -> Iterator[Hub]:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights}
    with serving(Hub({REPOSITORY: files})) as server:
        yield server


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A function that sets the environment in which the hub's client is imported anew."""
    for variable in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def settings(**variables: str) -> None:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        for module in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            monkeypatch.delitem(sys.modules, module)

    return settings


@pytest.fixture
def online(settings, server) -> Hub:
    settings(HF_ENDPOINT=server.address)
    return server


@pytest.fixture
def file(weights, tmp_path) -> Path:
    """Another source of the same weights."""
    path = tmp_path / "mine.safetensors"
    path.write_bytes(weights)
    return path


def make(weights, **options) -> WeightsRecord:
    options = {"num_classes": 3, "width": WIDTH} | options
    _, record = create(NAME, weights=weights, **options)
    assert record is not None
    return record


def files_asked(server: Hub) -> list[str]:
    return [file for method, _, file in server.asked if method == "GET"]


def test_weights_are_downloaded_and_recorded(online, weights):
    network, record = create(NAME, weights=SOURCE, num_classes=3, width=WIDTH)
    assert record is not None
    assert json.loads(json.dumps(dataclasses.asdict(record))) == {
        "source": SOURCE,
        "file": "model.safetensors",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "convention": "torch",
        "head": "loaded",
        "left_out": [],
        "revision": COMMIT,
    }
    assert network.spec.convention.name == "torch"
    assert files_asked(online) == ["config.json", "model.safetensors"]
    assert {repository for _, repository, _ in online.asked} == {REPOSITORY}


def test_they_come_from_the_cache_the_second_time_even_offline(online, settings):
    first = make(SOURCE)
    asked = len(online.asked)

    assert make(SOURCE) == first
    assert len(online.asked) == asked
    settings(HF_ENDPOINT=refused_address(), HF_HUB_OFFLINE="1")
    assert make(SOURCE) == first


def test_the_next_source_is_used_with_a_warning_when_the_hub_cannot_be_reached(
    settings, file, caplog
):
    settings(HF_ENDPOINT=refused_address().rstrip("/"))
    record = make((SOURCE, str(file)))
    assert record.source == str(file)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith(f"weights: {SOURCE} could not be reached (")
    assert "Connection refused" in warning
    assert warning.endswith(f"; using {file}")


def test_a_hub_that_never_answers_is_not_waited_for(online, file, caplog, monkeypatch):
    online.silent = True
    monkeypatch.setattr(hub, "_ANSWER_TIMEOUT", 0.3)
    assert make((SOURCE, str(file))).source == str(file)
    assert f"{SOURCE} could not be reached (" in caplog.text
    assert "timed out" in caplog.text


def test_a_hub_that_is_broken_gives_way(online, file, caplog):
    online.broken = True
    assert make((SOURCE, str(file))).source == str(file)
    assert f"{SOURCE} could not be reached (" in caplog.text
    assert "500" in caplog.text


def test_offline_says_so(settings, file, caplog):
    settings(HF_HUB_OFFLINE="1")
    assert make((SOURCE, str(file))).source == str(file)
    assert f"{SOURCE} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it" in caplog.text


def test_a_repository_that_does_not_exist_gives_way(online, file, caplog):
    assert make(("hf:timm/mobilenetv3", str(file))).source == str(file)
    assert "hf:timm/mobilenetv3 does not exist on the hub, or needs a log-in" in caplog.text


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_such_files_gives_way(online, missing, file, caplog):
    del online.repositories[REPOSITORY][missing]
    assert make((SOURCE, str(file))).source == str(file)
    assert f"{SOURCE} does not have both model.safetensors and config.json" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            ["mean (0.5, 0.5, 0.5)", "deviation (0.5, 0.5, 0.5)", "mean (0.485, 0.456, 0.406)"],
        ),
        ({"std": [0.5, 0.5, 0.5]}, ["deviation (0.5, 0.5, 0.5)"]),
        ({"mean": [0.485]}, ["how its images were normalised"]),
        ({"mean": [float("nan")] * 3}, ["mean (nan, nan, nan)"]),
        ({"mean": "imagenet"}, ["how its images were normalised"]),
        ({"std": None}, ["how its images were normalised"]),
    ],
)
def test_weights_of_another_normalisation_are_refused_before_they_are_downloaded(
    online, file, change, words
):
    config = CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | change}
    online.repositories[REPOSITORY]["config.json"] = json.dumps(config).encode()
    with pytest.raises(UserError) as error:
        make((SOURCE, str(file)))
    assert [word for word in words if word not in str(error.value)] == []
    assert SOURCE in str(error.value)
    assert files_asked(online) == ["config.json"]


HUGE = b"""{"architecture": "mobilenetv2_035", "pretrained_cfg": {
    "mean": [1%s, 0, 0], "std": [1, 1, 1]}}""" % (b"0" * 400)


@pytest.mark.parametrize(
    "config", [b"{}", b"[]", b"<html>", b'{"pretrained_cfg": null}', HUGE, b"[" * 10**6]
)
def test_a_config_that_says_nothing_of_images_is_refused(online, config, file):
    online.repositories[REPOSITORY]["config.json"] = config
    with pytest.raises(UserError, match=r"config\.json of hf:timm/.* does not say what network"):
        make((SOURCE, str(file)))


def test_a_damaged_file_is_an_error_and_no_reason_to_go_on(online, file):
    online.repositories[REPOSITORY]["model.safetensors"] = b"no weights"
    with pytest.raises(UserError, match="is damaged, or is no safetensors file"):
        make((SOURCE, str(file)))


class TestARevision:
    OLD = "abcdef0123456789abcdef0123456789abcdef01"

    @pytest.fixture(autouse=True)
    def revisions(self, online):
        online.revisions |= {"v1.0": self.OLD, self.OLD: self.OLD}

    @pytest.mark.parametrize("revision", ["v1.0", OLD])
    def test_is_taken_and_its_commit_is_recorded(self, online, revision):
        record = make(f"{SOURCE}@{revision}")
        assert (record.source, record.revision) == (f"{SOURCE}@{revision}", self.OLD)
        assert set(online.revisions_asked) == {revision, self.OLD}

        asked = len(online.asked)
        assert make(f"{SOURCE}@{revision}") == record
        assert len(online.asked) == asked

    def test_is_not_served_from_what_the_cache_has_of_another(self):
        assert make(SOURCE).revision == COMMIT
        assert make(f"{SOURCE}@v1.0").revision == self.OLD
        assert make(SOURCE).revision == COMMIT

    def test_is_the_same_for_the_config_and_the_weights(self, online):
        online.moves_to = self.OLD
        assert make(SOURCE).revision == COMMIT
        assert online.revisions["main"] == self.OLD
        assert online.revisions_asked[-1] == COMMIT

    def test_that_does_not_exist_is_named_and_gives_way(self, online, file, caplog):
        assert make((f"{SOURCE}@v2", str(file))).source == str(file)
        assert f"{SOURCE}@v2 does not have a revision v2" in caplog.text

    @pytest.mark.parametrize("source", [f"{SOURCE}@", "hf:timm@v1", f"{SOURCE}@v1@v2"])
    def test_must_have_a_name(self, source):
        with pytest.raises(UserError, match="not a source of weights"):
            make(source)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"act_layer": "silu"}, ["act_layer='silu'"]),
        ({"output_stride": 16}, ["output_stride=16"]),
        ({"stem_size": 64, "in_chans": 3, "aa_layer": "blur"}, ["stem_size=64, aa_layer='blur'"]),
        ({"in_chans": 1}, ["in_chans=1"]),
        ({"global_pool": "max"}, ["global_pool='max'"]),
        (["silu"], ["does not say what network it is"]),
    ],
)
def test_weights_of_a_changed_network_are_refused_before_they_are_downloaded(
    online, file, arguments, words
):
    config = CONFIG | {"model_args": arguments}
    online.repositories[REPOSITORY]["config.json"] = json.dumps(config).encode()
    with pytest.raises(UserError) as error:
        make((SOURCE, str(file)))
    assert [word for word in words if word not in str(error.value)] == []
    assert files_asked(online) == ["config.json"]


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        {},
        # What timm writes of any network, and what changes training alone.
        {"in_chans": 3, "num_classes": 3, "global_pool": "avg"},
        {"drop_rate": 0.2, "drop_path_rate": 0.1, "output_stride": 32},
    ],
)
def test_arguments_that_change_nothing_are_let_pass(online, arguments):
    config = CONFIG | {"model_args": arguments}
    online.repositories[REPOSITORY]["config.json"] = json.dumps(config).encode()
    assert make(SOURCE).source == SOURCE


def test_weights_of_another_network_are_refused_before_they_are_downloaded(online):
    with pytest.raises(UserError, match=f"{SOURCE} holds mobilenetv2_035, not resnet50: take"):
        create("resnet50", weights=SOURCE, num_classes=3)
    assert files_asked(online) == ["config.json"]


def test_a_width_that_timm_does_not_have_gives_way_without_a_question(online, file):
    with pytest.raises(UserError, match=r"cannot have mobilenet_v2 of width 1\.3: timm has none"):
        create(NAME, weights=SOURCE, num_classes=3, width=1.3)
    assert online.asked == []


def test_a_cache_that_cannot_be_written_is_named(online, tmp_path, settings):
    (tmp_path / "a file").write_text("not a folder")
    settings(HF_HOME=str(tmp_path / "a file" / "hub"))
    with pytest.raises(UserError, match=r"the cache of the hub cannot be used: .*a file"):
        make(SOURCE)
