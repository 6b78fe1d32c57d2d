"""PyTorch with timm, channels_last; `scripts/bench.py` starts it.

The fused Adam; eager, or compiled by torch_compiled_worker.py. timm pads stride-2 convolutions
symmetrically where Keras does not; the weights are those of Keras all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from benchmark.protocol import CLASSES, LEARNING_RATE, Predict, Setup, Step, serve

_KERAS_GROUP = "model_weights/mobilenetv2_1.00_160"


class TorchPeer:
    """The operations in PyTorch.

    Args:
        setup: what they work on.
        compiled: by `torch.compile`.
    """

    def __init__(self, setup: Setup, *, compiled: bool = False):
        self._compiled = compiled
        torch.set_num_threads(os.cpu_count() or 1)
        self._setup = setup

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed."""
        if row.startswith("jpeg"):
            return self._decoder()
        images, labels = self._setup.batch()
        network = self._network(row)
        if row == "forward":
            on_device = _channels_last(images)
            return lambda: _forward(network, on_device)
        step, batch = _step(network, row), (_channels_last(images), _labels(labels))
        return lambda: step(*batch)

    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh network, by its training step and its inference."""
        network = self._network(row)
        step = _step(network, row)

        def predict(images: np.ndarray) -> np.ndarray:
            return _forward(network.eval(), _channels_last(images)).numpy()

        return lambda images, labels: step(_channels_last(images), _labels(labels)), predict

    def _network(self, row: str) -> nn.Module:
        """Everything in inference mode except for `full`, and gradients for what trains."""
        network = timm.create_model("mobilenetv2_100", num_classes=CLASSES, bn_eps=1e-3)
        _load(network, self._setup.weights)
        trained = {
            "forward": [network.classifier],
            "frozen": [network.classifier],
            "full": [network],
            "block_14": [
                *network.blocks[5][1:],
                network.blocks[6],
                *(network.conv_head, network.bn2, network.classifier),
            ],
        }
        network.requires_grad_(False)
        for module in trained[row]:
            module.requires_grad_(True)
        network.train(row == "full").to(memory_format=torch.channels_last)
        return torch.compile(network) if self._compiled else network

    def _decoder(self) -> Callable[[], object]:
        paths = sorted(Path(self._setup.jpegs).iterdir())
        loader = torch.utils.data.DataLoader(
            _Jpegs(paths, self._setup.image_size),
            batch_size=self._setup.batch_size,
            num_workers=os.cpu_count() or 1,
            persistent_workers=True,
        )
        return lambda: [len(batch) for batch in loader]


class _Jpegs(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], size: int):
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self._paths[index]) as image:
            square = image.convert("RGB").resize((self._size,) * 2, Image.Resampling.BILINEAR)
            return np.asarray(square)


def _channels_last(images: np.ndarray) -> torch.Tensor:
    """(B, 3, H, W) with the memory layout of (B, H, W, 3)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _labels(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(labels).long()


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(127.5).sub_(1)


@torch.inference_mode()
def _forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return network(_normalised(images))


def _step(network: nn.Module, row: str) -> Callable[[torch.Tensor, torch.Tensor], float]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, LEARNING_RATE[row], fused=True)

    def step(images: torch.Tensor, labels: torch.Tensor) -> float:
        network.train(row == "full")
        loss = nn.functional.cross_entropy(network(_normalised(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _load(network: nn.Module, weights: str) -> None:
    """Gives the convolutions and BatchNorms, which are in the order of Keras, Keras' weights."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with h5py.File(weights) as file, torch.no_grad():
        for layer, name in zip(layers, _keras_names(), strict=True):
            arrays = {
                key.partition(":")[0]: torch.from_numpy(array[()])
                for key, array in file[f"{_KERAS_GROUP}/{name}"].items()
            }
            if isinstance(layer, nn.Conv2d):
                (kernel,) = arrays.values()
                order = (2, 3, 0, 1) if "depthwise" in name else (3, 2, 0, 1)
                layer.weight.copy_(kernel.permute(order))
            else:
                layer.weight.copy_(arrays["gamma"])
                layer.bias.copy_(arrays["beta"])
                layer.running_mean.copy_(arrays["moving_mean"])
                layer.running_var.copy_(arrays["moving_variance"])


def _keras_names() -> Iterator[str]:
    yield from ("Conv1", "bn_Conv1")
    for block in range(17):
        prefix = f"block_{block}" if block else "expanded_conv"
        for part in ("expand", "depthwise", "project") if block else ("depthwise", "project"):
            yield from (f"{prefix}_{part}", f"{prefix}_{part}_BN")
    yield from ("Conv_1", "Conv_1_bn")


if __name__ == "__main__":
    serve(TorchPeer)
