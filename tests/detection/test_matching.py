import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrec_jax.detection.matching import inside_crowd, match
from tests.detection.reference import iou, random_boxes
from tests.goldens import seeded

# rows: boxes, columns: anchors
IOU = jnp.array([[0.9, 0.1, 0.40, 0.0], [0.8, 0.2, 0.35, 0.5]])


def test_thresholds_by_hand():
    matches = match(IOU, jnp.array([True, True]), 0.7, 0.3)
    assert matches.box.tolist() == [0, 1, 0, 1]
    assert matches.positive.tolist() == [True, False, False, False]
    assert matches.negative.tolist() == [False, True, False, False]  # the last two lie between the thresholds


def test_an_iou_at_a_threshold():
    """At the upper one an anchor is positive, at the lower one it is not negative."""
    matches = match(jnp.array([[0.75, 0.5, 0.25, 0.125]]), jnp.array([True]), 0.75, 0.25)
    assert matches.positive.tolist() == [True, False, False, False]
    assert matches.negative.tolist() == [False, False, False, True]


def test_equal_boxes_give_the_first():
    matches = match(jnp.array([[0.5, 0.0], [0.5, 0.0]]), jnp.array([True, True]), 0.5, 0.5)
    assert matches.box.tolist() == [0, 0] and matches.negative.tolist() == [False, True]


def test_a_box_without_good_anchor_gets_its_best_one():
    iou_matrix = jnp.array([[0.9, 0.1, 0.40, 0.0], [0.2, 0.2, 0.35, 0.5]])
    matches = match(iou_matrix, jnp.array([True, True]), 0.7, 0.3, allow_low_quality=True)
    assert matches.positive.tolist() == [True, False, False, True]
    unasked = match(iou_matrix, jnp.array([True, True]), 0.7, 0.3)
    assert unasked.positive.tolist() == [True, False, False, False]


def test_low_quality_ties_keep_each_anchors_own_box():
    # Box 0 is best matched by anchors 0 and 1 alike; anchor 1 overlaps box 1 more and keeps it.
    iou_matrix = jnp.array([[0.25, 0.25, 0.0], [0.0, 0.28, 0.6]])
    matches = match(iou_matrix, jnp.array([True, True]), 0.7, 0.3, allow_low_quality=True)
    assert matches.positive.tolist() == [True, True, True]
    assert matches.box.tolist() == [0, 1, 1]
    assert not matches.negative.any()


def test_padding_changes_nothing_and_a_box_that_no_anchor_meets_makes_none_positive():
    padded = jnp.concatenate([jnp.full((1, 4), 0.99), IOU, jnp.zeros((2, 4))])
    valid = jnp.array([False, True, True, True, False])  # row 3 is a real box without any overlap
    matches = match(padded, valid, 0.7, 0.3, allow_low_quality=True)
    plain = match(IOU, jnp.array([True, True]), 0.7, 0.3, allow_low_quality=True)
    assert (matches.box - 1).tolist() == plain.box.tolist()
    assert matches.positive.tolist() == plain.positive.tolist()
    assert matches.negative.tolist() == plain.negative.tolist()


def test_without_boxes_everything_is_negative():
    matches = match(IOU, jnp.array([False, False]), 0.0, 0.0, allow_low_quality=True)
    assert matches.negative.all() and not matches.positive.any()


def test_anchor_inside_crowd():
    anchors = jnp.array([[0.0, 0, 10, 10], [5.0, 0, 15, 10], [50.0, 50, 60, 60]])
    boxes = jnp.array([[0.0, 0, 12, 100], [45.0, 45, 70, 70]])
    assert inside_crowd(anchors, boxes, jnp.array([True, False]), 0.7).tolist() == [True, True, False]
    assert inside_crowd(anchors, boxes, jnp.array([True, False]), 0.71).tolist() == [True, False, False]
    half = jnp.array([[0.0, 0, 8, 4]])  # exactly at the threshold, by an area of another than the crowd's
    assert inside_crowd(half, jnp.array([[4.0, 0, 80, 80]]), jnp.array([True]), 0.5).tolist() == [True]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), low_quality=st.booleans())
def test_equal_to_torchvision(seed, low_quality):
    torch = pytest.importorskip("torch")
    tv = seeded.import_torchvision()
    rng = np.random.default_rng(seed)
    anchors = np.tile(random_boxes(rng, 40), (2, 1))  # duplicates make ties
    quality = iou(random_boxes(rng, 5), anchors).astype(np.float32)
    quality = quality[quality.max(1) > 0]  # torchvision turns every anchor positive for a row of zeros
    if not len(quality):
        return
    theirs = tv.models.detection._utils.Matcher(0.5, 0.3, low_quality)(torch.tensor(quality)).numpy()
    ours = match(jnp.asarray(quality), jnp.ones(len(quality), bool), 0.5, 0.3, low_quality)
    np.testing.assert_array_equal(np.asarray(ours.positive), theirs >= 0)
    np.testing.assert_array_equal(np.asarray(ours.negative), theirs == -1)
    np.testing.assert_array_equal(np.asarray(ours.box)[theirs >= 0], theirs[theirs >= 0])
