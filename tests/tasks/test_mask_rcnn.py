"""Mask R-CNN as a task, at a size that compiles in seconds: its loss, its predictions, and what evaluation makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax import metrics
from imgrec_jax.assemble.task import summary_of_detections
from imgrec_jax.config import load
from imgrec_jax.data.annotations import encode_mask, from_images
from imgrec_jax.data.ops import bits
from imgrec_jax.inference.results import InstancesResult, result_of
from imgrec_jax.models.box_head import FastRCNNPredictor, MaskHead, MaskRCNNPredictor, RoIHeads, TwoMLPHead
from imgrec_jax.models.detectors import make_small_detector
from imgrec_jax.models.norm import BatchNorm
from imgrec_jax.tasks.detect import CollectedDetections, make_task, records
from imgrec_jax.tasks.two_stage import make_detector
from tests.tasks.test_detect import SETTINGS, make_batch


def batch_with_masks():
    batch = make_batch()
    height, width = batch["image"].shape[1:3]
    whole = np.zeros((*batch["boxes"].shape[:2], height, width), bool)
    for row, boxes in zip(whole, batch["boxes"], strict=True):
        for mask, (x1, y1, x2, y2) in zip(row, boxes, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return {**batch, "box_mask": bits.pack(whole)}


def task_of(**changed):
    model = make_small_detector(
        kind="mask", num_classes=4, widths=(4, 8, 8), fpn_width=8, head_width=16, anchor_sizes=((8,), (16,)),
        mask_widths=(6,), mask_size=4, norm="group",
    )  # fmt: skip
    return make_task(detector=make_detector(model, SETTINGS._replace(**changed)), mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def made():
    task, batch = task_of(), batch_with_masks()
    spec = {"image": jax.ShapeDtypeStruct(batch["image"].shape, np.uint8)}
    return task, jax.jit(lambda key: task.init(key, spec))(jax.random.key(0)), batch


def test_the_mask_loss_learns_from_true_masks_alone(made):
    task, variables, batch = made

    def loss(params, batch):
        return task.loss({**variables, "params": params}, batch, jax.random.key(0), True)

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, aux), gradients = compute(variables["params"], batch)
    head = {name: gradients["roi_heads"][name] for name in ("mask_head", "mask_predictor")}
    assert all(np.any(g) and np.all(np.isfinite(g)) for g in jax.tree.leaves(head))
    other = {**batch, "box_mask": batch["box_mask"].copy()}
    other["box_mask"][~(batch["box_valid"] & batch["example_valid"][:, None])] = 255
    same = compute(variables["params"], other)[0][1].metrics["loss_mask"].compute()
    assert same == aux.metrics["loss_mask"].compute()
    changed = compute(variables["params"], {**batch, "box_mask": ~batch["box_mask"]})[0][1]
    assert changed.metrics["loss_mask"].compute() != aux.metrics["loss_mask"].compute()
    assert changed.metrics["loss_classifier"].compute() == aux.metrics["loss_classifier"].compute()


def test_objects_without_a_mask_count_in_no_mask_loss(made):
    """In training as in evaluation: without any, it is 0 of nothing, and so with no positive proposal."""
    task, variables, batch = made
    evaluate = jax.jit(lambda batch: task.loss(variables, batch, jax.random.key(0), False)[1].metrics)
    train = jax.jit(
        jax.grad(lambda params, batch: task.loss({**variables, "params": params}, batch, jax.random.key(0), True)[0])
    )
    count = evaluate(batch)["loss_mask"].count
    some = {**batch, "box_mask": batch["box_mask"].copy()}
    some["box_mask"][:, 0] = 0
    assert 0 < evaluate(some)["loss_mask"].count < count
    without_mask = {**batch, "box_mask": np.zeros_like(batch["box_mask"])}
    without_objects = {**batch, "box_valid": np.zeros_like(batch["box_valid"])}
    for changed in (without_mask, without_objects):
        found = evaluate(changed)["loss_mask"]
        assert found.count == found.total == 0
        gradients = train(variables["params"], changed)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
        assert not any(np.any(g) for g in jax.tree.leaves(gradients["roi_heads"]["mask_head"]))


def test_a_mask_batch_draws_from_the_positives(made):
    """Of each image a part of the positives that all of them are; the other losses stay as they are."""
    _, variables, batch = made

    def losses_of(most):
        part = task_of(mask_batch_size_per_image=most)
        return jax.jit(lambda batch: part.loss(variables, batch, jax.random.key(0), False)[1].metrics)(batch)

    everything, one, many = (losses_of(most) for most in (None, 1, 1000))
    assert one["loss_mask"].count == np.sum(np.any(batch["box_valid"], axis=1) & batch["example_valid"])
    assert everything["loss_mask"].count > one["loss_mask"].count
    assert one["loss_mask"].total < everything["loss_mask"].total == many["loss_mask"].total
    for name in ("loss_classifier", "loss_box_reg", "loss_objectness"):
        assert one[name].compute() == everything[name].compute()


def test_masks_are_drawn_from_the_finest_stage_where_that_is_asked_for():
    """The pyramid begins a stage earlier; boxes are found, and cropped, on the maps they had before."""

    def model_of(stage):
        sizes = {"widths": (4, 8, 8), "fpn_width": 8, "head_width": 16, "anchor_sizes": ((8,), (16,))}
        return make_small_detector(kind="mask", num_classes=4, mask_widths=(6,), mask_size=4, mask_stage=stage, **sizes)

    class Seen(dict):  # which maps are read
        def __init__(self, maps):
            super().__init__(maps)
            self.read = set()

        def __getitem__(self, name):
            self.read.add(name)
            return super().__getitem__(name)

    image, rois, valid = jnp.ones((1, 32, 48, 3)), jnp.ones((1, 1, 4)), jnp.ones((1, 1), bool)
    for stage, finest in ((2, "layer2"), (1, "layer1")):
        model = model_of(stage)
        variables = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), image, rois, valid))
        features = jax.eval_shape(lambda v, model=model: model.apply(v, image, method="features"), variables)
        assert features[finest].shape[1] == 32 // model.backbone.strides[finest]
        for method, given, levels in (("draw", (), {finest, "layer2", "layer3"}), ("classify", (image,), {"layer2", "layer3"})):
            seen = []

            def read(variables, features, model=model, method=method, given=given, seen=seen):
                seen.append(Seen(features))
                return model.apply(variables, *given, seen[-1], rois, valid, method=method)

            jax.eval_shape(read, variables, features)
            assert seen[-1].read == levels
    with pytest.raises(ValueError, match="mask_stage=3: expected 1 or 2"):
        model_of(3)


def test_running_statistics_of_a_mask_head_without_a_positive_stay():
    head = MaskHead((6,), norm=BatchNorm)
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 5))
    variables = head.init(jax.random.key(1), x, valid=jnp.zeros(3, bool), train=False)
    _, state = head.apply(variables, x, valid=jnp.zeros(3, bool), train=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    _, state = head.apply(variables, x, valid=jnp.ones(3, bool), train=True, mutable=["batch_stats"])
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state, variables["batch_stats"])), strict=True))


def test_predictions_have_a_mask_each(made):
    task, variables, batch = made
    found = jax.device_get(jax.jit(task.predict)(variables, batch))
    assert found["masks"].shape == (*found["valid"].shape, 8, 8)
    assert np.all((found["masks"] > 0) == found["valid"][..., None, None]) and found["masks"].max() < 1
    rows = records(found, batch)
    for row, valid, size in zip(rows, found["valid"], batch["original_size"], strict=True):
        assert len(row["masks"]) == valid.sum() and all(mask["size"] == size.tolist() for mask in row["masks"])


def truth(size=(20, 30)):
    """(table of two images with an object each, their masks)"""
    drawn = np.zeros((2, *size), bool)
    drawn[0, 2:10, 4:20] = drawn[1, 5:15, 5:15] = True
    rows = []
    for n, (mask, box) in enumerate(zip(drawn, [(4, 2, 20, 10), (5, 5, 15, 15)], strict=True)):
        row = {"image_id": n + 7, "file_name": f"{n}.png", "size": size, "boxes": [box], "labels": [1], "crowd": [False]}
        rows.append({**row, "ids": [n + 1], "areas": [float(mask.sum())], "segmentations": [encode_mask(mask)]})
    return from_images(rows, class_names=("thing",)), drawn


def collected(rows, masks):
    table, _ = truth()
    count = len(rows)
    arrays = {
        "scores": np.full((count, 2), 0.9),
        "labels": np.ones((count, 2), int),
        "valid": np.array([[True, False]] * count),
    }
    return CollectedDetections(
        index=np.array(rows), image_size=np.array([[20, 30]] * count), original_size=np.array([[20, 30]] * count),
        boxes=np.concatenate([table.boxes[rows][:, None], np.zeros((count, 1, 4))], axis=1), masks=masks, **arrays,
    )  # fmt: skip


def test_masks_are_counted_beside_boxes_and_merge_as_run_lengths(monkeypatch):
    table, _ = truth()
    full, half = np.ones((1, 2, 28, 28), np.float32), np.ones((1, 2, 28, 28), np.float32)
    half[..., 14:, :] = 0  # the lower half of the second object is left out: IoU about one half
    merged = metrics.merge({"detections": collected([0], full)}, {"detections": collected([1], half)})
    assert len(merged["detections"].masks) == 2
    config = load("scenes_detection:mask")
    values = summary_of_detections(config, table)(merged)
    assert values["AP"] == values["f1"] == 1.0
    assert 0.5 < values["segm_AP50"] <= 1.0 and values["segm_AP"] < 0.8
    single = summary_of_detections(config, table)({"detections": collected([0, 1], np.concatenate([full, half]))})
    assert {k: v for k, v in single.items() if "segm" in k} == {k: v for k, v in values.items() if "segm" in k}


def test_a_result_with_masks_draws_writes_and_filters_them():
    table, drawn = truth()
    image = np.full((20, 30, 3), 100, np.uint8)
    common = {"file": "0.png", "size": (20, 30), "class_names": ("thing",), "read": lambda: image, "video": None}
    record = {"boxes": table.boxes, "scores": np.array([0.9, 0.3]), "labels": np.array([1, 1])}
    text = [{"size": m["size"], "counts": m["counts"].decode()} for m in map(encode_mask, drawn)]
    result = result_of({**record, "masks": text}, **common)
    assert isinstance(result, InstancesResult)
    np.testing.assert_array_equal(result.mask(0), drawn[0])
    assert len(result.above(0.5).masks) == 1
    picture = result.draw()
    factor = picture.shape[0] // 20
    assert np.any(picture[6 * factor, 10 * factor] != 100) and np.all(picture[12 * factor, 12 * factor] == 100)
    assert [entry["segmentation"] for entry in result.to_coco(7, (5,))] == text
    assert [entry["mask"] for entry in result.to_json()["boxes"]] == text


def test_crops_of_no_object_do_not_reach_the_norm_of_the_mask_head():
    """Batch statistics are those of positives alone."""
    heads = RoIHeads(TwoMLPHead(4), FastRCNNPredictor(3), MaskHead((6,), norm=BatchNorm), MaskRCNNPredictor(3, 6))
    crops, valid = jax.random.normal(jax.random.key(0), (2, 4, 4, 5)), jnp.array([True, False])

    @jax.jit
    def draw(crops):
        variables = heads.init(jax.random.key(0), crops, method=heads.masks)
        return heads.apply(variables, crops, valid=valid, train=True, mutable=["batch_stats"], method=heads.masks)[0][0]

    assert draw(crops).shape == (8, 8, 3)
    np.testing.assert_array_equal(draw(crops), draw(crops.at[1].add(2.0)))
    assert np.any(draw(crops) != draw(crops.at[0].add(2.0)))
