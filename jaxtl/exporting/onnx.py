"""ONNX, for onnxruntime and what else reads it; also with weights and maps of eight bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxtl.errors import UserError
from jaxtl.exporting.classifier import Classify
from jaxtl.files import unfinished
from jaxtl.models import Network
from jaxtl.tasks import Activation

# Activations too: one after a convolution only bounds the range of that.
_QUANTIZED = ["Conv", "Gemm", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "Concat"]
_BATCH = 32  # images at a time while ranges are measured


def write(
    network: Network, path: Path, image_size: int, activation: Activation = "softmax"
) -> None:
    """Writes a network as an ONNX model.

    Raises:
        UserError: a network of one's own has an operation that is not known here.
    """
    import onnx

    from jaxtl.exporting.onnx_graph import Unsupported, onnx_model

    try:
        onnx.save(onnx_model(network, image_size, activation), path)
    except Unsupported as error:
        raise UserError(
            f"{network.name} has {error}, which is not written as ONNX; write .stablehlo"
        ) from error


def load(path: Path) -> Classify:
    """Opens a model in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def quantize(source: Path, target: Path, images: UInt8[np.ndarray, "images size size 3"]) -> None:
    """Writes a model with weights and feature maps of eight bits.

    Args:
        source: a model that `write` wrote.
        target: the new file.
        images: images to measure the ranges of the feature maps with.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            starts = range(0, len(images), _BATCH)
            self._batches: Iterator[np.ndarray] = (images[i : i + _BATCH] for i in starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    with unfinished(target) as prepared:
        quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=_QUANTIZED,
            nodes_to_exclude=_first_separable(onnx.load(source)),
        )


def _first_separable(model: Any) -> list[str]:
    """The convolutions up to the first that is depthwise, and the one after it; else none.

    Its channels have ranges that differ by orders of magnitude, too many for one scale of eight
    bits (Nagel et al. 2019, arXiv:1906.04721, section 3.1).
    """
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for place, node in enumerate(convolutions):
        if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute):
            return [each.name for each in convolutions[: place + 2]]
    return []
