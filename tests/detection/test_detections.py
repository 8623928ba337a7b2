import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.detection.detections import select_detections, select_from_anchors
from tests.detection import reference
from tests.goldens import seeded

OPTIONS = {
    "reg_weights": (10.0, 10.0, 5.0, 5.0),
    "score_thresh": 0.05,
    "nms_thresh": 0.5,
    "detections_per_img": 4,
    "pre_nms_top_n": 50,
}


def test_by_hand():
    proposals = jnp.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 80, 80], [5, 5, 9, 9]])
    probs = np.array([[0.1, 0.6, 0.3], [0.2, 0.7, 0.1], [0.95, 0.02, 0.03], [0.0, 0.5, 0.5]])
    out = select_detections(
        jnp.log(probs + 1e-9), jnp.zeros((4, 3, 4)), proposals, jnp.array([True, True, True, False]),
        jnp.array([60, 60]), **OPTIONS,
    )  # fmt: skip
    # Class 1: proposal 1 (0.7) removes proposal 0. Class 2: proposal 0 (0.3) removes proposal 1. The rest is background,
    # below the threshold or not there.
    assert out.valid.tolist() == [True, True, False, False]
    assert out.labels.tolist() == [1, 2, 0, 0]
    np.testing.assert_allclose(out.scores, [0.7, 0.3, 0, 0], rtol=1e-5)
    assert out.boxes.tolist() == [[1, 0, 11, 10], [0, 0, 10, 10], [0] * 4, [0] * 4]


@pytest.mark.parametrize("detections_per_img", [5, 100])
def test_equal_to_torchvision(detections_per_img):
    torch = pytest.importorskip("torch")
    roi_heads = seeded.import_torchvision().models.detection.roi_heads
    rng = np.random.default_rng(0)
    proposals = reference.random_boxes(rng, 80).clip(0, 100)
    logits = rng.normal(0, 2, (80, 5)).astype(np.float32)
    deltas = rng.normal(0, 2, (80, 5, 4)).astype(np.float32)
    heads = roi_heads.RoIHeads(
        None, None, None, 0.5, 0.5, 512, 0.25, None, OPTIONS["score_thresh"], OPTIONS["nms_thresh"], detections_per_img
    )
    (boxes,), (scores,), (labels,) = heads.postprocess_detections(
        torch.tensor(logits), torch.tensor(deltas.reshape(80, -1)), [torch.tensor(proposals)], [(90, 95)]
    )
    options = {**OPTIONS, "detections_per_img": detections_per_img, "pre_nms_top_n": 400}
    out = jax.jit(functools.partial(select_detections, **options))(
        logits, deltas, proposals, jnp.ones(80, bool), jnp.array([90, 95])
    )
    count = int(out.valid.sum())
    assert count == len(scores)
    np.testing.assert_array_equal(out.labels[:count], labels.numpy())
    np.testing.assert_allclose(out.scores[:count], scores.numpy(), atol=1e-6)
    np.testing.assert_allclose(out.boxes[:count], boxes.numpy(), atol=1e-4)


def test_a_canvas_with_few_candidates_has_as_many_rows():
    """Detections of a set are put together, whatever canvas each image was on."""
    anchors = jnp.array([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    options = {"score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 9, "topk_candidates": 5}
    out = select_from_anchors(
        [jnp.array([[0.0, 2.0], [0.0, 1.0]])], [jnp.zeros((2, 4))], [anchors], jnp.array([60, 60]), **options
    )
    assert out.boxes.shape == (9, 4) and out.valid.tolist() == [True, True] + [False] * 7
    assert not np.any(out.boxes[2:]) and not np.any(out.scores[2:])
