"""Applies functions of single images to batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def each_image(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Applies a function to each image of a batch.

    On a CPU one image follows the other, so that intermediate results stay in the processor's
    cache; other platforms take all images at once.

    Args:
        function: a function from the arrays of one image, without batch axis, to arrays.
        arrays: the arrays (B, ...) of the batch.

    Returns:
        The results of the function, with a leading batch axis.
    """
    return lax.platform_dependent(
        *arrays,
        cpu=lambda *arrays: lax.map(lambda image: function(*image), arrays),
        default=jax.vmap(function),
    )
