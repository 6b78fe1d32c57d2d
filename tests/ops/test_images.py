"""One image at a time or all at once: the same."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtl.ops.images import each_image


def test_each_image_is_the_function_mapped_over_the_batch():
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(2, 5, 3, 4)), jnp.float32)

    def function(x, y):
        return x.sum(0), x @ y.T

    for got, want in zip(each_image(function, x, y), jax.vmap(function)(x, y), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_is_exported_holds_both_forms():
    lowered = jax.jit(lambda x: each_image(lambda image: image.sum(0), x))
    exported = jax.export.export(lowered, platforms=("cpu", "tpu"))(np.ones((5, 3, 4), np.float32))
    assert "stablehlo.while" in exported.mlir_module()
    assert "stablehlo.case" in exported.mlir_module()
