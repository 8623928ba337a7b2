"""RetinaNet as a task, at a size that compiles in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax import losses
from imgrec_jax.detection import boxes as box_ops
from imgrec_jax.detection.detections import select_from_anchors
from imgrec_jax.models.detectors import make_small_detector
from imgrec_jax.pretrained import fit
from imgrec_jax.tasks.detect import make_task
from imgrec_jax.tasks.one_stage import make_detector, settings
from tests.tasks.test_detect import make_batch


def make(**options):
    model = make_small_detector(
        kind="retina", num_classes=4, widths=(4, 8, 8), fpn_width=8, anchor_sizes=((8, 11), (16, 22)), norm="group",
        head_norm="group", tower_depth=1, aspect_ratios=(1.0,),
    )  # fmt: skip
    return make_task(detector=make_detector(model, settings(**options)), mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def trained():
    """(task, variables, batch)"""
    task, batch = make(score_thresh=0.0, topk_candidates=20, detections_per_img=7), make_batch()
    spec = {"image": jax.ShapeDtypeStruct(batch["image"].shape, np.uint8)}
    return task, jax.jit(lambda key: task.init(key, spec))(jax.random.key(0)), batch


def test_focal_loss_by_hand():
    logits, target = jnp.array([0.0, 0.0, 2.0]), jnp.array([1.0, 0.0, 1.0])
    p = 1 / (1 + np.exp(-2.0))
    expected = [0.25 * 0.25 * np.log(2), 0.75 * 0.25 * np.log(2), 0.25 * (1 - p) ** 2 * -np.log(p)]
    np.testing.assert_allclose(losses.sigmoid_focal(logits, target), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.sigmoid_focal(logits, target, 0.5, 0.0)[:2], np.log(2) / 2, rtol=1e-6)
    # far off, the gradient is finite
    assert np.isfinite(jax.grad(lambda x: losses.sigmoid_focal(x, jnp.ones(())))(-200.0))


def test_generalized_iou_by_hand():
    a, b = np.array([0.0, 0, 2, 2]), np.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2]])
    np.testing.assert_allclose(box_ops.generalized_iou(jnp.asarray(a), jnp.asarray(b)), [1.0, 1 / 3, -4 / 12], atol=1e-6)


def test_selection_reads_no_background_and_suppresses_within_a_class():
    anchors = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]], np.float32)
    logits = jnp.array([[9.0, 2.0, -9.0], [9.0, 1.0, 1.5], [9.0, -9.0, -9.0]])
    found = select_from_anchors(
        [logits], [jnp.zeros((3, 4))], [anchors], jnp.array([32, 10]), score_thresh=0.5, nms_thresh=0.5,
        detections_per_img=4, topk_candidates=100,
    )  # fmt: skip
    assert found.labels.tolist() == [1, 2, 0, 0] and found.valid.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found.boxes[:2], [[0, 0, 10, 10], [1, 0, 10, 10]])
    np.testing.assert_allclose(found.scores[:2], jax.nn.sigmoid(jnp.array([2.0, 1.5])))


def test_padding_counts_nowhere_and_every_parameter_learns(trained):
    task, variables, batch = trained

    def loss(params, batch):
        return task.loss({**variables, "params": params}, batch, jax.random.key(0), True)[0]

    compute = jax.jit(jax.value_and_grad(loss))
    value, gradients = compute(variables["params"], batch)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(gradient) and np.all(np.isfinite(gradient)), path
    wild = {name: np.array(array) for name, array in batch.items()}
    wild["boxes"][~batch["box_valid"]] = np.nan
    assert compute(variables["params"], wild)[0] == value
    half = {**batch, "example_valid": np.array([True, False])}
    alone = compute(variables["params"], half)[0]
    other = {name: np.array(array) for name, array in half.items()}
    other["boxes"][1] += 3
    other["image"][1] = 7
    assert compute(variables["params"], other)[0] == alone != value


def test_detections_are_sorted_valid_first_and_none_for_padding(trained):
    task, variables, batch = trained
    found = jax.jit(task.predict)(variables, {**batch, "example_valid": np.array([True, False])})
    assert found["boxes"].shape == (2, 7, 4) and not found["valid"][1].any()
    scores = found["scores"][0][found["valid"][0]]
    assert len(scores) == 7 and np.all(np.diff(scores) <= 0) and np.all(found["labels"][0] > 0)


def test_the_classes_of_a_released_head_are_found_by_name():
    theirs, ours = ("__background__", "cat", "dog"), ("__background__", "dog")
    value, fresh = np.arange(6.0).reshape(1, 6), np.full((1, 4), -1.0)  # two anchors of three classes
    path = "head/classification_head/cls_logits/kernel"
    np.testing.assert_array_equal(fit.select_classes(value, fresh, path, ours, theirs), [[0, 2, 3, 5]])


def test_unknown_settings_and_losses():
    with pytest.raises(ValueError, match="takes no .*rpn_nms_thresh"):
        settings(rpn_nms_thresh=0.5)
