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
    parity.check_training(
        golden, case, stored(case), images=common.images()[: common.TRAINING_IMAGES], live=("backbone", "mask_head")
    )


def test_parameter_counts():
    """torchvision's own numbers, mask_rcnn.py (`num_params`)."""
    for case, count in (("mask_v1", 44_401_393), ("mask_v2", 46_359_409)):
        parity.check_parameter_count(case, count)
