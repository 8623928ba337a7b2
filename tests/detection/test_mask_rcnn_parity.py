"""Mask R-CNN R50-FPN, v1 and v2, against torchvision for the same weights."""

import functools

import jax
import numpy as np
import pytest

from imgrec_jax.detection.masks import in_original, paste
from tests.detection import parity
from tests.goldens import make_faster_rcnn as common
from tests.goldens import make_mask_rcnn as golden
from tests.goldens import seeded


@functools.cache
def stored(case):
    shapes, arrays = seeded.read_golden(golden.PATH, case)
    return tuple(shapes.items()), arrays


@pytest.mark.slow
@pytest.mark.parametrize("case", golden.CASES)
def test_detections_and_pasted_masks(case):
    shapes, arrays = stored(case)
    task, variables = parity.task(case, golden.HYPER), parity.variables(case, shapes)
    batch = parity.batch(common.images(golden.SIZES))
    predictions = jax.device_get(jax.jit(task.predict)(variables, batch))
    compared = 0
    for i, size in enumerate(golden.SIZES):
        ours = {name: value[i] for name, value in predictions.items()}
        theirs = {name: arrays[f"{name}{i}"] for name in ("boxes", "scores", "labels")}
        box_error, score_error = parity.compare(ours, theirs)
        assert box_error <= 1e-2 and score_error <= 1e-4
        boxes = in_original(ours["boxes"], batch["image_size"][i], batch["original_size"][i])
        pasted = [paste(mask, box, size) for mask, box in zip(ours["masks"], boxes, strict=True)]
        stored_masks = np.unpackbits(arrays[f"pasted{i}"], axis=-1, count=size[1]).astype(bool)
        for n, (label, box) in enumerate(zip(theirs["labels"], theirs["boxes"], strict=True)):
            (mine,) = np.flatnonzero((ours["labels"] == label) & (np.abs(ours["boxes"] - box).max(1) <= 1e-2))
            mask = pasted[mine]
            assert abs(int(mask.sum()) - int(arrays[f"areas{i}"][n])) <= 1e-3 * mask.size
            if n < golden.KEPT:
                assert np.mean(mask != stored_masks[n]) <= 1e-3
                compared += int(mask.sum())
    assert compared > 1000


@pytest.mark.slow
@pytest.mark.parametrize("case", golden.CASES)
def test_training_losses_and_gradients(case):
    """v2 in float64, as its live norms are rough in float32 (see `test_faster_rcnn_parity`)."""
    shapes, arrays = stored(case)
    task, variables = parity.task(case, golden.HYPER), parity.variables(case, shapes)
    batch = parity.batch(common.images()[: common.TRAINING_IMAGES], golden.ground_truth())
    with jax.enable_x64(case == "mask_v2"):
        if case == "mask_v2":
            variables = jax.tree.map(lambda v: jax.numpy.asarray(v, jax.numpy.float64), variables)

        def loss(params):
            return task.loss({**variables, "params": params}, batch, jax.random.key(0), True)

        (_, aux), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    for name in golden.LOSSES:
        np.testing.assert_allclose(aux.metrics[name].compute()[""], arrays[name], rtol=1e-4, err_msg=name)
    for name in golden.GRADIENTS[case]:
        value = parity.by_torch_name(gradients, name, dict(shapes)[name])
        expected = arrays[f"grad/{name}"]
        difference = np.linalg.norm(seeded.subsample(value) - expected) / np.linalg.norm(expected)
        through_live_norm = case == "mask_v2" and ("backbone" in name or "mask_head" in name)
        assert difference <= (1e-2 if through_live_norm else 1e-3), (name, difference)


def test_parameter_counts():
    """torchvision's own numbers, mask_rcnn.py (`num_params`)."""
    for case, count in (("mask_v1", 44_401_393), ("mask_v2", 46_359_409)):
        spec = {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)}
        variables = jax.eval_shape(parity.task(case, {}).init, jax.random.key(0), spec)
        assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
