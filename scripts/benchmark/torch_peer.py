"""PyTorch with timm: channels_last and the fused Adam, eager or by `torch.compile`.

timm pads stride-2 convolutions symmetrically where Keras does not; the weights are those of Keras
all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmark.protocol import CLASSES, LEARNING_RATE, Peer, Predict, Step


class TorchPeer(Peer):
    """The operations in PyTorch."""

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed."""
        torch.set_num_threads(os.cpu_count() or 1)
        if row.startswith("jpeg"):
            batches = torch.utils.data.DataLoader(
                _Jpegs(self.jpegs(), self.sizes.image_size),
                batch_size=self.sizes.batch,
                num_workers=os.cpu_count() or 1,
                persistent_workers=True,
            )
            return lambda: [len(batch) for batch in batches]
        network, (images, labels) = self._network(row), _tensors(*self.batch())
        if row == "forward":
            return lambda: _forward(network, images)
        step = _step(network, row)
        return lambda: step(images, labels)

    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh network: its training step, and its inference."""
        network = self._network(row)
        step = _step(network, row)

        def predict(images: np.ndarray) -> np.ndarray:
            return _forward(network.eval(), _tensors(images)[0]).numpy()

        return lambda images, labels: step(*_tensors(images, labels)), predict

    def _network(self, row: str) -> nn.Module:
        """Everything in inference mode except for `full`, and gradients for what trains."""
        network = timm.create_model("mobilenetv2_100", num_classes=CLASSES, bn_eps=1e-3)
        weights = load_file(self.folder / "timm.safetensors")
        absent, unknown = network.load_state_dict(weights, strict=False)
        assert not unknown
        assert all(name.startswith("classifier.") for name in absent)
        top = (*network.blocks[5][1:], network.blocks[6], network.conv_head, network.bn2)
        network.requires_grad_(row in ("full", "full_frozen"))
        for module in (network.classifier, *(top if row == "block_14" else ())):
            module.requires_grad_(True)
        return network.train(row == "full").to(memory_format=torch.channels_last)


class CompiledTorchPeer(TorchPeer):
    """The same by `torch.compile`."""

    def _network(self, row: str) -> nn.Module:
        return torch.compile(super()._network(row))


class _Jpegs(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], size: int):
        self._paths, self._size = paths, (size, size)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self._paths[index]) as image:
            return np.asarray(image.convert("RGB").resize(self._size, Image.Resampling.BILINEAR))


def _tensors(images: np.ndarray, *labels: np.ndarray) -> list[torch.Tensor]:
    """Images (B, 3, H, W) with the memory layout of (B, H, W, 3), and labels."""
    channels_last = torch.from_numpy(images).permute(0, 3, 1, 2)
    return [channels_last, *(torch.from_numpy(array).long() for array in labels)]


@torch.inference_mode()
def _forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return network(_normalised(images))


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(127.5).sub_(1)


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
