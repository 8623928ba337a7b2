import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrec_jax.detection import boxes as box_ops
from tests.detection.reference import iou, random_boxes
from tests.goldens import seeded


def test_numbers_by_hand():
    a = jnp.array([[0.0, 0.0, 10.0, 10.0]])
    b = jnp.array([[5.0, 5.0, 15.0, 15.0], [20.0, 20.0, 30.0, 30.0], [3.0, 3.0, 3.0, 3.0]])
    assert box_ops.area(b).tolist() == [100.0, 100.0, 0.0]
    np.testing.assert_allclose(box_ops.pairwise_iou(a, b)[0], [25 / 175, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(box_ops.pairwise_overlap_of_first(a, b)[0], [0.25, 0.0, 0.0], rtol=1e-6)
    clipped = box_ops.clip(jnp.array([[-3.0, 2.0, 50.0, 60.0]]), jnp.array([40, 30]))
    assert clipped.tolist() == [[0.0, 2.0, 30.0, 40.0]]
    assert box_ops.at_least(b, 10.0).tolist() == [True, True, False]
    grown = box_ops.rescale(a + 1.0, jnp.array([20, 40]), jnp.array([40, 60]))
    np.testing.assert_allclose(grown, [[1.5, 2.0, 16.5, 22.0]], rtol=1e-6)


def test_both_sides_must_be_long_enough():
    boxes = jnp.array([[1.0, 2, 5, 6], [1.0, 2, 4.5, 9], [1.0, 2, 9, 5.5], [-3.0, -3, 1, 1]])
    assert box_ops.at_least(boxes, 4.0).tolist() == [True, False, False, True]


def test_clipping_by_each_side():
    inside = box_ops.clip(jnp.array([[-1.0, -2, 50, 70], [31.0, 41, 32, 42], [5.0, 6, 7, 8]]), jnp.array([40, 30]))
    assert inside.tolist() == [[0, 0, 30, 40], [30, 40, 30, 40], [5, 6, 7, 8]]


def test_iou_without_area_is_zero_and_differentiable():
    empty = jnp.zeros((1, 4))
    assert box_ops.pairwise_iou(empty, empty).item() == 0.0
    gradient = jax.grad(lambda a: box_ops.pairwise_iou(a, a).sum())(empty)
    assert np.isfinite(gradient).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_iou_equals_float64(seed):
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, 13), random_boxes(rng, 7)
    ours = np.asarray(box_ops.pairwise_iou(a, b))
    np.testing.assert_allclose(ours, iou(a, b), rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), weights=st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
def test_decode_inverts_encode(seed, weights):
    rng = np.random.default_rng(seed)
    boxes, anchors = random_boxes(rng, 9), random_boxes(rng, 9, shortest=2.0)
    deltas = box_ops.encode(boxes, anchors, weights)
    np.testing.assert_allclose(box_ops.decode(deltas, anchors, weights), boxes, atol=2e-3)


def test_coder_by_hand_and_clamp():
    anchor = jnp.array([[0.0, 0.0, 10.0, 20.0]])
    box = jnp.array([[5.0, 10.0, 25.0, 30.0]])  # centre (15, 20), 20 x 20
    deltas = box_ops.encode(box, anchor, (10.0, 10.0, 5.0, 5.0))
    np.testing.assert_allclose(deltas, [[10.0, 5.0, 5 * np.log(2.0), 0.0]], rtol=1e-6)
    for axis in (0, 1):  # width, height
        huge = box_ops.decode(jnp.zeros((1, 4)).at[0, 2 + axis].set(100.0), anchor)
        np.testing.assert_allclose(huge[0, 2 + axis] - huge[0, axis], (10, 20)[axis] * 1000 / 16, rtol=1e-6)
        np.testing.assert_allclose(huge[0, 3 - axis] - huge[0, 1 - axis], (20, 10)[axis], rtol=1e-6)
    np.testing.assert_allclose(
        box_ops.decode(jnp.array([[10.0, 5.0, 5 * np.log(2.0), 0.0]]), anchor, (10.0, 10.0, 5.0, 5.0)), box, rtol=1e-6
    )


def test_a_side_without_length_counts_as_one_pixel():
    point, anchor = jnp.array([[5.0, 10.0, 5.0, 10.0]]), jnp.array([[0.0, 0.0, 10.0, 20.0]])
    np.testing.assert_allclose(box_ops.encode(point, anchor), [[0, 0, -np.log(10.0), -np.log(20.0)]], atol=1e-6)
    np.testing.assert_allclose(box_ops.encode(anchor, point), [[0, 0, np.log(10.0), np.log(20.0)]], atol=1e-6)


def test_encode_of_padding_is_finite_with_finite_gradient():
    zeros = jnp.zeros((3, 4))
    value, gradient = jax.value_and_grad(lambda b: box_ops.encode(b, zeros).sum())(zeros)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_coder_equals_torchvision():
    torch = pytest.importorskip("torch")
    detection = seeded.import_torchvision().models.detection
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 50), random_boxes(rng, 50)
    coder = detection._utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    deltas = coder.encode_single(torch.tensor(boxes), torch.tensor(anchors)).numpy()
    np.testing.assert_allclose(box_ops.encode(boxes, anchors, coder.weights), deltas, rtol=1e-5, atol=1e-5)
    deltas[:, 2:] *= 3  # some beyond the clamp
    theirs = coder.decode_single(torch.tensor(deltas), torch.tensor(anchors)).numpy()
    np.testing.assert_allclose(box_ops.decode(deltas, anchors, coder.weights), theirs, rtol=1e-5, atol=1e-4)
