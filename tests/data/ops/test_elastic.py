"""Elastic deformation: known fields, image and masks together, round trips, void outside."""

import numpy as np
import pytest

from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.elastic import cubic_weights, deform, displacement_field, elastic


def disc(height=96, width=128):
    """An image whose brightness is its mask, so that their agreement can be seen after any deformation."""
    y, x = np.mgrid[:height, :width]
    mask = ((y - 40) ** 2 + (x - 70) ** 2 < 25**2).astype(np.int32)
    image = np.repeat((mask * 200).astype(np.uint8)[..., None], 3, axis=2)
    return {"image": image, "segmentation": mask, "instances": (mask * 7).astype(np.uint16)}


def test_weights_interpolate():
    weights = cubic_weights(30, 3)
    np.testing.assert_allclose(weights.sum(1), 1)
    # the middle of the image is the middle point
    np.testing.assert_allclose(cubic_weights(3001, 3)[1500], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(cubic_weights(100, 5) @ np.full(5, 2.5), 2.5)


def test_points_of_the_grid_keep_their_displacement():
    coarse = np.random.default_rng(0).normal(size=(2, 5, 5))
    field = displacement_field(coarse, (401, 401))
    np.testing.assert_allclose(field[:, 200, 200], coarse[:, 2, 2], atol=1e-5)
    np.testing.assert_allclose(field[:, 100, 300], coarse[:, 1, 3], atol=0.02)


def test_a_constant_field_is_a_translation():
    example = disc()
    field = displacement_field(np.stack([np.full((3, 3), 4.0), np.full((3, 3), -6.0)]), (96, 128))
    out = deform(example, field, fill=9)
    for key in ("image", "segmentation", "instances"):
        np.testing.assert_array_equal(out[key][:-4, 6:], example[key][4:, :-6])
    assert not out["pixel_valid"][-4:].any() and not out["pixel_valid"][:, :6].any() and out["pixel_valid"][:-4, 6:].all()
    assert np.all(out["image"][-4:] == 9) and np.all(out["segmentation"][-4:] == 0)
    assert {key: out[key].dtype for key in example} == {key: example[key].dtype for key in example}


def test_image_and_masks_move_together():
    for seed in range(5):
        out = elastic(sigma=8)(disc(), np.random.default_rng(seed))
        bright = out["image"][..., 0] > 100
        assert np.mean(bright != (out["segmentation"] == 1)) < 0.01  # nearest and linear differ along the outline only
        np.testing.assert_array_equal(out["instances"], out["segmentation"] * 7)
        assert not np.array_equal(out["segmentation"], disc()["segmentation"])
        assert set(np.unique(out["segmentation"])) <= {0, 1}


def test_round_trip():
    """Deforming by a field and then by its inverse (by fixed-point iteration) brings the mask back."""
    example = disc()
    field = displacement_field(np.random.default_rng(3).normal(0, 4, (2, 3, 3)), (96, 128))
    inverse = np.zeros_like(field)
    grid = np.indices((96, 128)).astype(np.float32)
    for _ in range(30):
        y, x = np.rint(np.clip(grid + inverse, 0, np.array([95, 127])[:, None, None])).astype(int)
        inverse = -field[:, y, x]
    back = deform(deform(example, field), inverse)
    seen = back["pixel_valid"]
    assert seen.mean() > 0.75
    assert np.mean(back["segmentation"][seen] == example["segmentation"][seen]) > 0.985


def test_void_stays_void():
    example = disc()
    example["pixel_valid"] = example["segmentation"] == 1
    out = elastic(sigma=6)(example, np.random.default_rng(0))
    np.testing.assert_array_equal(out["pixel_valid"], out["segmentation"] == 1)


def test_same_generator_same_deformation_and_probability():
    first, second = (elastic(sigma=6)(disc(), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first["image"], second["image"])
    example = disc()
    assert elastic(probability=0.0)(example, np.random.default_rng(0)) is example


def test_errors():
    with pytest.raises(ValueError, match="boxes"):
        elastic()({**disc(), "boxes": np.zeros((0, 4))}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="points=1"):
        elastic(points=1)


def test_objects_with_masks_take_the_boxes_of_their_moved_masks():
    example = disc()
    mask = example["segmentation"] > 0
    given = {**example, "box_mask": bits.pack(np.stack([mask, mask & False])), "boxes": np.zeros((2, 4), np.float32)}
    given["box_label"] = np.array([1, 2])
    out = elastic(sigma=8.0)(given, np.random.default_rng(3))
    moved = bits.unpack(out["box_mask"], 128)
    np.testing.assert_array_equal(moved, out["segmentation"][None] > 0)  # the empty one is gone
    rows, columns = np.nonzero(moved[0])
    np.testing.assert_array_equal(out["boxes"], [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
    assert out["box_label"].tolist() == [1] and not np.array_equal(moved[0], mask)
