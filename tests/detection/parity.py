"""Our detectors with torchvision's seeded weights, and how to compare with what torchvision answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.detection.sampling import sample_by_priority
from imgrec_jax.models.rcnn import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from imgrec_jax.models.retinanet import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from imgrec_jax.pretrained.merge import merge
from imgrec_jax.tasks import one_stage, two_stage
from imgrec_jax.tasks.detect import make_task
from tests import torchvision_names as names
from tests.detection.reference import iou
from tests.goldens import make_faster_rcnn as golden
from tests.goldens import make_mask_rcnn, make_retinanet, seeded

MODELS = {
    "v1": fasterrcnn_resnet50_fpn,
    "v2": fasterrcnn_resnet50_fpn_v2,
    "mask_v1": maskrcnn_resnet50_fpn,
    "mask_v2": maskrcnn_resnet50_fpn_v2,
    "retina_v1": retinanet_resnet50_fpn,
    "retina_v2": retinanet_resnet50_fpn_v2,
}
GOLDENS = {
    **dict.fromkeys(("v1", "v2"), golden),
    **dict.fromkeys(make_mask_rcnn.CASES, make_mask_rcnn),
    **dict.fromkeys(make_retinanet.CASES, make_retinanet),
}


def fixed_sampler(key, positive, negative, batch_size, positive_fraction):
    """Takes the samples that `make_faster_rcnn.fixed_sampler` takes."""
    priority = jnp.asarray(golden.priority(positive.size))
    return sample_by_priority(priority, positive, negative, batch_size, positive_fraction)


def task(case: str, hyper: dict, **options):
    """Our detector with the images and the sampler of the golden file; options: of the model."""
    model = MODELS[case](**options)
    if case.startswith("retina"):
        detector = one_stage.make_detector(model, one_stage.settings(**hyper))
    else:
        detector = two_stage.make_detector(model, two_stage.settings(**hyper), fixed_sampler)
    return make_task(detector=detector, mean=golden.MEAN, std=golden.STD)


@functools.cache
def variables(case: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]):
    """Ours, with every one of torchvision's tensors in its place."""
    spec = {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)}
    empty = jax.eval_shape(task(case, {}).init, jax.random.key(0), spec)
    converted = names.detector(GOLDENS[case].weights(case, dict(shapes)))
    return merge(empty, converted.tensors, source_names=converted.source_names)[0]


def batch(images, truth=None) -> dict[str, np.ndarray]:
    """Images [H, W, 3] (and (boxes, labels) each, or with masks) padded as torchvision pads: to multiples of 32."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    height, width = -(-sizes.max(0) // 32) * 32
    pixels = np.zeros((len(images), height, width, 3), np.float32)
    for row, image in zip(pixels, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    masks = None if truth is None or len(truth[0]) < 3 else [drawn for *_, drawn in truth]
    truth = truth and [(boxes, label) for boxes, label, *_ in truth]
    truth = truth or [(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))] * len(images)
    slots = max(1, *(len(label) for _, label in truth))
    boxes = np.stack([np.pad(b, ((0, slots - len(b)), (0, 0))) for b, _ in truth])
    label = np.stack([np.pad(label, (0, slots - len(label))) for _, label in truth]).astype(np.int32)
    valid = np.arange(slots) < np.array([[len(label)] for _, label in truth])
    drawn = {}
    if masks is not None:
        whole = np.zeros((len(images), slots, height, width), bool)
        for row, mask in zip(whole, masks, strict=True):
            row[: len(mask), : mask.shape[1], : mask.shape[2]] = mask
        drawn["box_mask"] = np.packbits(whole, axis=-1)
    return {
        **drawn,
        "image": pixels,
        "index": np.arange(len(sizes), dtype=np.int32),
        "image_size": sizes,
        "original_size": sizes,
        "example_valid": np.ones(len(images), bool),
        "boxes": boxes,
        "box_label": label,
        "box_valid": valid,
        "box_crowd": np.zeros_like(valid),
    }


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> tuple[float, float]:
    """(largest difference of a coordinate, of a score) over the detections of one image, matched one to one.

    Detections whose scores differ by less than the rounding may stand in another order, so each of theirs is matched to
    the one of ours with the same label that overlaps it most.
    """
    valid = ours["valid"]
    boxes, scores, labels = ours["boxes"][valid], ours["scores"][valid], ours["labels"][valid]
    assert len(boxes) == len(theirs["boxes"])
    overlap = iou(theirs["boxes"], boxes) * (theirs["labels"][:, None] == labels)
    partner = overlap.argmax(1)
    assert len(set(partner)) == len(boxes), "not one to one"
    return np.abs(boxes[partner] - theirs["boxes"]).max(), np.abs(scores[partner] - theirs["scores"]).max()


def by_torch_name(params, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The entry of our `params` that torchvision calls `name`, in torchvision's layout `shape`."""
    path = names.convert({name: np.zeros(shape, np.float32)}, names.RENAME_DETECTOR)
    value = params
    for key in next(iter(path.tensors)).split("/"):
        value = value[key]
    if len(shape) == 4:
        return np.transpose(value, (2, 3, 0, 1) if "conv5_mask" in name else (3, 2, 0, 1))
    if len(shape) == 2 and shape[1] % 49 == 0:  # follows a flattened 7 x 7 crop: (7, 7, C) here, (C, 7, 7) there
        return np.reshape(value, (7, 7, -1, shape[0])).transpose(3, 2, 0, 1).reshape(shape)
    return np.transpose(value)


def check_training(golden, case: str, stored, *, images, live: tuple[str, ...]) -> None:
    """Losses to 1e-4 and gradients to 1e-3 relative; v2 in float64, as its live norms are rough in float32.

    stored: (shapes, arrays) of the case; live: words of the names behind v2's live norms, whose gradients are held to 1e-2 (see
    `test_faster_rcnn_parity`).
    """
    shapes, arrays = stored
    made, weights, second = task(case, golden.HYPER), variables(case, shapes), case.endswith("v2")
    truth = batch(images, golden.ground_truth())
    with jax.enable_x64(second):
        if second:
            weights = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), weights)

        def loss(params):
            return made.loss({**weights, "params": params}, truth, jax.random.key(0), True)

        (_, aux), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(weights["params"]))
    for name in golden.LOSSES:
        np.testing.assert_allclose(aux.metrics[name].compute()[""], arrays[name], rtol=1e-4, err_msg=name)
    for name in golden.GRADIENTS[case]:
        difference = gradient_difference(gradients, name, dict(shapes)[name], arrays)
        assert difference <= (1e-2 if second and any(word in name for word in live) else 1e-3), (name, difference)


def gradient_difference(gradients, name: str, shape: tuple[int, ...], arrays) -> float:
    """Relative, of the numbers that the golden file holds of torchvision's gradient of that name."""
    expected = arrays[f"grad/{name}"]
    found = seeded.subsample(by_torch_name(gradients, name, shape))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def check_parameter_count(case: str, count: int) -> None:
    spec = {"image": jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)}
    shapes = jax.eval_shape(task(case, {}).init, jax.random.key(0), spec)
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count
