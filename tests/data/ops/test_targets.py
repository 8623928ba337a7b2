"""Ops on targets, by hand."""

import numpy as np
import pytest

from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops import targets as target_ops

RNG = np.random.default_rng(0)


def example(boxes, **extra):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "image": np.zeros((20, 30, 3), np.uint8),
        "boxes": boxes,
        "box_label": np.arange(1, len(boxes) + 1),
        "box_crowd": np.zeros(len(boxes), np.bool_),
        "box_id": 100 + np.arange(len(boxes)),
        "file_name": "cell.png",
        **extra,
    }


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([5, 5, 5, 9], "degenerate"),
        ([5, 9, 8, 7], "degenerate"),
        ([np.nan, 0, 3, 3], "degenerate"),
        ([25, 5, 32, 9], "outside"),
    ],
)
def test_bad_boxes_stop_with_file_and_id(box, kind):
    with pytest.raises(ValueError, match=rf"cell.png: annotation 101 has a box that is {kind}.*drop_degenerate_boxes=True"):
        target_ops.check_boxes()(example([[1, 1, 4, 4], box]), RNG)


def test_bad_boxes_can_be_dropped_or_clipped():
    out = target_ops.check_boxes(drop=True)(example([[1, 1, 4, 4], [5, 5, 5, 9], [25, 5, 32, 9], [31, 0, 35, 4]]), RNG)
    np.testing.assert_array_equal(out["boxes"], [[1, 1, 4, 4], [25, 5, 30, 9]])
    np.testing.assert_array_equal(out["box_id"], [100, 102])


def test_rounding_over_the_border_is_clipped_in_silence():
    out = target_ops.check_boxes()(example([[-0.4, 0, 30.6, 20]]), RNG)
    np.testing.assert_array_equal(out["boxes"], [[0, 0, 30, 20]])


def test_drop_crowd():
    out = target_ops.drop_crowd()(example([[0, 0, 1, 1], [0, 0, 2, 2]], box_crowd=np.array([True, False])), RNG)
    np.testing.assert_array_equal(out["box_label"], [2])


def test_semantic_map_puts_small_over_large_and_voids_crowds():
    masks = np.zeros((3, 20, 30), np.bool_)
    masks[0, 5:8, 5:8] = True  # small, listed first
    masks[1, :10, :10] = True  # large
    masks[2, :, 8:12] = True  # crowd
    boxes = [[5, 5, 8, 8], [0, 0, 10, 10], [8, 0, 12, 20]]
    op = target_ops.segmentation_from_instances()
    out = op(example(boxes, box_mask=bits.pack(masks), box_crowd=np.array([False, False, True])), RNG)
    expected = np.zeros((20, 30), np.int32)
    expected[:10, :10] = 2
    expected[5:8, 5:8] = 1
    np.testing.assert_array_equal(out["segmentation"], expected)
    void = masks[2].copy()
    void[:10, :10] = False
    np.testing.assert_array_equal(out["pixel_valid"], ~void)
