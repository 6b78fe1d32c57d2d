"""Networks with statistics as training leaves them, and images for them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtl.models import Network, inception, initial_variables, merge, resnet, split, vgg
from jaxtl.models.chain import Spec
from jaxtl.models.layers import Head, Pool, Preprocess


def trained(structure, seed=0):
    """A network whose BatchNorms all differ from what they begin with.

    With kernels by He (arXiv:1502.01852) the images still make a difference at its end.
    """
    rng = np.random.default_rng(seed)
    variables = dict(initial_variables(structure, seed))
    for path, value in variables.items():
        if path.endswith("kernel"):
            deviation = np.sqrt(2 / np.prod(value.shape[:-1]))
            variables[path] = rng.normal(0, deviation, value.shape).astype(np.float32)
        if path.endswith(("mean", "bias")):
            variables[path] = rng.normal(0, 0.3, value.shape).astype(np.float32)
        if path.endswith(("var", "scale")):
            variables[path] = rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
    arrays = {path: jnp.asarray(value) for path, value in variables.items()}
    return merge(split(structure)[0], arrays)


def mixture(convention, classes=5):
    """A small network of the blocks of ResNet, VGG and Inception."""
    known = inception.DEFINITION.conventions[convention]
    branches = (
        inception._branch("a", (8, 1), (8, (1, 3)), ends=((8, (1, 3)), (8, (3, 1)))),
        inception._branch("b", (8, 1), pool="average"),
        inception.Branch(pool="maximum"),
    )
    strided = (inception._branch("a", (8, 3, 2, "VALID")), inception.Branch(pool="maximum"))
    even = inception.MixedBlock(32, branches[:2], known)
    stages: dict[str, nnx.Module] = {
        "preprocess": Preprocess(known, "float32"),
        "stem": resnet.Stem(16, known),
        "conv": resnet.Bottleneck(16, 8, 2, known),
        "even": even,
        "strided": inception.MixedBlock(even.out, strided, known),
        "block": vgg.ConvRelu(even.out + 8, 12, last=True),
        "pool": Pool(),
        "head": Head(12, classes, dropout=0.2),
    }
    return Network(stages, Spec("mixture", classes, 1.0, 0.2, False, known))


def images(count, size, seed=1):
    """Images that are no noise: noise is the same to every network."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return coarse.repeat(-(-size // 4), axis=1).repeat(-(-size // 4), axis=2)[:, :size, :size]


def probabilities(network, batch):
    """What the network itself says."""
    return np.asarray(jax.jit(lambda batch: jax.nn.softmax(network(batch)))(batch))
