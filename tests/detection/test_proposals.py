import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.detection.anchors import cell_anchors, pyramid_anchors
from imgrec_jax.detection.proposals import select_proposals
from tests.goldens import seeded

SIZES, RATIOS, GRIDS, IMAGE = (16, 32), (0.5, 1.0, 2.0), [(12, 16), (6, 8)], (96, 128)


def outputs(seed):
    rng = np.random.default_rng(seed)
    anchors = pyramid_anchors([cell_anchors([s], RATIOS) for s in SIZES], GRIDS, image_size=IMAGE)
    logits = [rng.normal(0, 2, len(a)).astype(np.float32) for a in anchors]
    deltas = [rng.normal(0, 0.4, a.shape).astype(np.float32) for a in anchors]
    return logits, deltas, anchors


def test_by_hand():
    anchors = [np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], np.float32)] * 2
    logits = [jnp.array([2.0, 1.0, 0.0]), jnp.array([-1.0, 3.0, -2.0])]
    deltas = [jnp.zeros((3, 4))] * 2
    out = select_proposals(logits, deltas, anchors, jnp.array([10, 25]), pre_nms_top_n=2, post_nms_top_n=3, nms_thresh=0.7)
    # Level 0: the second box loses to the first (IoU 9/11), the third did not enter. Level 1: the first box loses.
    assert out.boxes[:2].tolist() == [[1, 0, 11, 10], [0, 0, 10, 10]]
    assert out.valid.tolist() == [True, True, False]
    np.testing.assert_allclose(out.scores, [jax.nn.sigmoid(3.0), jax.nn.sigmoid(2.0), 0.0])


def test_small_and_low_scoring_boxes_go():
    anchors = [np.array([[30, 0, 40, 10], [0, 0, 10, 10]], np.float32)]  # the first lies outside the image
    call = functools.partial(select_proposals, pre_nms_top_n=9, post_nms_top_n=9, nms_thresh=0.7)
    out = call([jnp.array([5.0, 1.0])], [jnp.zeros((2, 4))], anchors, jnp.array([25, 25]))
    assert out.valid.tolist() == [True, False]
    assert out.boxes[0].tolist() == [0, 0, 10, 10]
    out = call([jnp.array([5.0, 1.0])], [jnp.zeros((2, 4))], anchors, jnp.array([25, 25]), score_thresh=0.99)
    assert not out.valid.any()


def test_no_gradient():
    logits, deltas, anchors = outputs(0)

    def total(logits, deltas):
        out = select_proposals(logits, deltas, anchors, jnp.array(IMAGE), pre_nms_top_n=20, post_nms_top_n=10, nms_thresh=0.7)
        return out.boxes.sum() + out.scores.sum()

    assert not any(np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1)))(logits, deltas)))


@pytest.mark.parametrize(("pre", "post"), [(1000, 1000), (60, 50)])
def test_equal_to_torchvision(pre, post):
    torch = pytest.importorskip("torch")
    tv = seeded.import_torchvision()
    logits, deltas, anchors = outputs(1)
    detection = tv.models.detection
    rpn = detection.rpn.RegionProposalNetwork(
        None, torch.nn.Identity(), 0.7, 0.3, 256, 0.5, dict.fromkeys(("training", "testing"), pre),
        dict.fromkeys(("training", "testing"), post), 0.7,
    )  # fmt: skip
    coder = detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    decoded = coder.decode_single(torch.tensor(np.concatenate(deltas)), torch.tensor(np.concatenate(anchors)))
    (boxes,), (scores,) = rpn.filter_proposals(
        decoded[None], torch.tensor(np.concatenate(logits))[None], [(90, 120)], [len(a) for a in anchors]
    )
    ours = jax.jit(functools.partial(select_proposals, pre_nms_top_n=pre, post_nms_top_n=post, nms_thresh=0.7))(
        logits, deltas, anchors, jnp.array([90, 120])
    )
    count = int(ours.valid.sum())
    assert count == len(boxes) and ours.valid[:count].all()
    np.testing.assert_allclose(ours.boxes[:count], boxes.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.scores[:count], scores.numpy(), atol=1e-6)
