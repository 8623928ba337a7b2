import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.detection.boxes import encode
from imgrec_jax.detection.sampling import sample_by_priority
from imgrec_jax.detection.targets import GroundTruth, anchor_targets, proposal_targets

TRUTH = GroundTruth(
    boxes=jnp.array([[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 100, 100], [60, 60, 90, 90]]),
    label=jnp.array([3, 7, 1, 2]),
    valid=jnp.array([True, True, False, False]),
    crowd=jnp.array([False, False, False, True]),
)
CANDIDATES = jnp.array([[1.0, 0, 11, 10], [20, 20, 40, 41], [70, 70, 80, 80], [0, 50, 10, 60]])
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def in_order(key, positive, negative, batch_size, positive_fraction):
    return sample_by_priority(-jnp.arange(float(positive.size)) + 99.0, positive, negative, batch_size, positive_fraction)


def test_anchor_targets_by_hand():
    out = anchor_targets(
        jax.random.key(0), CANDIDATES, TRUTH,
        fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size=4, positive_fraction=0.5, sampler=in_order,
    )  # fmt: skip
    assert out.index.tolist() == [0, 1, 2, 3]
    assert out.positive.tolist() == [True, True, False, False] and out.valid.all()
    np.testing.assert_allclose(out.deltas[:2], encode(TRUTH.boxes[:2], CANDIDATES[:2]), rtol=1e-6)


def test_a_negative_in_a_crowd_is_left_out():
    out = anchor_targets(
        jax.random.key(0), CANDIDATES, TRUTH,
        fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size=4, positive_fraction=0.5, crowd_thresh=0.7, sampler=in_order,
    )  # fmt: skip
    assert out.index[:3].tolist() == [0, 1, 3] and out.valid.tolist() == [True, True, True, False]


def test_proposal_targets_by_hand():
    out = proposal_targets(
        jax.random.key(0), CANDIDATES, jnp.array([True, False, True, True]), TRUTH,
        fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size=8, positive_fraction=0.5, reg_weights=WEIGHTS, sampler=in_order,
    )  # fmt: skip
    # Proposal 1 does not exist; the two valid boxes are proposals themselves; padding and crowds are not.
    assert out.label.tolist() == [3, 3, 7, 0, 0, 0, 0, 0]
    assert out.valid.tolist() == [True] * 5 + [False] * 3
    assert out.rois[:3].tolist() == [[1, 0, 11, 10], [0, 0, 10, 10], [20, 20, 40, 40]]
    np.testing.assert_allclose(out.deltas[0], [-1.0, 0.0, 0.0, 0.0], atol=1e-6)


def test_finite_without_boxes_and_with_padding_of_zeros():
    none = GroundTruth(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), jnp.zeros(2, bool), jnp.zeros(2, bool))
    out = proposal_targets(
        jax.random.key(0), CANDIDATES, jnp.ones(4, bool), none,
        fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size=8, positive_fraction=0.5, reg_weights=WEIGHTS,
    )  # fmt: skip
    assert not out.positive.any() and int(out.valid.sum()) == 4 and np.isfinite(out.deltas).all()
