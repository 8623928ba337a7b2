"""Pooling and its gradient, against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.ops.pool import avg_pool, max_pool, max_pool_overlapping


def cells_by_loop(x, window):
    for b, i, j, c in np.ndindex(x.shape[0], x.shape[1] // window, x.shape[2] // window, x.shape[3]):
        where = np.s_[b, i * window : (i + 1) * window, j * window : (j + 1) * window, c]
        yield (b, i, j, c), where, x[where]


@pytest.mark.parametrize(("shape", "window"), [((2, 6, 8, 3), 2), ((1, 7, 9, 2), 2), ((2, 7, 10, 1), 3)])
def test_cells_and_their_gradient(shape, window):
    """Integers, so that many values tie: a tie shares the gradient."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, shape).astype(np.float32)
    pooled, pull = jax.vjp(lambda x: max_pool(x, window), jnp.asarray(x))
    dy = rng.random(pooled.shape, np.float32)
    (dx,) = pull(jnp.asarray(dy))
    expected, means = np.zeros(shape), np.zeros(pooled.shape)
    for at, where, cell in cells_by_loop(x, window):
        assert pooled[at] == cell.max()
        means[at] = cell.mean()
        expected[where] = (cell == cell.max()) * dy[at].astype(np.float64) / (cell == cell.max()).sum()
    np.testing.assert_allclose(dx, expected, rtol=1e-6)
    np.testing.assert_allclose(avg_pool(jnp.asarray(x), window), means, rtol=1e-6)


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 2, 0)])
def test_overlapping_cells_give_the_gradient_to_the_first_maximum(window, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 7, 9, 2)).astype(np.float32)
    pooled, pull = jax.vjp(lambda x: max_pool_overlapping(x, window, stride, padding), jnp.asarray(x))
    dy = rng.random(pooled.shape, np.float32)
    (dx,) = pull(jnp.asarray(dy))
    padded = np.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)], constant_values=-np.inf)
    expected = np.zeros(padded.shape)
    for b, i, j, c in np.ndindex(pooled.shape):
        cell = padded[b, i * stride : i * stride + window, j * stride : j * stride + window, c]
        row, column = divmod(int(cell.argmax()), window)
        assert pooled[b, i, j, c] == cell.max()
        expected[b, i * stride + row, j * stride + column, c] += dy[b, i, j, c]
    inner = expected[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]
    np.testing.assert_allclose(dx, inner, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pool", [max_pool, lambda x: max_pool_overlapping(x, 3, 2, 1)])
def test_no_gradient_is_lost_where_the_input_is_computed_twice(pool):
    """What is pooled comes from sums and products that XLA fuses into whatever reads them, rounded as it likes."""
    rng = np.random.default_rng(0)
    x, scale, shift = (jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in ((4, 32, 32, 8), (8,), (8,)))

    def loss(x):
        y = (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5) * scale + shift
        return pool(y * 1.1 + x * 0.3).sum()

    def gradient(x):  # of the pooled values alone: as many ones as there are cells
        return jax.grad(lambda y: pool(y).sum())((x - x.mean((0, 1, 2))) * scale + shift)

    assert np.isfinite(np.asarray(jax.jit(jax.grad(loss))(x))).all()
    np.testing.assert_allclose(jax.jit(gradient)(x).sum(), 4 * 16 * 16 * 8, rtol=1e-6)


def test_too_small_an_image_is_named():
    with pytest.raises(ValueError, match="cannot pool 1x4 pixels by 2"):
        max_pool(jnp.zeros((1, 1, 4, 1)))
