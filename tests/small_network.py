"""The end of MobileNetV2 as a network of its own, a few channels wide.

It compiles in a fraction of the time, and its stages are called as those of MobileNetV2 are.
"""

import dataclasses

from flax import nnx

from jaxtl.models import Network, definition, initial_variables, merge, split
from jaxtl.models.chain import Spec
from jaxtl.models.layers import ConvNorm, Head, Pool, Preprocess
from jaxtl.models.mobilenet import InvertedResidual

FEATURES = 64
BLOCK_14 = (8, 8, 16)  # what comes in there of images of 32 x 32 pixels


def small(spec: Spec) -> Network:
    """Its structure: six stages with parameters, and a head where there are classes."""
    convention = spec.convention
    stages = {
        "preprocess": Preprocess(convention, spec.dtype),
        "stem": ConvNorm(
            3, 8, convention, nnx.relu6, size=3, stride=2, padding=convention.padding(3)
        ),
        "block_13": InvertedResidual(8, 16, 6, 2, convention),
        "block_14": InvertedResidual(16, 16, 6, 1, convention),
        "block_15": InvertedResidual(16, 16, 6, 1, convention),
        "block_16": InvertedResidual(16, 24, 6, 1, convention),
        "top": ConvNorm(24, FEATURES, convention, nnx.relu6),
        "pool": Pool(),
    }
    if spec.num_classes is not None:
        stages["head"] = Head(FEATURES, spec.num_classes, dropout=spec.dropout)
    return Network(stages, spec)


_OF_MOBILENET = definition("mobilenet_v2")
SMALL = dataclasses.replace(
    _OF_MOBILENET,
    names={"small": _OF_MOBILENET.names["mobilenet_v2"]},
    build=small,
    widths=(1.0,),
)
"""What `models.REGISTRY` holds of a network, for tests that name it in a config."""


def small_network(*, num_classes, dropout=0.0, dtype="float32"):
    """It with random parameters."""
    convention = SMALL.conventions["keras"]
    network = small(Spec("small", num_classes, 1.0, dropout, False, convention, dtype))
    return merge(split(network)[0], initial_variables(network, 0))
