"""Networks in jaxtl, and exported as ONNX, in float32 and in eight bits, in onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from benchmark.protocol import CLASSES, FLOAT, INT8, OURS, WEIGHTS, Predict, Timed
from jaxtl.cli import keep_compiled_programs
from jaxtl.exporting import onnx
from jaxtl.models import Network, split
from jaxtl.training.inference import make_predict_step
from jaxtl.training.parallel import replicate, shard
from jaxtl.weights import create_model

WEIGHTS_OF = {"mobilenet_v2": WEIGHTS, "resnet50": None}  # random where that source has none
_PAUSE = 1.0  # second: threads of onnxruntime spin for a while after a call


class OnnxPeer(Timed):
    """One of the three, of a network on a batch of noise: the row is `WHO/NETWORK/BATCH`."""

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed: from images to probabilities, or their logarithms."""
        who, name, batch = row.split("/")
        size = self.sizes.image_size
        images = np.random.default_rng(0).integers(0, 256, (int(batch), size, size, 3), np.uint8)
        classify = self._jaxtl(name) if who == OURS else self._onnx(self._file(who, name))
        return lambda: classify(images)

    def seconds(self) -> float:
        """One measurement, after which nothing computes any more."""
        measured = super().seconds()
        time.sleep(_PAUSE)
        return measured

    def export(self, name: str) -> None:
        """Writes both files of a network; the ranges of maps are those of the seed job's images."""
        size, file = self.sizes.image_size, self._file(FLOAT, name)
        onnx.write(self._network(name), file, size)
        images = np.load(self.folder / "seed.npz")["train_images"]
        onnx.quantize(file, self._file(INT8, name), images)

    def version(self) -> str:
        """That of onnxruntime."""
        return onnxruntime.__version__

    def _file(self, who: str, name: str) -> Path:
        return self.folder / f"{name}{'-int8' if who == INT8 else ''}.onnx"

    def _jaxtl(self, name: str) -> Predict:
        keep_compiled_programs()
        graph, variables = split(self._network(name))
        devices = jax.local_devices()
        variables = replicate(variables, devices)
        step: Any = make_predict_step(graph, devices=devices)
        return lambda images: np.asarray(step(variables, None, shard(images, devices)))

    def _network(self, name: str) -> Network:
        size = self.sizes.image_size
        return create_model(name, num_classes=CLASSES, weights=WEIGHTS_OF[name], image_size=size)

    @staticmethod
    def _onnx(file: Path) -> Predict:
        return onnx.load(file)
