"""ReLU and its gradient, against Flax'."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtl.ops.relu import relu


def test_values_and_gradients_are_those_of_flax_at_zero_too():
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0]).reshape(1, 1, 1, 5)
    cotangent = jnp.arange(1.0, 6).reshape(x.shape)
    (got, pull_back), (want, reference) = jax.vjp(relu, x), jax.vjp(nnx.relu, x)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(*(pull(cotangent)[0] for pull in (pull_back, reference)))
