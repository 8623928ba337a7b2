"""Masks of objects: cropped to proposals, put back into images, and what both cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.data.annotations import encode_mask
from imgrec_jax.data.ops import bits
from imgrec_jax.detection import masks
from tests.goldens.make_mask_rcnn import crop_by_hand


def shapes(count=3, size=(37, 53)):
    """bool [count, H, W]: rings of several sizes."""
    y, x = np.mgrid[: size[0], : size[1]]
    radius = [np.hypot(y - 10 - 6 * n, (x - 15 - 8 * n) / 1.5) for n in range(count)]
    return np.stack([(r < 9 + 2 * n) & (r > 3) for n, r in enumerate(radius)])


def test_bits_come_back_and_count():
    whole = shapes()
    packed = bits.pack(whole)
    assert packed.shape == (3, 37, 7)
    np.testing.assert_array_equal(bits.unpack(packed, 53), whole)
    np.testing.assert_array_equal(bits.areas(packed), whole.sum((1, 2)))
    np.testing.assert_array_equal(np.asarray(masks.unpack(jnp.asarray(packed)))[..., :53], whole)


def test_a_hundred_objects_do_not_cost_a_hundred_canvases():
    packed = bits.pack_each((np.zeros((800, 1344), bool) for _ in range(100)), (800, 1344))
    assert packed.nbytes == 13_440_000  # of bool 107,520,000; the canvas as float32 RGB has 12,902,400


@pytest.mark.parametrize("side", [28, 56, 84, 91, 112])
def test_a_bin_of_whole_pixels_has_as_many_samples(side):
    """RoIs of whole multiples of 28 and 7: 1 / 28 in float32 times 84 is more than 3, and a fourth sample would be taken."""
    y, x = np.mgrid[:120, :120]
    whole = (np.hypot(y - 55, x - 60) < 50) & ((x // 3 + y // 5) % 2 == 0)
    roi, bits_of = np.float32([[3, 5, 3 + side, 5 + side]]), jnp.asarray(bits.pack(whole[None]))
    crop = jax.jit(masks.crop_masks, static_argnums=4)
    (found,) = crop(bits_of, jnp.zeros(1, int), roi, jnp.array([120, 120]), 7 if side == 91 else 28)
    np.testing.assert_allclose(found, crop_by_hand(whole, roi[0], len(found)), atol=2e-5)


@pytest.mark.parametrize("bins", [7, 14, 28])
def test_samples_of_a_bin_are_counted_exactly(bins):
    """Of RoIs of whole pixels and of the next smaller and larger float32: the first bin's weights, by hand."""
    cells = 8 * bins
    exact = np.arange(1, 8, dtype=np.float32) * bins
    sizes = np.concatenate([exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1e9))])
    counts = -(-sizes.astype(np.float64) // bins)
    weigh = jax.jit(lambda size: masks._bin_weights(jnp.float32(0), size, jnp.int32(cells), bins, cells))
    position = (np.arange(8) + 0.5)[None] * (sizes / bins)[:, None] / counts[:, None]  # of the first bin's samples
    for size, count, at in zip(sizes, counts, position, strict=True):
        hat = np.maximum(1 - np.abs(at[: int(count), None] - np.arange(cells)), 0).sum(0) / count
        np.testing.assert_allclose(weigh(size)[0], hat, atol=1e-5, err_msg=f"{size!r} in {bins}")


@pytest.mark.parametrize("side", [7, 28])
def test_crops_are_those_of_the_kernel(side):
    """Against a loop over samples in float64; the last RoIs reach over the border and are thinner than a pixel."""
    whole = shapes()
    rois = np.float32([[3.2, 1.7, 40.1, 30.9], [0, 0, 53, 37], [20, 9, 27.5, 11.25], [48, 30, 53, 37], [5, 5, 5.2, 30]])
    index = np.int32([0, 1, 2, 2, 0])
    crop = jax.jit(masks.crop_masks, static_argnums=4)
    found = crop(jnp.asarray(bits.pack(whole)), index, rois, jnp.array([37, 53]), side)
    expected = [crop_by_hand(whole[n], roi, side) for n, roi in zip(index, rois, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_padding_of_the_canvas_is_no_part_of_the_image():
    """The image of 37 x 53 in a canvas of 40 x 56: the same crops."""
    whole = shapes(1)
    canvas = np.zeros((1, 40, 56), bool)
    canvas[:, :37, :53] = whole
    roi = np.float32([[20, 20, 53, 37]])
    (found,) = masks.crop_masks(jnp.asarray(bits.pack(canvas)), jnp.zeros(1, int), roi, jnp.array([37, 53]), 14)
    np.testing.assert_allclose(found, crop_by_hand(whole[0], roi[0], 14), atol=2e-5)


def test_a_full_mask_fills_its_box_and_no_more():
    """The cell of padding around the mask brings the fall to 0 outside of it; torchvision counts the pixel at x2 and y2 in."""
    pasted = masks.paste(np.ones((28, 28), np.float32), np.float32([10, 20, 38, 48]), (60, 50))
    expected = np.zeros((60, 50), bool)
    expected[20:49, 10:39] = True
    np.testing.assert_array_equal(pasted, expected)


@pytest.mark.parametrize(("box", "pixels"), [((-20, -20, -5, -5), 0), ((100, 5, 120, 30), 0), ((-10, -10, 10, 10), 100)])
def test_boxes_at_and_over_the_border(box, pixels):
    pasted = masks.paste(np.ones((28, 28), np.float32), np.float32(box), (40, 50))
    assert abs(int(pasted.sum()) - pixels) <= pixels * 0.1


def test_run_lengths_are_text_that_json_takes():
    coded = masks.run_lengths(shapes(1)[0])
    assert coded["size"] == [37, 53] and isinstance(coded["counts"], str)


def test_run_lengths_of_a_part_are_those_of_the_whole_mask():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(rng.integers(1, 9, 2).tolist())
        (top, bottom), (left, right) = (np.sort(rng.integers(0, n + 1, 2)) for n in size)
        whole = np.zeros(size, bool)
        whole[top:bottom, left:right] = rng.random((bottom - top, right - left)) < rng.choice([0.1, 0.5, 0.9, 1.0])
        expected = encode_mask(whole)
        found = masks.run_lengths(whole[top:bottom, left:right], (int(top), int(left)), size)
        assert found == {"size": list(expected["size"]), "counts": expected["counts"].decode()}


def test_a_photo_is_not_looked_at_as_a_whole(monkeypatch):
    """A detection of 40 pixels in 12 megapixels: no array of the photo's size is made."""
    mask, box, size = np.ones((28, 28), np.float32), np.float32([3950, 100, 3990, 150]), (3000, 4000)
    part, start = masks.pasted(mask, box, size)
    assert part.shape == (54, 44) and start == (98, 3948)
    expected = encode_mask(masks.paste(mask, box, size))["counts"].decode()
    real = np.zeros
    monkeypatch.setattr(np, "zeros", lambda shape, *args: real(shape, *args) if np.prod(shape) < 1e5 else pytest.fail("large"))
    assert masks.run_lengths(part, start, size)["counts"] == expected


def test_float32_of_the_original():
    boxes = masks.in_original(np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([10, 20]), np.array([5, 60]))
    np.testing.assert_allclose(boxes, [[3.0, 1.0, 9.0, 2.0]])
    assert boxes.dtype == np.float32
