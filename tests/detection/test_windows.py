"""Boxes of windows and of the whole picture become one list."""

import numpy as np

from imgrec_jax.data.annotations import mask_values
from imgrec_jax.detection import masks, windows


def record(*rows):
    rows = np.array(rows, np.float64).reshape(-1, 6)
    return {"boxes": rows[:, :4], "scores": rows[:, 4].astype(np.float32), "labels": rows[:, 5].astype(np.int32)}


def test_windows_cover_the_picture_and_overlap():
    found = windows.windows_of((100, 250), (100, 100), 0.25)
    assert found[0] == windows.Window((0, 0), (100, 250)) and len(found) == 4
    covered = np.zeros((100, 250), int)
    for one in found[1:]:
        top, left, height, width = one.place
        covered[top : top + height, left : left + width] += 1
    assert covered.min() == 1 and windows.windows_of((80, 90), (100, 100), 0.25) == [windows.Window((0, 0), (80, 90))]


def test_an_object_on_a_seam_is_found_once_and_whole():
    cut = windows.windows_of((100, 175), (100, 100), 0.25)  # windows at 0 and 75
    whole = record()
    left = record([90, 40, 100, 60, 0.9, 1], [10, 10, 30, 30, 0.8, 2])  # the first is cut by the seam at 100
    right = record([15, 40, 35, 60, 0.7, 1])
    merged = windows.merge([whole, left, right], cut, (100, 175), nms_thresh=0.5, most=10)
    np.testing.assert_array_equal(merged["boxes"], [[10, 10, 30, 30], [90, 40, 110, 60]])
    assert merged["labels"].tolist() == [2, 1]


def test_what_both_see_is_one_object_and_the_best_are_kept():
    cut = windows.windows_of((100, 175), (100, 100), 0.25)
    whole = record([80, 40, 96, 60, 0.6, 1], [0, 0, 50, 50, 0.95, 1])
    left, right = (
        record([80, 41, 95, 60, 0.9, 1], [5, 5, 30, 30, 0.5, 1]),
        record([5, 40, 21, 60, 0.8, 1], [5, 40, 21, 60, 0.7, 2]),
    )
    merged = windows.merge([whole, left, right], cut, (100, 175), nms_thresh=0.5, most=3)
    # the small box lies inside the larger of another window; the same place as another class stays
    np.testing.assert_allclose(merged["scores"], [0.95, 0.9, 0.7], atol=1e-6)
    alone = windows.merge([whole], cut[:1], (100, 175), nms_thresh=0.5, most=3)
    assert alone is whole


def test_only_masks_that_stay_are_moved(monkeypatch):
    moved, move = [], windows._moved_mask
    monkeypatch.setattr(windows, "_moved_mask", lambda *args: moved.append(args) or move(*args))
    cut = windows.windows_of((100, 175), (100, 100), 0.25)
    text = [masks.run_lengths(np.ones(cut[n].size, bool)) for n in range(3)]
    rows = ([80, 40, 96, 60, 0.6, 1], [80, 41, 95, 60, 0.9, 1], [5, 40, 21, 60, 0.8, 1])
    records = [{**record(row), "masks": [mask]} for row, mask in zip(rows, text, strict=True)]
    merged = windows.merge(records, cut, (100, 175), nms_thresh=0.5, most=3)
    assert len(moved) == len(merged["masks"]) == 1
    assert (
        mask_values(merged["masks"][0], 100, 175)[:, :100].all()
        and not mask_values(merged["masks"][0], 100, 175)[:, 100:].any()
    )


def test_masks_of_windows_are_put_into_the_picture():
    """A mask of the right window, moved by its place; the cut one goes with its box."""
    whole, right = windows.Window((0, 0), (10, 20)), windows.Window((0, 10), (10, 10))
    mask = np.zeros((10, 10), bool)
    mask[2:6, 3:8] = True
    text = masks.run_lengths(mask)
    record = {"boxes": np.array([[3.0, 2, 8, 6], [0, 1, 4, 4]]), "scores": np.array([0.9, 0.8]), "labels": np.array([1, 1])}
    none = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int), "masks": []}
    merged = windows.merge([none, {**record, "masks": [text, text]}], [whole, right], (10, 20), nms_thresh=0.5, most=5)
    np.testing.assert_array_equal(merged["boxes"], [[13, 2, 18, 6]])
    expected = np.zeros((10, 20), bool)
    expected[2:6, 13:18] = True
    np.testing.assert_array_equal(mask_values(merged["masks"][0], 10, 20), expected)
