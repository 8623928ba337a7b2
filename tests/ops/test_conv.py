"""Convolution and pooling against `lax` in float64, in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from imgrec_jax.ops import conv
from imgrec_jax.ops.conv import Spec, conv_general_dilated
from imgrec_jax.ops.pool import max_pool, max_pool_overlapping

NHWC = ("NHWC", "HWIO", "NHWC")

# Image [B, H, W, C], kernel (h, w), D, strides, padding, groups: each form, and each reason to choose one.
CASES = {
    "1x1": ((2, 5, 4, 6), (1, 1), 3, (1, 1), "VALID", 1),
    "1x1_strided": ((2, 5, 4, 6), (1, 1), 3, (2, 2), "VALID", 1),
    "1x1_padded": ((2, 4, 4, 3), (1, 1), 5, (2, 1), ((1, 1), (0, 2)), 1),
    "1x1_of_many_cells": ((4, 32, 32, 128), (1, 1), 64, (1, 1), "VALID", 1),
    "1x1_of_many_cells_wider": ((4, 32, 32, 64), (1, 1), 128, (1, 1), "VALID", 1),
    "map_of_one_cell": ((3, 1, 1, 6), (3, 3), 4, (1, 1), ((1, 1), (1, 1)), 1),
    "map_smaller_than_the_kernel": ((2, 2, 2, 6), (3, 3), 5, (1, 1), "SAME", 1),
    "small_strided": ((2, 2, 2, 6), (3, 3), 5, (2, 2), ((1, 1), (1, 1)), 1),
    "gradient_smaller_than_the_kernel": ((2, 4, 4, 6), (3, 3), 5, (2, 2), ((1, 1), (1, 1)), 1),
    "low_map": ((2, 2, 9, 6), (5, 3), 5, (2, 1), "SAME", 1),
    "stride_beyond_the_kernel": ((2, 4, 5, 6), (2, 2), 5, (3, 3), ((1, 1), (3, 2)), 1),
    "one_channel": ((2, 9, 8, 1), (5, 5), 10, (1, 1), "VALID", 1),
    "few_channels": ((2, 9, 11, 3), (3, 3), 4, (1, 1), "SAME", 1),
    "few_channels_wide": ((2, 9, 11, 3), (3, 3), 32, (1, 1), ((1, 1), (1, 1)), 1),
    "stem": ((2, 17, 16, 3), (7, 7), 8, (2, 2), ((3, 3), (3, 3)), 1),
    "narrow": ((2, 6, 7, 3), (5, 3), 4, (1, 1), "VALID", 1),
    "many_channels": ((2, 7, 6, 8), (3, 3), 5, (1, 1), "SAME", 1),
    "many_channels_strided": ((2, 9, 8, 8), (3, 3), 5, (2, 2), ((1, 1), (1, 1)), 1),
    "one_image": ((1, 33, 7, 6), (3, 3), 5, (1, 1), ((1, 1), (1, 1)), 1),
    "one_image_strided": ((1, 37, 7, 6), (3, 3), 5, (2, 2), ((0, 1), (1, 0)), 1),
    "depthwise": ((2, 7, 6, 4), (3, 3), 4, (1, 1), "SAME", 4),
    "depthwise_strided": ((2, 7, 6, 4), (5, 5), 4, (2, 2), ((2, 2), (2, 2)), 4),
    "depthwise_small": ((2, 2, 1, 4), (3, 3), 4, (2, 2), ((1, 1), (1, 1)), 4),
    "depthwise_multiplied": ((2, 7, 6, 4), (3, 3), 8, (1, 1), "SAME", 4),
    "grouped": ((2, 7, 6, 8), (3, 3), 12, (2, 2), ((1, 1), (1, 1)), 4),
    "padding_beyond_the_kernel": ((1, 3, 4, 6), (3, 3), 5, (1, 1), ((4, 3), (0, 5)), 1),
    "rows_that_are_left_over": ((2, 8, 8, 6), (3, 3), 5, (3, 3), "VALID", 1),
}


def arrays(case, dtype=np.float64):
    shape, kernel, features, strides, padding, groups = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    w = rng.standard_normal((*kernel, shape[3] // groups, features)).astype(dtype)
    how = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC, "feature_group_count": groups}
    return x, w, how


def value_and_gradients(function, how):
    @jax.jit
    def run(x, w):
        y, back = jax.vjp(lambda x, w: function(x, w, **how), x, w)
        return y, *back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

    return run


SLOW = (  # kin of those that are left
    "1x1_padded", "small_strided", "low_map", "few_channels_wide", "narrow", "many_channels_strided", "one_image_strided",
    "depthwise_strided", "depthwise_multiplied", "padding_beyond_the_kernel", "rows_that_are_left_over",
)  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_values_and_gradients_are_laxs(name):
    x, w, how = arrays(CASES[name])
    with jax.enable_x64():
        expected = value_and_gradients(lax.conv_general_dilated, how)(x, w)
        for actual, value in zip(value_and_gradients(conv_general_dilated, how)(x, w), expected, strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-10, atol=1e-10)
    for actual, value in zip(value_and_gradients(conv_general_dilated, how)(*map(np.float32, (x, w))), expected, strict=True):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, value, atol=3e-6 * np.abs(value).max())


@pytest.mark.parametrize(
    "name", ["one_channel", "few_channels", "map_smaller_than_the_kernel", "1x1", "depthwise", "one_image"]
)
def test_half_precision_is_kept_and_summed_in_single(name):
    x, w, how = arrays(CASES[name], jnp.bfloat16)
    expected = value_and_gradients(lax.conv_general_dilated, how)(*map(np.float32, (x, w)))
    for actual, value in zip(value_and_gradients(conv_general_dilated, how)(x, w), expected, strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(actual), value, atol=0.02 * np.abs(value).max())


@pytest.mark.parametrize("group", [2, 4])
def test_columns_in_groups_equal_lax_where_the_last_group_is_cut(group):
    x, w, _ = arrays(CASES["few_channels"], np.float32)
    for strides in ((1, 1), (2, 2), (1, 2)):
        spec = Spec(strides, ((1, 0), (2, 1)))
        np.testing.assert_allclose(conv.by_columns(x, w, spec, group), conv.lax_forward(x, w, spec), atol=1e-5)


def test_a_batch_may_be_symbolic():
    (batch,) = jax.export.symbolic_shape("b")
    names = ("one_channel", "few_channels", "small_strided", "1x1_strided", "depthwise_strided")
    cases = [arrays(CASES[name], np.float32) for name in names]

    def gradients(inputs):
        return [value_and_gradients(conv_general_dilated, how)(*pair) for pair, (_, _, how) in zip(inputs, cases, strict=True)]

    shapes = [((batch, *x.shape[1:]), w.shape) for x, w, _ in cases]
    specs = [tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in pair) for pair in shapes]
    exported = jax.export.export(jax.jit(gradients), platforms=("cpu", "cuda", "tpu"))(specs)
    inputs = [(x, w) for x, w, _ in cases]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, exported.call(inputs), jax.jit(gradients)(inputs))


def test_other_transformations_and_second_derivatives():
    x, w, how = arrays(CASES["gradient_smaller_than_the_kernel"], np.float32)
    ours, theirs = (lambda x, w, f=f: jnp.sum(f(x, w, **how) ** 3) for f in (conv_general_dilated, lax.conv_general_dilated))
    many = np.stack([w, 2 * w])
    for transform in (
        lambda f: jax.vmap(jax.grad(f), (None, 0))(x, many),
        lambda f: jax.vmap(f, (0, None))(x[:, None], w),
        lambda f: jax.grad(jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable))(x, w),
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f, 1)(x, w) ** 2))(x),
        lambda f: jax.jvp(jax.grad(f), (x, w), (x, w))[1],
    ):
        expected = np.asarray(transform(theirs))
        np.testing.assert_allclose(transform(ours), expected, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ours, (x, w), (x, w))


def test_what_has_no_form_goes_to_lax():
    x, w = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 2))
    dilated = conv_general_dilated(x, w, (1, 1), "VALID", rhs_dilation=(2, 2), dimension_numbers=NHWC)
    assert dilated.shape == (1, 4, 4, 2)
    cropped = conv_general_dilated(x, w, (1, 1), ((-1, 0), (0, 0)), dimension_numbers=NHWC)
    assert cropped.shape == (1, 5, 6, 2)
    channels_first = conv_general_dilated(jnp.ones((1, 4, 8, 8)), jnp.ones((2, 4, 3, 3)), (1, 1), "VALID")
    assert channels_first.shape == (1, 2, 6, 6)
    line = conv_general_dilated(
        jnp.ones((1, 8, 4)), jnp.ones((3, 4, 2)), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert line.shape == (1, 6, 2)


def test_accelerators_get_one_convolution_of_lax():
    x, w, how = arrays(CASES["map_smaller_than_the_kernel"], np.float32)
    run = jax.jit(lambda x, w: jax.vjp(lambda x, w: conv_general_dilated(x, w, **how), x, w)[1](x[..., :5]))
    for platform, count in (("cuda", 2), ("tpu", 2), ("cpu", 1)):
        text = jax.export.export(run, platforms=(platform,))(x, w).mlir_module()
        assert text.count("stablehlo.convolution") == count, platform


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"), [((8, 9), 3, 2, 1), ((7, 5), 2, 2, 0), ((6, 7), 3, 1, 1), ((9, 9), 2, 3, 0)]
)
def test_overlapping_pools_equal_flax_ties_included(size, window, stride, padding):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, *size, 3)), jnp.float32)  # with many ties

    def flax_pool(x):
        return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)

    y, back = jax.vjp(lambda x: max_pool_overlapping(x, window, stride, padding), x)
    expected, back_of_flax = jax.vjp(flax_pool, x)
    np.testing.assert_array_equal(y, expected)
    dy = jnp.asarray(np.random.default_rng(1).integers(-9, 9, y.shape), jnp.float32)  # sums are exact
    np.testing.assert_array_equal(back(dy)[0], back_of_flax(dy)[0])


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
