"""Segmentation metrics against a case by hand, scikit-learn, and themselves in other batch sizes."""

import jax
import numpy as np
import pytest

from imgrec_jax import metrics
from imgrec_jax.segmentation.metrics import ObjectMaps, match_objects, pixel_scores, scores


def evaluated(predicted, label, valid, classes):
    return metrics.compute(jax.device_get(jax.jit(pixel_scores, static_argnums=3)(predicted, label, valid, classes)))


def test_by_hand():
    # Truth:      0 0 1 1     prediction: 0 1 1 1    void: the last pixel of the second row.
    #             0 2 2 v                 0 2 0 0    Class 3 occurs nowhere.
    label = np.array([[[0, 0, 1, 1], [0, 2, 2, 255]]])
    predicted = np.array([[[0, 1, 1, 1], [0, 2, 0, 0]]])
    values = evaluated(predicted, label, label != 255, 4)
    assert values["confusion"] == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert values["pixel_accuracy"] == pytest.approx(5 / 7)
    assert values["mean_accuracy"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert values["iou_per_class"] == [pytest.approx(2 / 4), pytest.approx(2 / 3), pytest.approx(1 / 2), None]
    assert values["mean_iou"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert values["dice_per_class"] == [pytest.approx(4 / 6), pytest.approx(4 / 5), pytest.approx(2 / 3), None]
    assert values["frequency_weighted_iou"] == pytest.approx((3 * 1 / 2 + 2 * 2 / 3 + 2 * 1 / 2) / 7)


def test_a_class_that_is_only_predicted_counts_as_wrong():
    values = scores(np.array([[3, 1], [0, 0]]))
    assert values["iou_per_class"] == [0.75, 0.0]
    assert values["mean_iou"] == 0.375
    assert values["mean_accuracy"] == 0.75  # the truth lacks class 1


def test_nothing_to_count():
    values = scores(np.zeros((2, 2)))
    assert values["mean_iou"] == 0.0 and values["iou_per_class"] == [None, None]


@pytest.mark.parametrize("classes", [2, 5])
def test_equals_scikit_learn(classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, classes, (2, 3, 20, 20))
    valid = rng.random(label.shape) < 0.7
    values = evaluated(predicted, label, valid, classes)
    y, p = label[valid], predicted[valid]
    assert values["confusion"] == sklearn.confusion_matrix(y, p).tolist()
    assert values["iou_per_class"] == pytest.approx(sklearn.jaccard_score(y, p, average=None))
    assert values["mean_iou"] == pytest.approx(sklearn.jaccard_score(y, p, average="macro"))
    assert values["frequency_weighted_iou"] == pytest.approx(sklearn.jaccard_score(y, p, average="weighted"))
    assert values["mean_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(y, p))
    assert values["dice_per_class"] == pytest.approx(sklearn.f1_score(y, p, average=None))
    assert ("f1" in values) == (classes == 2)
    if classes == 2:
        assert values["precision"] == pytest.approx(sklearn.precision_score(y, p))
        assert values["recall"] == pytest.approx(sklearn.recall_score(y, p))
        assert values["f1"] == pytest.approx(sklearn.f1_score(y, p))
        assert values["iou"] == pytest.approx(sklearn.jaccard_score(y, p))


def squares(*corners, side=4, size=20):
    """int [size, size]: object n + 1 is the square at corners[n]."""
    image = np.zeros((size, size), np.int32)
    for number, (y, x) in enumerate(corners, start=1):
        image[y : y + side, x : x + side] = number
    return image


def test_objects_by_hand():
    truth = squares((0, 0), (0, 10), (10, 0))
    # Found exactly; shifted by 1 of 4 columns (IoU 12 / 20 = 0.6); shifted by 2 (IoU 8 / 24); one that is not there.
    predicted = squares((0, 0), (0, 11), (10, 2), (15, 15)) > 0
    assert match_objects(predicted, truth, np.ones((20, 20), bool)) == (2, 4, 3)
    assert match_objects(predicted, truth, np.ones((20, 20), bool), threshold=0.7) == (1, 4, 3)


def test_merged_objects_are_missed_and_corners_do_not_join():
    truth = squares((0, 0), (0, 4), (8, 8), (12, 12))  # two side by side, two that touch at a corner
    assert match_objects(truth > 0, truth, np.ones((20, 20), bool)) == (2, 3, 4)


def test_an_iou_of_exactly_the_threshold_is_no_match():
    truth = squares((0, 0))
    predicted = truth.copy()
    predicted[2:] = 0  # half of it
    assert match_objects(predicted > 0, truth, np.ones((20, 20), bool)).matched == 0


def test_void_pixels_belong_to_no_object():
    truth = squares((0, 0), (10, 10))
    valid = np.ones((20, 20), bool)
    valid[10:, 10:] = False
    assert match_objects(np.ones((20, 20), bool), truth, valid) == (0, 1, 1)


def test_empty_and_full_images():
    empty, full, valid = np.zeros((5, 5), np.int32), np.full((5, 5), 9, np.int32), np.ones((5, 5), bool)
    assert match_objects(empty > 0, empty, valid) == (0, 0, 0)
    assert match_objects(full > 0, full, valid) == (1, 1, 1)
    assert match_objects(empty > 0, full, valid) == (0, 0, 1)
    with pytest.raises(ValueError, match="threshold 0.3"):
        match_objects(empty > 0, empty, valid, threshold=0.3)


def states(predicted, instances, valid):
    return {
        **pixel_scores(predicted, (instances > 0) * 1, valid, 2),
        "object": ObjectMaps(predicted > 0, instances, valid),
    }


def whole_set(arrays, batch_size):
    """The metrics of a set in batches of one size, the last one padded as the pipeline does: rows repeat and are void."""
    size = len(arrays[0])
    steps = -(-size // batch_size)
    rows = np.resize(np.arange(size), steps * batch_size).reshape(steps, batch_size)
    real = (np.arange(steps * batch_size) < size).reshape(steps, batch_size)
    merged, step = None, jax.jit(states)
    for index, counts in zip(rows, real, strict=True):
        predicted, instances, valid = (a[index] for a in arrays)
        merged = metrics.merge(merged, jax.device_get(step(predicted, instances, valid & counts[:, None, None])))
    return metrics.compute(merged)


def test_the_batch_size_changes_nothing():
    rng = np.random.default_rng(1)
    corners = [(0, 0), (0, 7), (9, 3), (14, 14)]
    instances = np.stack([squares(*(corners[i] for i in rng.permutation(4)[: rng.integers(0, 5)])) for _ in range(10)])
    predicted = np.stack([np.roll(image > 0, rng.integers(-2, 3), axis=1) for image in instances]).astype(np.int32)
    valid = rng.random(instances.shape) < 0.95
    one, seven, all_at_once = (whole_set((predicted, instances, valid), size) for size in (1, 7, 10))
    assert one == seven == all_at_once
    assert 0 < one["object_f1"] < 1 and one["object_truth"] > 0


def test_merged_objects_keep_no_maps():
    maps = ObjectMaps(np.zeros((2, 8, 8), bool), np.zeros((2, 8, 8), np.int32), np.ones((2, 8, 8), bool))
    assert all(np.size(leaf) == 1 for leaf in jax.tree.leaves(maps.merge(maps).merge(maps)))
