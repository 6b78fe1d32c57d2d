"""A run leaves nothing behind in the process of its sweep."""

import gc
import io
import os
import threading

import jax
import pytest
from rich.console import Console
from workplace import write_images

from jaxtl import compare
from jaxtl.sweeps.sweep import sweep
from jaxtl.sweeps.variations import load_sweep

pytestmark = pytest.mark.slow

CONFIG = """
from jaxtl.config import Config, Data, Model, Phase
from jaxtl.sweeps.variations import grid

def get_config() -> Config:
    return Config(
        model=Model(name="small", width=1, image_size=32, weights=None),
        data=Data(source="data", batch_size=8),
        phases=(
            Phase(name="head", train={"head/.*": 1.0}, epochs=1),
            Phase(name="rest", train={".*": 1.0}, epochs=1, batch_norm="train"),
        ),
    )

def sweep():
    return grid({"seed": range(7)})
"""
HEADS = """
from jaxtl.config import Config, Data, Model, Phase
from jaxtl.sweeps.variations import grid

def get_config() -> Config:
    return Config(
        model=Model(name="small", width=1, image_size=32, weights=None),
        data=Data(source="data", batch_size=8),
        phases=(Phase(name="head", train={"head/.*": 1.0}, epochs=2),),
    )

def sweep():
    return grid({"seed": range(7), "phases.head.lr": (1e-2, 1e-3)})
"""


def held():
    """How much this process holds of what a run could leave behind."""
    gc.collect()
    return {
        "executables": len(jax.local_devices()[0].client.live_executables()),
        "arrays": len(jax.live_arrays()),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


class Watch(io.StringIO):
    """Counts what is held each time that a line announces the next job."""

    def __init__(self, announces):
        super().__init__()
        self.held, self._announces = [], announces

    def write(self, text):
        if self._announces(text):
            self.held.append(held())
        return super().write(text)


@pytest.mark.parametrize(
    ("config", "announcement"), [(CONFIG, "-seed="), (HEADS, "runs train together")]
)
def test_as_much_is_held_after_two_runs_as_after_six(
    small, tmp_path, monkeypatch, config, announcement
):
    write_images(tmp_path / "data" / "train", each=8, seed=1)
    write_images(tmp_path / "data" / "val", each=4, seed=2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swept.py").write_text(config)
    watch = Watch(lambda text: announcement in text and "  " not in text)
    sweep(load_sweep("swept.py", {}), tmp_path / "all", Console(file=watch, width=300))
    _, _, after_two, _, _, _, after_six = watch.held[:7]
    assert after_six == after_two


def test_a_comparison_holds_as_much_after_four_networks_as_after_two(tmp_path, monkeypatch):
    write_images(tmp_path / "data", each=8, seed=1)
    monkeypatch.chdir(tmp_path)
    models = ["mobilenet_v1@0.25", "mobilenet_v1@0.5", "mobilenet_v2@0.35", "mobilenet_v2@0.5"]
    given = ["--data", "data", "--image-size", "32", "--batch-size", "8", "--weights", "none"]
    after = []
    for count in (2, 4):
        some = ["--models", ",".join(models[:count]), "--out", f"all-{count}"]
        assert compare.main([*given, *some]) == 0
        after.append(held())
    assert after[0] == after[1]
