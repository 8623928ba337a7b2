"""Sliding windows and test-time versions: exact where they must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.segmentation import tiling


def image(height=20, width=27, batch=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, height, width, 3)), jnp.float32)


def pointwise(x):
    """A network without a receptive field: windows, turns and mirrors cannot change it."""
    return jnp.concatenate([x, jnp.sin(3 * x[..., :1])], axis=-1)


@pytest.mark.parametrize(
    ("size", "window", "overlap"), [(100, 32, 0.25), (64, 64, 0.5), (50, 64, 0), (65, 64, 0.5), (128, 32, 0)]
)
def test_windows_cover_and_overlap(size, window, overlap):
    starts = tiling.window_starts(size, window, overlap)
    stops = starts + window
    assert starts[0] == 0 and stops[-1] >= size and (size < window or stops[-1] == size)
    assert np.all(stops[:-1] - starts[1:] >= np.floor(overlap * window))
    fewer = len(starts) - 1  # with one window less, some pair would share less than asked for
    assert fewer == 0 or fewer * window - (fewer - 1) * overlap * window < size


def test_blending_weights_sum_to_one_and_favour_the_centre():
    starts, weights = tiling.blending((50, 41), (16, 20), 0.5)
    total = np.zeros((50, 41))
    for (y, x), weight in zip(starts, weights, strict=True):
        total[y : y + 16, x : x + 20] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert weights.min() > 0
    assert weights[4][8, 10] > weights[4][0, 0]


def test_one_window_is_the_plain_prediction():
    calls = []

    def predict(x):
        calls.append(x.shape)
        return jnp.cumsum(x, axis=1)  # depends on where the window begins

    x = image()
    np.testing.assert_array_equal(tiling.sliding_window(predict, x, window=(32, 32)), jnp.cumsum(x, axis=1))
    np.testing.assert_array_equal(tiling.sliding_window(predict, x), jnp.cumsum(x, axis=1))
    assert calls == [(2, 20, 27, 3)] * 2


@pytest.mark.parametrize("per_call", [1, 4])
def test_windows_of_a_pointwise_network_are_the_plain_prediction(per_call):
    x = image()
    windowed = jax.jit(lambda x: tiling.sliding_window(pointwise, x, window=(8, 12), overlap=0.5, windows_per_call=per_call))
    np.testing.assert_allclose(windowed(x), pointwise(x), atol=1e-5)


def test_context_gives_windows_their_surroundings():
    """A 3x3 mean without padding needs one pixel beside each window; windows then equal the mean over the mirrored image."""

    def mean3(x):
        h, w = x.shape[1] - 2, x.shape[2] - 2
        return sum(x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9

    x = image()
    expected = mean3(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"))
    for window in (None, (8, 9)):
        result = tiling.sliding_window(mean3, x, window=window, overlap=0.0, context=lambda n: (1, 1))
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("versions", [*tiling.DIHEDRAL, "shifts"])
def test_versions_are_put_back_in_place(versions):
    x = image()
    np.testing.assert_allclose(tiling.averaged(pointwise, x, versions), pointwise(x), atol=1e-6)


def test_dihedral_versions_are_the_whole_group_once():
    seen = []

    def predict(x):
        seen.append(x.shape)
        versions.extend(np.asarray(v[:, :, 0]).tobytes() for v in x)
        return x

    for size, shapes in (((6, 6), [(8, 6, 6, 3)]), ((4, 6), [(4, 4, 6, 3), (4, 6, 4, 3)])):
        seen, versions = [], []
        tiling.averaged(predict, image(*size, 1), "d4")
        assert seen == shapes and len(set(versions)) == 8


def test_averaging_makes_a_prediction_invariant():
    """A network that looks to the left only; averaged over the group it looks everywhere alike."""
    predict = lambda x: x + 0.5 * jnp.roll(x, 1, axis=2)  # noqa: E731
    x = image(8, 8)
    turned = tiling.averaged(predict, jnp.rot90(x, 1, axes=(1, 2)), "d4")
    np.testing.assert_allclose(turned, jnp.rot90(tiling.averaged(predict, x, "d4"), 1, axes=(1, 2)), atol=1e-5)
    assert not np.allclose(predict(jnp.rot90(x, 1, axes=(1, 2))), jnp.rot90(predict(x), 1, axes=(1, 2)))


def test_shifts_average_two_phases_of_a_strided_network():
    def coarse(x):  # the mean of 2 x 2 cells, as a network of stride 2 might see them
        b, h, w, c = x.shape
        cells = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        cells = cells.reshape(b, -(-h // 2), 2, -(-w // 2), 2, c).mean((2, 4))
        return jnp.repeat(jnp.repeat(cells, 2, 1), 2, 2)[:, :h, :w]

    edge = jnp.zeros((1, 8, 8, 1)).at[:, :, 4:].set(1.0)
    assert tiling.SHIFTS == (0, 5)
    np.testing.assert_allclose(tiling.averaged(coarse, edge, "shifts")[0, 4, :, 0], [0, 0, 0, 0.25, 0.75, 1, 1, 1])


def test_seven_rotations_of_a_smooth_image_agree():
    y, x = np.mgrid[:64, :64] / 64
    smooth = jnp.asarray(np.stack([np.sin(4 * y + x), np.cos(3 * x)], -1), jnp.float32)[None]
    result = tiling.averaged(lambda x: x, smooth, "rotations7")
    np.testing.assert_allclose(result[:, 8:-8, 8:-8], smooth[:, 8:-8, 8:-8], atol=2e-3)
    assert np.all(np.isfinite(result))


def test_a_quarter_turn_by_interpolation_is_exact():
    square = image(9, 9)
    turned = tiling.sample(square, tiling.rotation_grid((9, 9), np.pi / 2))
    exact = [np.rot90(square, k, axes=(1, 2)) for k in (1, 3)]
    assert min(np.abs(turned - e).max() for e in exact) < 1e-4
    back = tiling.sample(turned, tiling.rotation_grid((9, 9), -np.pi / 2))
    np.testing.assert_allclose(back, square, atol=1e-4)


def test_unknown_versions():
    with pytest.raises(ValueError, match="'spin'"):
        tiling.averaged(pointwise, image(), "spin")
