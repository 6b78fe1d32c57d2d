"""What comparing a network here with one of another framework needs."""

from __future__ import annotations

import jax
import numpy as np

from jaxtl.models import Network, definition, initial_variables, merge, split, structure
from jaxtl.models.chain import Spec


def random_images(size: int) -> np.ndarray:
    """Two of coloured patches and noise: of noise alone, the features would be nearly the same."""
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 256, (2, 4, 4, 3))
    patches = patches.repeat(size // 4 + 1, axis=1).repeat(size // 4 + 1, axis=2)
    noise = rng.integers(0, 256, (2, size, size, 3))
    return ((patches[:, :size, :size] + noise) // 2).astype(np.uint8)


def network_of_zeros(
    name: str, classes: int | None, *, width: float = 1.0, top: bool = False
) -> Network:
    """A network of the Keras convention for tests of names and shapes."""
    return structure(name, num_classes=classes, width=width, top=top)


def drawn(module):
    """The same module with numbers."""
    convention = definition("mobilenet_v2").conventions["keras"]
    network = Network({"stage": module}, Spec("one stage", None, 1.0, 0.0, False, convention))
    return merge(split(network)[0], initial_variables(network, 0)).stage


def quick_jit(function):
    """Compiles without much thought, in half the time: for what runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def our_outputs(network: Network, images: np.ndarray) -> list[np.ndarray]:
    """Features and, of a network with a head, logits."""
    graph, variables = split(network)

    @quick_jit
    def run(variables, images):
        network = merge(graph, variables)
        if network.num_classes is None:
            return [network(images)]
        features = network(images, stop="head")
        return [features, network(features, start="head")]

    return [np.asarray(y) for y in run(variables, images)]


def assert_all_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    """Compares features and, if there are any, logits."""
    for our, their in zip(ours, theirs, strict=True):
        assert_same(our, their)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Compares what two networks return for two images."""
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max()
    assert largest > 1e-3, "a reference of zeros would prove nothing"
    assert np.abs(theirs[0] - theirs[1]).max() / largest > 1e-2, "one that sees nothing neither"
    assert np.abs(ours - theirs).max() / largest < 1e-4
