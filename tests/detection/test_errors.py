"""Every kind of error once, by hand; precision and AP over resampled images against pycocotools."""

import dataclasses

import numpy as np
import pytest

from imgrec_jax.data.annotations import from_images
from imgrec_jax.detection import coco_eval, errors


def test_each_kind_of_error_by_hand():
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 100, 20]], np.float64)
    true_labels, crowd = np.array([1, 1, 2, 2, 1]), np.array([0, 0, 0, 0, 1], bool)
    rows = {
        "correct": ([0, 0, 10, 9], 0.9, 1),
        "duplicate": ([0, 0, 10, 10], 0.8, 1),  # a better overlap, but later
        "class": ([20, 0, 30, 10], 0.7, 2),
        "localisation": ([44, 0, 54, 10], 0.6, 2),  # IoU 6 / 14
        "both": ([44, 0, 54, 10], 0.5, 1),
        "background": ([0, 50, 10, 60], 0.4, 1),
        "ignored": ([82, 2, 90, 10], 0.3, 1),
    }
    boxes, scores, labels = (np.array([row[n] for row in rows.values()], np.float64) for n in range(3))
    found = errors.classify(boxes, scores, labels.astype(int), truth, true_labels, crowd)
    assert [errors.KINDS[k] for k in found.kind] == list(rows)
    assert found.found.tolist() == [True, False, False, False, False]
    assert found.missed.tolist() == [False, False, False, True, False]  # explained: the second and third
    nothing = errors.classify(boxes[:0], scores[:0], labels[:0].astype(int), truth, true_labels, crowd)
    assert nothing.missed.sum() == 4
    assert errors.classify(
        boxes[:1], scores[:1], labels[:1].astype(int), truth[:0], true_labels[:0], crowd[:0]
    ).kind.tolist() == [5]


def random_set(seed, images=12):
    rng = np.random.default_rng(seed)
    described, rows = [], []
    for image_id in range(1, images + 1):
        n = rng.integers(0, 4)
        boxes = np.concatenate([xy := rng.uniform(0, 60, (n, 2)), xy + rng.uniform(10, 40, (n, 2))], axis=1)
        labels, crowd = rng.integers(1, 3, n), rng.random(n) < 0.15
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        described.append({"image_id": image_id, "file_name": f"{image_id}.png", "size": (100, 100), "boxes": boxes,
                          "labels": labels, "crowd": crowd, "ids": np.arange(n), "areas": areas})  # fmt: skip
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(rng.integers(0, 3)):
                rows.append([image_id, *(box + rng.normal(0, 3, 4)), round(rng.random(), 1), label])
        rows.append([image_id, 5, 5, 40, 40, rng.random(), rng.integers(1, 3)])
    return from_images(described, class_names=("a", "b")), np.array(rows, np.float64)


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_weighted_images_is_that_of_the_images_repeated(seed):
    table, rows = random_set(seed)
    statistic = coco_eval.by_images(table.to_coco(), rows)
    ones = np.ones(len(table), int)
    assert statistic(ones) == pytest.approx(coco_eval.evaluate(table.to_coco(), rows).summary["AP"], abs=1e-12)
    weights = np.random.default_rng(seed).integers(0, 3, len(table))
    chosen = np.repeat(np.arange(len(table)), weights)
    repeated = dataclasses.replace(table.subset(chosen), image_ids=np.arange(1, len(chosen) + 1))
    of_image = [rows[rows[:, 0] == table.image_ids[i]] for i in chosen]
    copies = np.concatenate([np.column_stack([np.full(len(r), n), r[:, 1:]]) for n, r in enumerate(of_image, start=1)])
    want = coco_eval.evaluate(repeated.to_coco(), copies).summary["AP"]
    assert statistic(weights) == pytest.approx(want, abs=0.02)  # equal scores of different images may change places


def test_curves_at_every_threshold():
    curve = errors.curves(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]), 4)
    np.testing.assert_allclose(curve["threshold"], [0.9, 0.5, 0.1])
    np.testing.assert_allclose(curve["precision"], [1, 2 / 3, 0.5])
    np.testing.assert_allclose(curve["recall"], [0.25, 0.5, 0.5])
    np.testing.assert_allclose(curve["f1"], [0.4, 4 / 7, 0.5])
