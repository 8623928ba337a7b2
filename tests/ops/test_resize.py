"""Resizing against torch.nn.functional.interpolate and numbers by hand."""

import numpy as np
import pytest

from imgrec_jax.ops.resize import adaptive_avg_pool, linear_weights, pad_to_multiple, resize_bilinear, resize_nearest
from tests.goldens import seeded

SIZES = [
    ((4, 6), (8, 12)),
    ((5, 7), (13, 9)),
    ((9, 13), (65, 97)),
    ((8, 8), (3, 5)),
    ((1, 3), (4, 4)),
    ((7, 7), (7, 7)),
]


def test_doubling_by_hand():
    """Half-pixel centres: outputs at -0.25, 0.25, 0.75, 1.25 input pixels; the ends repeat the border."""
    np.testing.assert_allclose(linear_weights(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equal_to_torch(source, target):
    torch = pytest.importorskip("torch")
    x = seeded.image(2, *source, 3)
    channels_first = torch.from_numpy(x.transpose(0, 3, 1, 2))
    interpolate = torch.nn.functional.interpolate
    for ours, expected in (
        (resize_bilinear(x, target), interpolate(channels_first, target, mode="bilinear", align_corners=False)),
        (resize_nearest(x, target), interpolate(channels_first, target, mode="nearest")),
        (adaptive_avg_pool(x, target), torch.nn.functional.adaptive_avg_pool2d(channels_first, target)),
    ):
        np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=2e-6)


def test_padding_is_zero_at_the_bottom_and_right():
    x = np.ones((1, 3, 4, 2), np.float32)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 4, 4, 2)
    np.testing.assert_array_equal(padded[:, :3], x)
    np.testing.assert_array_equal(padded[:, 3:], 0)
    assert pad_to_multiple(padded, 4).shape == (1, 4, 4, 2)
