"""R-CNN, Fast R-CNN and Faster R-CNN as tasks, at a size that compiles in seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax import metrics
from imgrec_jax.models.box_head import TwoMLPHead
from imgrec_jax.models.fpn import FPN, BackboneWithFPN
from imgrec_jax.models.rcnn import make_rcnn
from imgrec_jax.models.resnet import small_resnet
from imgrec_jax.tasks.detect import make_task, zero_padding
from imgrec_jax.tasks.two_stage import make_detector, settings

SETTINGS = settings(
    rpn_pre_nms_top_n_train=50,
    rpn_post_nms_top_n_train=20,
    rpn_pre_nms_top_n_test=50,
    rpn_post_nms_top_n_test=12,
    rpn_batch_size_per_image=16,
    box_batch_size_per_image=8,
    box_score_thresh=0.01,
    box_detections_per_img=5,
)
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


def make_model(kind, **options):
    body = small_resnet(widths=(4, 8), blocks=1, stem_stride=2)
    head = TwoMLPHead(16)
    if kind == "rcnn":
        return make_rcnn(
            kind, backbone=body, num_classes=4, box_levels=("layer2",), box_head=head, output_size=(16, 16), context=2
        )
    if kind == "fast":
        return make_rcnn(kind, backbone=body, num_classes=4, box_levels=("layer2",), box_head=head, **options)
    levels = ("layer1", "layer2")
    return make_rcnn(
        kind,
        backbone=BackboneWithFPN(body, FPN(8), levels),
        num_classes=4,
        box_levels=levels,
        box_head=head,
        rpn_levels=(*levels, "pool"),
        anchor_sizes=((8,), (16,), (32,)),
        **options,
    )


def make_batch(seed=0, examples=2):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 24, (examples, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(6, 20, corner.shape)], -1).clip(0, 32).astype(np.float32)
    proposals = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), rng.permuted(boxes, axis=1)], axis=1)
    proposals[..., 2:] = np.maximum(proposals[..., 2:], proposals[..., :2] + 2)
    return {
        "image": rng.integers(0, 256, (examples, 32, 48, 3)).astype(np.uint8),
        "image_size": np.tile(np.int32([32, 40]), (examples, 1)),
        "original_size": np.tile(np.int32([64, 120]), (examples, 1)),
        "example_valid": np.ones(examples, bool),
        "index": np.arange(examples, dtype=np.int32),
        "boxes": boxes,
        "box_label": rng.integers(1, 4, (examples, 3)).astype(np.int32),
        "box_valid": np.tile([True, True, False], (examples, 1)),
        "box_crowd": np.zeros((examples, 3), bool),
        "proposals": proposals.clip(0, 32).astype(np.float32),
        "proposal_valid": np.tile(np.arange(6) < 5, (examples, 1)),
    }


@functools.cache
def compiled(kind, crop="roi_align"):
    """(task, variables, compiled gradients of the training loss, compiled loss, compiled predict)."""
    options = {"crop": crop} if kind == "fast" else {}
    task = make_task(detector=make_detector(make_model(kind, **options), SETTINGS), mean=(0.5,), std=(0.25,))
    batch = make_batch()
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    # rbg: XLA's CPU backend compiles threefry, the default generator, four times as long for this many parameters.
    variables = jax.jit(lambda key: task.init(key, spec))(jax.random.key(0, impl="rbg"))

    def train_loss(params, batch, key):
        return task.loss({**variables, "params": params}, batch, key, True)

    gradients = jax.jit(jax.value_and_grad(train_loss, has_aux=True))
    evaluate = jax.jit(lambda batch, key: task.loss(variables, batch, key, False))
    return task, variables, gradients, evaluate, jax.jit(lambda batch: task.predict(variables, batch))


@pytest.mark.parametrize(("kind", "crop"), [("rcnn", "roi_align"), ("fast", "roi_pool"), ("faster", "roi_align")])
def test_every_parameter_receives_a_finite_gradient(kind, crop):
    _, variables, gradients, _, _ = compiled(kind, crop)
    (loss, aux), grads = gradients(variables["params"], make_batch(), jax.random.key(1))
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    for path, value in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(value).all() and np.any(value), jax.tree_util.keystr(path)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), variables["batch_stats"], aux.model_state["batch_stats"])
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("kind", ("rcnn", "faster"))
def test_the_loss_is_the_sum_of_its_terms(kind):
    _, _, _, evaluate, _ = compiled(kind)
    loss, aux = evaluate(make_batch(), jax.random.key(1))
    terms = [name for name in LOSSES if name in aux.metrics]
    assert len(terms) == (4 if kind == "faster" else 2)
    computed = metrics.compute(aux.metrics)
    np.testing.assert_allclose(sum(computed[name] for name in terms), loss, rtol=1e-5)
    np.testing.assert_allclose(computed["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("kind", ("rcnn", "faster"))
def test_what_is_not_valid_changes_nothing(kind):
    _, _, _, evaluate, predict = compiled(kind)
    batch = make_batch()
    batch["example_valid"][1] = False
    dirty = {name: x.copy() for name, x in batch.items()}
    dirty["image"][1] = 255
    dirty["image"][0, :, 40:] = 99  # beyond image_size
    dirty["boxes"][1] = 7.0
    dirty["boxes"][0, 2] = np.inf  # box_valid is False there
    dirty["box_label"][0, 2] = 3
    dirty["proposals"][0, 5] = [0, 0, 31, 31]
    for key in range(2):
        clean_loss, clean = evaluate(batch, jax.random.key(key))
        loss, aux = evaluate(dirty, jax.random.key(key))
        np.testing.assert_allclose(loss, clean_loss, rtol=1e-6)
        assert aux.metrics["loss"].count == 1 == clean.metrics["loss"].count
    one, other = predict(batch), predict(dirty)
    assert not one["valid"][1].any() and not other["valid"][1].any()
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-4)


@pytest.mark.parametrize(("kind", "crop"), [("rcnn", "roi_align"), ("fast", "roi_pool"), ("faster", "roi_align")])
def test_predictions(kind, crop):
    task, _, _, _, predict = compiled(kind, crop)
    batch = make_batch()
    found = jax.device_get(predict(batch))
    valid = found["valid"]
    assert found["boxes"].shape == (2, 5, 4) and valid.any()
    boxes = found["boxes"][valid]
    assert (boxes >= 0).all() and (boxes[:, [0, 2]] <= 40).all() and (boxes[:, [1, 3]] <= 32).all()
    np.testing.assert_allclose(found["original_boxes"], found["boxes"] * [3.0, 2.0, 3.0, 2.0], rtol=1e-6)
    scores = np.where(valid, found["scores"], 0.0)
    assert (np.diff(scores, axis=1) <= 0).all() and (scores[valid] > SETTINGS.selection.score_thresh).all()
    assert np.isin(found["labels"][valid], [1, 2, 3]).all() and not found["labels"][~valid].any()
    state = task.metrics(found, batch)["detections"]
    twice = state.merge(state)
    assert twice.boxes.shape == (4, 5, 4) and twice.index.tolist() == [0, 1, 0, 1]
    assert twice.compute() == {"count": 2 * valid.sum()}


def test_an_empty_image_still_gives_background_and_finite_losses():
    _, variables, gradients, _, _ = compiled("faster")
    batch = make_batch()
    batch["box_valid"][:] = False
    (loss, aux), grads = gradients(variables["params"], batch, jax.random.key(0))
    computed = metrics.compute(aux.metrics)
    assert computed["loss_rpn_box_reg"] == computed["loss_box_reg"] == 0.0
    assert computed["loss_objectness"] > 0 and np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_the_key_decides_the_samples_and_nothing_else():
    _, _, _, evaluate, _ = compiled("faster")
    first, again, other = (float(evaluate(make_batch(), jax.random.key(k))[0]) for k in (3, 3, 4))
    assert first == again != other


def test_zero_padding():
    padded = zero_padding(jnp.ones((2, 3, 4, 1)), jnp.array([[2, 3], [3, 4]]))
    assert padded[0, :, :, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert padded[1].all()


def test_wrong_detectors_are_refused():
    body, head = small_resnet(widths=(4,), blocks=1), TwoMLPHead(4)
    make = functools.partial(make_rcnn, backbone=body, num_classes=2, box_head=head, box_levels=("layer1",))
    with pytest.raises(ValueError, match="kind='slow'"):
        make("slow")
    with pytest.raises(ValueError, match="crop='warp'"):
        make("fast", crop="warp")
    with pytest.raises(ValueError, match="one level"):
        make("fast", crop="roi_pool", box_levels=("layer1", "layer2"))
    with pytest.raises(ValueError, match="anchor_sizes"):
        make("faster", rpn_levels=("layer1",))
