"""Detectors, their parts and operations: more works of `ours.py`."""

from collections.abc import Callable
from typing import Any

import case
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from imgrec_jax import parallel
from imgrec_jax.data.ops import bits
from imgrec_jax.detection import boxes as box_ops
from imgrec_jax.detection.detections import select_detections
from imgrec_jax.detection.matching import match
from imgrec_jax.detection.nms import nms
from imgrec_jax.detection.proposals import select_proposals
from imgrec_jax.detection.roi_align import roi_align
from imgrec_jax.models import rcnn, retinanet
from imgrec_jax.models.box_head import FastRCNNPredictor, MaskHead, MaskRCNNPredictor, TwoMLPHead
from imgrec_jax.models.rpn import RPNHead
from imgrec_jax.tasks import detect, one_stage, two_stage
from imgrec_jax.tasks.task import Task

Run = Callable[[int], None]
Train = Callable[[Task, optax.GradientTransformation, dict[str, jax.Array]], Run]
TYPES = {
    "faster": rcnn.fasterrcnn_resnet50_fpn,
    "mask": rcnn.maskrcnn_resnet50_fpn,
    "retina": retinanet.retinanet_resnet50_fpn,
}


def _batch(masks: bool) -> dict[str, jax.Array]:
    images = case.detector_images()
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (images, case.HEIGHT, case.WIDTH, 3)).astype(np.uint8),
        "image_size": np.tile(np.int32([case.HEIGHT, case.WIDTH]), (images, 1)),
        "original_size": np.tile(np.int32([case.HEIGHT, case.WIDTH]), (images, 1)),
        "example_valid": np.ones(images, bool),
        "index": np.arange(images, dtype=np.int32),
        "boxes": np.tile(case.boxes(case.OBJECTS), (images, 1, 1)),
        "box_label": np.tile(np.arange(1, case.OBJECTS + 1, dtype=np.int32), (images, 1)),
        "box_valid": np.ones((images, case.OBJECTS), bool),
        "box_crowd": np.zeros((images, case.OBJECTS), bool),
    }
    if masks:
        batch["box_mask"] = np.tile(bits.pack(case.masks(case.OBJECTS))[None], (images, 1, 1, 1))
    return {name: jnp.asarray(value) for name, value in batch.items()}


def _task(kind: str) -> Task:
    model = TYPES[kind](case.CLASSES)
    make = one_stage.make_detector if kind == "retina" else two_stage.make_detector
    return detect.make_task(detector=make(model), mean=(0.5,), std=(0.25,))


def _repeated(f: Callable, *args: Any) -> Run:
    """Calls a compiled f of these arguments."""
    f = jax.jit(f, compiler_options=parallel.compiler_options())
    args = jax.tree.map(jnp.asarray, args)

    def run(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(f(*args))

    return run


def _inference(kind: str) -> Run:
    """Of a network from random weights that finds a hundred objects: its predictor is biased towards class 1."""
    task, batch = _task(kind), _batch(False)
    variables = jax.jit(lambda key: task.init(key, batch))(jax.random.key(0))
    params = variables["params"]
    if kind == "retina":
        last = params["head"]["classification_head"]["cls_logits"]
    else:
        last = params["roi_heads"]["box_predictor"]["cls_score"]
    last["bias"] = last["bias"].at[1 :: case.CLASSES].add(case.TOWARDS_ONE)
    predict = jax.jit(task.predict, compiler_options=parallel.compiler_options())
    given = jax.device_get(batch)

    def run(n: int) -> None:
        for _ in range(n):
            task.records(jax.device_get(predict(variables, batch)), given)  # masks as they are pasted into the image

    return run


def _part(model: nn.Module, inputs: list[np.ndarray]) -> Run:
    """Outputs of all inputs, and the gradients of their mean square, of weights and inputs."""

    def loss(params, inputs):
        outputs = [model.apply({"params": params}, x) for x in inputs]
        return sum(jnp.mean(y * y) for y in jax.tree.leaves(outputs))

    params = model.init(jax.random.key(0), jnp.asarray(inputs[0]))["params"]
    return _repeated(jax.grad(loss, (0, 1)), params, inputs)


def _maps(strides: tuple[int, ...], batch: bool = True) -> list[np.ndarray]:
    shape = (1,) if batch else ()
    return [case.normal((*shape, *size, 256), i) for i, size in enumerate(case.map_sizes(strides))]


class _BoxHead(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return FastRCNNPredictor(case.CLASSES)(TwoMLPHead()(x))


class _MaskHead(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return MaskRCNNPredictor(case.CLASSES)(MaskHead()(x))


def _proposals() -> Run:
    """From the raw outputs of an RPN to the proposals of a test image."""
    model = rcnn.fasterrcnn_resnet50_fpn(case.CLASSES)
    anchors = model.rpn.anchors(case.map_sizes(case.STRIDES), (case.HEIGHT, case.WIDTH))
    logits = [case.normal((len(a),), i) for i, a in enumerate(anchors)]
    deltas = [case.normal((len(a), 4), i, 0.2) for i, a in enumerate(anchors)]

    def f(logits, deltas):
        size = jnp.array([case.HEIGHT, case.WIDTH])
        return select_proposals(
            logits, deltas, anchors, size, pre_nms_top_n=1000, post_nms_top_n=case.PROPOSALS, nms_thresh=0.7
        )

    return _repeated(f, logits, deltas)


def _detections() -> Run:
    """From the raw outputs of a box head to the detections of an image."""

    def f(logits, deltas, proposals):
        return select_detections(
            logits, deltas, proposals, jnp.ones(len(proposals), bool), jnp.array([case.HEIGHT, case.WIDTH]),
            reg_weights=(10.0, 10.0, 5.0, 5.0), score_thresh=0.05, nms_thresh=0.5, detections_per_img=100, pre_nms_top_n=2000,
        )  # fmt: skip

    deltas = case.normal((case.PROPOSALS, case.CLASSES, 4), 3, 0.5)
    return _repeated(f, case.class_logits(), deltas, case.boxes(case.PROPOSALS))


def _nms() -> Run:
    boxes = np.stack([case.boxes(case.CANDIDATES, seed) for seed in range(4)])
    scores = np.stack([np.abs(case.normal((case.CANDIDATES,), seed)) for seed in range(4)])
    return _repeated(jax.vmap(lambda b, s: nms(b, s, jnp.ones(len(s), bool), 0.7)), boxes, scores)


def _crops(maps: list[jax.Array], rois: jax.Array) -> jax.Array:
    return roi_align(maps, case.STRIDES[:4], rois)


def _assigned() -> Run:
    """Anchors everywhere against a hundred boxes."""

    def f(truth, anchors):
        return match(box_ops.pairwise_iou(truth, anchors), jnp.ones(len(truth), bool), 0.7, 0.3, allow_low_quality=True)

    return _repeated(f, case.boxes(100, 1), case.boxes(case.EVERYWHERE, 2))


def works(train: Train) -> dict[str, Callable[[], Run]]:
    """train: (task, optimiser, batch) -> run."""
    sgd, made = optax.sgd(1e-5, 0.9), {}
    for kind in TYPES:
        made[f"{kind}_800_train"] = lambda kind=kind: train(_task(kind), sgd, _batch(kind == "mask"))
        made[f"{kind}_800_inference"] = lambda kind=kind: _inference(kind)
    return made | {
        "rpn_head_800": lambda: _part(RPNHead(3), _maps(case.STRIDES)),
        "retina_head_800": lambda: _part(TYPES["retina"](case.CLASSES).head, _maps(case.RETINA_STRIDES)),
        "box_head_512": lambda: _part(_BoxHead(), [case.normal((case.ROIS, 7, 7, 256))]),
        "mask_head_128": lambda: _part(_MaskHead(), [case.normal((case.MASKS, 14, 14, 256))]),
        "select_proposals": _proposals,
        "select_detections": _detections,
        "nms_4x2000": _nms,
        "roi_align_512_forward": lambda: _repeated(_crops, _maps(case.STRIDES[:4], False), case.boxes(case.ROIS)),
        "roi_align_512_train": lambda: _repeated(
            jax.grad(lambda maps, rois: jnp.sum(_crops(maps, rois) ** 2)), _maps(case.STRIDES[:4], False), case.boxes(case.ROIS)
        ),
        "assign_268k": _assigned,
    }
