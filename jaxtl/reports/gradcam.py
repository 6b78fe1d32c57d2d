"""Where a network looked: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxtl.models import Network, Variables, merge, output_spec, split


def last_maps(network: Network, image_size: int) -> str:
    """The last stage that takes maps, as at least the one after `preprocess` does."""
    backwards = reversed(network.stage_names)
    return next(s for s in backwards if len(output_spec(network, image_size, s).shape) == 4)


def grad_cam(
    network: Network,
    variables: Variables,
    images: UInt8[np.ndarray, "images side side 3"],
    classes: Int[np.ndarray, "images"],
) -> Float[np.ndarray, "images height width"]:
    """How much each place of the last feature maps speaks for a class.

    Args:
        network: the structure of a network with a head.
        variables: its variables.
        images: RGB, 0..255.
        classes: the class of each image to explain.

    Returns:
        Equations 1 and 2 of the paper for each image, divided by its largest value: 0..1.
    """
    start, graph = last_maps(network, images.shape[1]), split(network)[0]

    @jax.jit
    def cams(variables: Variables, images: Array, classes: Array) -> Array:
        whole = merge(graph, variables)
        maps = whole(images, stop=start).astype(jnp.float32)

        def of_classes(maps: Array) -> Array:
            logits = whole(maps, start=start)
            return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

        weights = jax.grad(of_classes)(maps).mean(axis=(1, 2), keepdims=True)
        cam = jax.nn.relu((weights * maps).sum(axis=-1))
        return cam / jnp.maximum(cam.max(axis=(1, 2), keepdims=True), 1e-12)

    return np.asarray(cams(jax.device_get(variables), images, classes))
