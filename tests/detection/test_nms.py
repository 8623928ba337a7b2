import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrec_jax.detection.nms import nms, top_scores
from tests.detection import reference
from tests.goldens import seeded

COUNT = 40  # one shape, so that everything compiles once
jitted = jax.jit(nms)


def overlapping(rng, count=COUNT):
    """Boxes in clusters, so that every threshold has overlaps on both sides."""
    centres = reference.random_boxes(rng, 5, longest=40.0)[rng.integers(0, 5, count)]
    boxes = centres + rng.normal(0, 4.0, (count, 4)).astype(np.float32)
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def clear_of(threshold, boxes):
    """Whether no IoU is so near the threshold that float32 and float64 may disagree."""
    return np.abs(reference.iou(boxes, boxes) - threshold).min() > 1e-5


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    threshold=st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9]),
    groups=st.integers(1, 3),
    ties=st.booleans(),
)
def test_equals_greedy_at_every_threshold(seed, threshold, groups, ties):
    rng = np.random.default_rng(seed)
    boxes, scores, valid = overlapping(rng), rng.random(COUNT, np.float32), rng.random(COUNT) < 0.8
    scores = np.round(scores, 1) if ties else scores
    group = rng.integers(0, groups, COUNT)
    if not clear_of(threshold, boxes):
        return
    expected = reference.nms(boxes, scores, valid, threshold, group)
    np.testing.assert_array_equal(jitted(boxes, scores, valid, threshold, group), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), threshold=st.sampled_from([0.3, 0.5, 0.7]))
def test_padding_and_order_change_nothing(seed, threshold):
    rng = np.random.default_rng(seed)
    boxes, scores = overlapping(rng), rng.random(COUNT, np.float32)
    keep = np.asarray(jitted(boxes, scores, np.ones(COUNT, bool), threshold))
    shuffled = rng.permutation(COUNT)
    again = np.asarray(jitted(boxes[shuffled], scores[shuffled], np.ones(COUNT, bool), threshold))
    np.testing.assert_array_equal(again, keep[shuffled])
    rubbish = np.full((24, 4), np.nan, np.float32)
    padded = np.asarray(
        jitted(
            np.concatenate([rubbish, boxes]),
            np.concatenate([np.full(24, np.inf, np.float32), scores]),
            np.arange(24 + COUNT) >= 24,
            threshold,
        )
    )
    np.testing.assert_array_equal(padded[24:], keep)
    assert not padded[:24].any()


def test_threshold_is_strict():
    boxes = jnp.array([[0.0, 0, 2, 1], [0.0, 0, 1, 1]])  # IoU exactly 1/2
    scores, valid = jnp.array([0.9, 0.8]), jnp.ones(2, bool)
    assert nms(boxes, scores, valid, 0.5).tolist() == [True, True]
    assert nms(boxes, scores, valid, 0.49).tolist() == [True, False]


def test_longest_possible_chain():
    # Each box overlaps only its neighbours; greedy keeps every other one, decided link by link.
    left = jnp.arange(200.0) * 5
    boxes = jnp.stack([left, jnp.zeros(200), left + 9, jnp.ones(200)], axis=1)
    keep = nms(boxes, -jnp.arange(200.0), jnp.ones(200, bool), 0.25)
    np.testing.assert_array_equal(keep, np.arange(200) % 2 == 0)


def test_vmap_equals_an_eager_loop_and_nothing_invalid_is_kept():
    rng = np.random.default_rng(3)
    boxes = np.stack([overlapping(rng) for _ in range(3)])
    scores = rng.random((3, COUNT), np.float32)
    valid = np.stack([np.ones(COUNT, bool), np.zeros(COUNT, bool), rng.random(COUNT) < 0.5])
    batched = jax.vmap(nms, in_axes=(0, 0, 0, None))(boxes, scores, valid, 0.5)
    for row, args in zip(batched, zip(boxes, scores, valid, strict=True), strict=True):
        np.testing.assert_array_equal(row, nms(*args, 0.5))
    assert not batched[1].any()


def test_gradient_does_not_pass():
    def kept_area(boxes):
        keep = nms(boxes, boxes[:, 0], jnp.ones(2, bool), 0.5)
        return jnp.sum(jnp.where(keep, boxes[:, 2], 0.0))

    gradient = jax.grad(kept_area)(jnp.array([[0.0, 0, 2, 1], [0.1, 0, 2, 1]]))
    assert gradient.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]


def test_top_scores():
    scores = jnp.array([0.1, 0.9, 0.5, 0.9])
    index, valid = top_scores(scores, jnp.array([True, True, False, True]), 8)
    assert index.tolist()[:3] == [1, 3, 0]
    assert valid.tolist() == [True, True, True, False]


def test_equal_to_torchvision_per_class():
    torch = pytest.importorskip("torch")
    tv = seeded.import_torchvision()
    rng = np.random.default_rng(0)
    boxes, scores, label = overlapping(rng, 300), rng.random(300, np.float32), rng.integers(0, 4, 300)
    kept = tv.ops.batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(label), 0.5).numpy()
    ours = np.asarray(nms(boxes, scores, np.ones(300, bool), 0.5, label))
    np.testing.assert_array_equal(np.flatnonzero(ours), np.sort(kept))
