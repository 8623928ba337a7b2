"""Resizing as Pillow does it, to the last bit, and torchvision's crop of it."""

import numpy as np
import pytest

from imgrec_jax.data.ops.geometry import resize_and_center_crop
from imgrec_jax.data.ops.resample import resample

Image = pytest.importorskip("PIL.Image")
IMAGE = np.random.default_rng(0).integers(0, 256, (97, 150, 3), np.uint8)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 61), (224, 301), (97, 20), (97, 150)])
def test_every_pixel_is_pillows(kind, size):
    expected = np.asarray(Image.fromarray(IMAGE).resize(size[::-1], Image.Resampling[kind.upper()]))
    np.testing.assert_array_equal(resample(IMAGE, size, kind), expected)
    share = resample(IMAGE.astype(np.float32) / 255, size, kind)
    assert share.dtype == np.float32 and np.abs(share * 255 - expected).max() < (40 if kind == "bicubic" else 1.1)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_the_crop_is_torchvisions(kind):
    """Resize(50): int(50 * 150 / 97) = 77 columns; CenterCrop(40) begins at round(18.5) = 18 and row 5."""
    op = resize_and_center_crop(50, (40, 40), interpolation=kind, antialias=True)
    found = op({"image": IMAGE}, np.random.default_rng(0))["image"]
    resized = np.asarray(Image.fromarray(IMAGE).resize((77, 50), Image.Resampling[kind.upper()]))
    np.testing.assert_array_equal(found, resized[5:45, 18:58])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="interpolation='lanczos'"):
        resize_and_center_crop(50, (40, 40), interpolation="lanczos", antialias=True)
    with pytest.raises(ValueError, match="interpolation='bicubic', antialias=False"):
        resize_and_center_crop(50, (40, 40), interpolation="bicubic")
