"""Faster R-CNN R50-FPN, v1 and v2, against torchvision for the same weights."""

import functools

import jax
import numpy as np
import pytest

from tests.detection import parity
from tests.goldens import make_faster_rcnn as golden
from tests.goldens import seeded


@functools.cache
def stored(case: str):
    shapes, arrays = seeded.read_golden(golden.PATH, case)
    return tuple(shapes.items()), arrays


@functools.cache
def run(case: str, what: str):
    """Compiled once per case: predictions of all images, or (losses, gradients by torchvision's name) of the first.

    v2 is trained in float64. Its losses then are torchvision's within 1e-6; in float32 some CPUs round a proposal across a
    threshold, and one of the 384 sampled RoIs is another one (with AVX-512 the classifier loss is 0.3 % off).
    """
    shapes, arrays = stored(case)
    task, variables = parity.task(case, golden.HYPER), parity.variables(case, shapes)
    if what == "predict":
        return jax.device_get(jax.jit(task.predict)(variables, parity.batch(golden.images())))
    batch = parity.batch(golden.images()[: golden.TRAINING_IMAGES], golden.ground_truth())
    with jax.enable_x64(case == "v2"):
        if case == "v2":
            variables = jax.tree.map(lambda v: jax.numpy.asarray(v, jax.numpy.float64), variables)

        def loss(params):
            return task.loss({**variables, "params": params}, batch, jax.random.key(0), True)

        compute = jax.value_and_grad(loss, has_aux=True) if what == "gradients" else loss
        return jax.device_get(jax.jit(compute)(variables["params"]))


def assert_losses(aux, arrays):
    for name in ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"):
        np.testing.assert_allclose(aux.metrics[name].compute()[""], arrays[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("case", ["v1", pytest.param("v2", marks=pytest.mark.slow)])
def test_detections(case):
    predictions, arrays = run(case, "predict"), stored(case)[1]
    total = 0
    for i in range(len(golden.SIZES)):
        ours = {name: value[i] for name, value in predictions.items()}
        theirs = {name: arrays[f"{name}{i}"] for name in ("boxes", "scores", "labels")}
        box_error, score_error = parity.compare(ours, theirs)
        assert box_error <= 1e-2 and score_error <= 1e-4
        total += len(theirs["scores"])
    assert total > 100


def test_training_losses():
    _, aux = run("v1", "losses")
    assert_losses(aux, stored("v1")[1])


@pytest.mark.slow
@pytest.mark.parametrize("case", golden.CASES)
def test_training_losses_and_gradients(case):
    """Through v2's live norms float32 gradients are rough: torchvision's own lie 1e-3 (box head) to 4.5e-3 (backbone) from
    its float64 ones, so those are held to 1e-2.
    """
    (_, aux), gradients = run(case, "gradients")
    shapes, arrays = stored(case)
    assert_losses(aux, arrays)
    for name in golden.GRADIENTS[case]:
        difference = parity.gradient_difference(gradients, name, dict(shapes)[name], arrays)
        through_live_norm = case == "v2" and ("backbone" in name or "box_head.2" in name)
        assert difference <= (1e-2 if through_live_norm else 1e-3), (name, difference)


def test_parameter_counts():
    """torchvision's own numbers, faster_rcnn.py:387 and :408 (`num_params`)."""
    for case, count in (("v1", 41_755_286), ("v2", 43_712_278)):
        parity.check_parameter_count(case, count)


@pytest.mark.slow
@pytest.mark.parametrize("case", golden.CASES)
def test_full_size_against_torchvision_itself(case):
    """Short side 800, default hyper-parameters; torchvision resizes, we get the resized images."""
    torch = pytest.importorskip("torch")
    model, shapes = golden.torchvision_model(case)
    images = golden.images(((300, 300), (240, 321), (333, 250)))  # all to 800 x 800 .. 800 x 1070, one at a time
    task, variables = parity.task(case, {}), parity.variables(case, tuple(shapes.items()))
    predict = jax.jit(task.predict)
    for image in images:
        (theirs,) = golden.detections(model, [image])
        height, width = image.shape[:2]
        size = [int(side * 800 / min(height, width)) for side in (height, width)]
        channels_first = torch.from_numpy(image.transpose(2, 0, 1))[None]
        resized = torch.nn.functional.interpolate(channels_first, size, mode="bilinear", align_corners=False)[0]
        batch = parity.batch([resized.numpy().transpose(1, 2, 0)])
        batch["original_size"] = np.int32([[height, width]])
        ours = {name: value[0] for name, value in jax.device_get(predict(variables, batch)).items()}
        box_error, score_error = parity.compare({**ours, "boxes": ours["original_boxes"]}, theirs)
        assert box_error <= 1e-2 and score_error <= 1e-4, (image.shape, box_error, score_error)
