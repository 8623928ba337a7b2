import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imgrec_jax.ops.conv import MAX_PATCH_CHANNELS, conv_by_patches, conv_general_dilated
from imgrec_jax.ops.pool import max_pool

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 4)])
def test_patches_equal_lax(padding, strides, kernel):
    keys = jax.random.split(jax.random.PRNGKey(0))
    x = jax.random.normal(keys[0], (2, 9, 11, 3))
    w = jax.random.normal(keys[1], (*kernel, 3, 4))

    def ours(x, w):
        return conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC)

    def reference(x, w):
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC)

    np.testing.assert_allclose(ours(x, w), reference(x, w), atol=1e-4)
    grads = [jax.grad(lambda x, w, f=f: jnp.sum(jnp.sin(f(x, w))), (0, 1))(x, w) for f in (ours, reference)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *grads)


def test_what_patches_cannot_do_goes_to_lax():
    x, w = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 2, 6))
    grouped = conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2)
    assert grouped.shape == (1, 8, 8, 6)
    dilated = conv_general_dilated(x, jnp.ones((3, 3, 4, 2)), (1, 1), "VALID", rhs_dilation=(2, 2), dimension_numbers=NHWC)
    assert dilated.shape == (1, 4, 4, 2)


def test_many_channels_use_lax():
    channels = MAX_PATCH_CHANNELS + 1
    args = jnp.ones((1, 8, 8, channels)), jnp.ones((3, 3, channels, 2))
    text = str(jax.make_jaxpr(lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC))(*args))
    assert "conv_general_dilated" in text and "dot_general" not in text
    assert conv_by_patches(*args, (1, 1), ((0, 0), (0, 0))).shape == (1, 6, 6, 2)


@pytest.mark.parametrize("window", [2, 3])
def test_pools_equal_flax_and_drop_the_remainder(window):
    x = jax.random.normal(jax.random.PRNGKey(0), (2, 7, 8, 3))
    shape, strides = (window, window), (window, window)
    np.testing.assert_array_equal(max_pool(x, window), nn.max_pool(x, shape, strides))
    grads = [
        jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(x)
        for f in (lambda x: max_pool(x, window), lambda x: nn.max_pool(x, shape, strides))
    ]
    np.testing.assert_allclose(*grads, rtol=1e-6)


def test_an_image_too_small_to_pool_is_named():
    with pytest.raises(ValueError, match="cannot pool 1x5 pixels by 2"):
        max_pool(jnp.zeros((1, 1, 5, 1)), 2)
