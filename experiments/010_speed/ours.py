"""This package's side of the benchmark: `WORKS[name]()` -> run(n), which does the work n times and waits for the end.

As a program (`python ours.py WORK THREADS`): reads numbers of repetitions from stdin, one a line, and answers with seconds.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import coco_case
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ours_detection
import photos
from case import SHAPES
from protocol import peak_of_process, serve

from imgrec_jax import parallel
from imgrec_jax.data.ops.geometry import random_resized_crop
from imgrec_jax.data.pipeline import Pipeline, shuffled_order
from imgrec_jax.data.sets.own_images import survey_images
from imgrec_jax.data.source import Request
from imgrec_jax.detection import coco_eval
from imgrec_jax.losses import softmax_cross_entropy
from imgrec_jax.models.convnet import keras_cnn, pytorch_cnn
from imgrec_jax.models.fpn import FPN, BackboneWithFPN
from imgrec_jax.models.norm import BatchNorm, FrozenBatchNorm
from imgrec_jax.models.resnet import RESNETS
from imgrec_jax.models.unet import UNet
from imgrec_jax.models.zoo import make_classifier
from imgrec_jax.step import init_state, make_train_step, train_key
from imgrec_jax.tasks import classify
from imgrec_jax.tasks.task import Aux, Task, apply_model


def _image(shape: tuple[int, ...]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def _train(task: Task, tx: optax.GradientTransformation, batch: dict[str, jax.Array]) -> Callable[[int], None]:
    """The step as the loop compiles it, on one batch that is on the device already."""
    variables = jax.jit(lambda key: task.init(key, batch))(jax.random.key(0))
    state = init_state(variables, tx, with_ema=False)
    step = make_train_step(task, tx, schedule=lambda step: 0.01)
    step = jax.jit(partial(step, train_key(0)), donate_argnums=0, compiler_options=parallel.compiler_options())

    def run(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    return run


def _classifier(model: Any, shape: tuple[int, ...], classes: int, tx: optax.GradientTransformation | None = None):
    task = classify.make_task(model=model, loss_fn=softmax_cross_entropy, num_classes=classes, mean=(0.0,), std=(1.0,))
    labels = jnp.arange(shape[0], dtype=jnp.int32) % classes
    batch = {"image": _image(shape), "label": labels, "example_valid": jnp.ones(shape[0], bool)}
    return _train(task, tx or optax.sgd(0.01, 0.9), batch)


def _of_maps(model: Any, shape: tuple[int, ...], loss_of: Callable) -> Callable[[int], None]:
    """Trains a model of named outputs by `loss_of(outputs)`."""

    def init(key, batch):
        return model.init(key, batch["image"])

    def loss(variables, batch, rng, train):
        outputs, model_state = apply_model(model, variables, batch["image"], rng=rng, train=train)
        return loss_of(outputs), Aux(model_state, {})

    return _train(Task(init, loss, None, None), optax.sgd(0.01, 0.9), {"image": _image(shape)})


def _pixels(outputs: dict) -> jax.Array:
    logits = outputs["logits"]
    labels = jnp.arange(logits[..., 0].size).reshape(logits.shape[:-1]) % logits.shape[-1]
    return softmax_cross_entropy(logits, labels).mean()


def _forward(model: Any, shape: tuple[int, ...]) -> Callable[[int], None]:
    x = _image(shape)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False), compiler_options=parallel.compiler_options())

    def run(n: int) -> None:
        for _ in range(n):
            jax.block_until_ready(apply(variables, x))

    return run


def _body_fpn() -> BackboneWithFPN:
    return BackboneWithFPN(RESNETS["resnet50"](norm=FrozenBatchNorm), FPN())


def _coco(images: int) -> Callable[[int], list[float]]:
    """From rows to the numbers of COCO; indexing the ground truth is not timed."""
    truth, rows = coco_case.make(images)
    loaded = coco_eval.load_ground_truth(truth)

    def run(n: int) -> list[float]:
        for _ in range(n):
            result = coco_eval.evaluate(loaded, rows)
        return list(result.summary.values())

    return run


def _input(height: int, width: int, reduced: bool = False) -> Callable[[int], None]:
    """Batches of 32 as the training loop gets them, brought to floats of the normal range as its step does."""
    scratch = tempfile.mkdtemp()
    request = Request("image_folder", "train", Path(scratch), photos.folder(height, width))
    with contextlib.redirect_stderr(io.StringIO()):
        source = survey_images(request, size=(), fractions=(1.0, 0.0, 0.0)).open("train")
    ops = (random_resized_crop(size=(224, 224), flip=0.5, reduced=reduced),)
    order = shuffled_order(len(source), 32, 0, "drop")
    threads = len(os.sched_getaffinity(0))
    batches = Pipeline(source, order, 0, ops, threads=threads if threads > 1 else 0).batches(0, 10**9)
    normalise = jax.jit(lambda image: (image / 255 - jnp.array((0.485, 0.456, 0.406))) / jnp.array((0.229, 0.224, 0.225)))

    def run(n: int) -> None:
        for _ in range(n):
            assert normalise(next(batches)["image"]).block_until_ready().shape == (32, 224, 224, 3)

    return run


WORKS: dict[str, Callable[[], Callable[[int], None]]] = {
    "seed_a_train": lambda: _classifier(pytorch_cnn(), SHAPES["seed"], 10, optax.sgd(0.01, 0.5)),
    "seed_b_train": lambda: _classifier(keras_cnn(), SHAPES["seed"], 10, optax.adam(1e-3)),
    "resnet18_32_train": lambda: _classifier(make_classifier("resnet18", num_classes=10), SHAPES["32"], 10),
    "resnet18_128_train": lambda: _classifier(make_classifier("resnet18"), SHAPES["128"], 1000),
    "resnet18_224_train": lambda: _classifier(make_classifier("resnet18"), SHAPES["224"], 1000),
    "resnet50_224_train": lambda: _classifier(make_classifier("resnet50"), SHAPES["224"], 1000),
    "resnet50_224_forward": lambda: _forward(make_classifier("resnet50"), SHAPES["224"]),
    "resnet50_224_forward_1": lambda: _forward(make_classifier("resnet50"), SHAPES["224, one"]),
    "mobilenet_v2_224_train": lambda: _classifier(make_classifier("mobilenet_v2"), SHAPES["mobile"], 1000),
    "vgg16_224_forward": lambda: _forward(make_classifier("vgg16"), SHAPES["224"]),
    "unet_128_train": lambda: _of_maps(UNet(4, width=32, norm=BatchNorm), SHAPES["unet"], _pixels),
    "body_fpn_800_train": lambda: _of_maps(
        _body_fpn(), SHAPES["800"], lambda maps: sum(jnp.mean(x * x) for x in maps.values())
    ),
    "body_fpn_800_forward": lambda: _forward(_body_fpn(), SHAPES["800"]),
    "input_480x640": lambda: _input(480, 640),
    "input_960x1280": lambda: _input(960, 1280),
    "input_480x640_reduced": lambda: _input(480, 640, reduced=True),
    "input_960x1280_reduced": lambda: _input(960, 1280, reduced=True),
    "coco_eval_1000": lambda: _coco(1000),
    "coco_eval_5000": lambda: _coco(5000),
    **ours_detection.works(_train),
}


def _peak() -> float:
    """Of the process, or on an accelerator of its memory."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**20 if stats else peak_of_process()


if __name__ == "__main__":
    serve(WORKS[sys.argv[1]], "jax " + jax.__version__, peak=_peak)
