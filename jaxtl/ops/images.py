"""Functions of single images: one image at a time on a CPU, all at once elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def each_image(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Applies a function to each image of a batch.

    On a CPU the images are taken one after the other, so that intermediate results stay in the
    processor's cache; elsewhere all at once.

    Args:
        function: of the arrays of one image, without the batch's axis; it returns arrays.
        arrays: (B, ...).

    Returns:
        What the function returns, with the batch's axis in front.
    """
    return lax.platform_dependent(
        *arrays,
        cpu=lambda *arrays: lax.map(lambda image: function(*image), arrays),
        default=jax.vmap(function),
    )
