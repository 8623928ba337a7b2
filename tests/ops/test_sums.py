"""Sums over all but the channels, and the bias whose gradient they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imgrec_jax.models.layers import Conv
from imgrec_jax.ops.sums import add_bias, channel_sum


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 7), (8, 64, 32, 128), (2, 8193, 128)])
def test_the_sum_of_every_channel(shape):
    """The third is summed in parts; the fourth is as large, but its rows are no multiple of the parts."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = x.astype(np.float64).reshape(-1, shape[-1]).sum(0)
    np.testing.assert_allclose(jax.jit(channel_sum)(x), expected, atol=1e-6 * np.abs(x).sum() / shape[-1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_bias_and_its_gradient(dtype):
    rng = np.random.default_rng(0)
    x, bias = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, 9, 5, 3), (3,)))
    weights = jnp.asarray(rng.standard_normal((2, 9, 5, 3)), dtype)
    own = jax.value_and_grad(lambda x, b: jnp.sum(add_bias(x, b) * weights), (0, 1))(x, bias)
    plain = jax.value_and_grad(lambda x, b: jnp.sum((x + b) * weights), (0, 1))(x, bias)
    assert jax.tree.map(lambda a: a.dtype, own) == jax.tree.map(lambda a: a.dtype, plain)
    rtol = 1e-5 if dtype == jnp.float32 else 2e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=rtol), own, plain)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": 1},
        {"strides": (2, 1), "padding": ((1, 0), (2, 1)), "use_bias": False},
        {"kernel_dilation": 2, "padding": (2, 0)},
        {"feature_group_count": 2, "padding": "VALID"},
        {"dtype": jnp.bfloat16, "kernel_init": nn.initializers.he_normal(), "bias_init": nn.initializers.ones},
    ],
)
def test_a_convolution_draws_and_computes_what_flax_does(options):
    x = np.random.default_rng(0).standard_normal((2, 9, 8, 4)).astype(np.float32)
    own, flax = Conv(6, (3, 3), **options), nn.Conv(6, (3, 3), **options)
    variables = own.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, flax.init(jax.random.key(1), x))
    y, expected = own.apply(variables, x), flax.apply(variables, x)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(np.float32(y), np.float32(expected), rtol=1e-5, atol=1e-5)

    def loss(model):
        return lambda v: jnp.sum(jnp.square(model.apply(v, x).astype(jnp.float32)))

    if own.dtype is None:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            jax.grad(loss(own))(variables),
            jax.grad(loss(flax))(variables),
        )
