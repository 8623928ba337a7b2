"""What is explained: the score of a class, of a detection, or of the pixels of a class, as a function of images.

Shape letters: N images, H W C image, D detections, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.attribution.methods import Looked, Score, compiled
from imgrec_jax.inference import layers
from imgrec_jax.tasks.task import Task

Wanted = dict[str, Any]  # arrays
Function = Callable[..., jax.Array]  # (variables, batch, wanted) -> float32 [N]
KEPT = 64  # functions, so that what is compiled of them serves the next image


class Target(NamedTuple):
    """Attributes:
    text: what it is, for captions.
    score: (variables, batch, wanted) -> [N], to be differentiated: a logit, or a detection's score.
    confidence: the same within 0..1, for figures of merit.
    wanted: what of an image it is: class, area, box.
    """

    text: str
    score: Function
    confidence: Function
    wanted: Wanted


def of_class(task: Task, label: int, name: str) -> Target:
    """The logit of a class of an image."""
    return Target(name, *_of_class(task), {"label": np.int32(label)})


@functools.lru_cache(KEPT)
def _of_class(task: Task) -> tuple[Function, Function]:
    assert task.logits is not None
    logits = task.logits
    return (
        lambda variables, batch, wanted: logits(variables, batch)[:, wanted["label"]],
        lambda variables, batch, wanted: task.predict(variables, batch)["probs"][:, wanted["label"]],
    )


def of_area(task: Task, label: int, name: str, area: np.ndarray) -> Target:
    """The logit of a class summed over an area, bool [H, W]; the mean probability there."""
    return Target(name, *_of_area(task), {"label": np.int32(label), "area": np.asarray(area, np.float32)})


@functools.lru_cache(KEPT)
def _of_area(task: Task) -> tuple[Function, Function]:
    assert task.logits is not None
    logits = task.logits

    def score(variables: dict, batch: dict, wanted: Wanted) -> jax.Array:
        return jnp.sum(logits(variables, batch)[..., wanted["label"]] * wanted["area"], axis=(1, 2))

    def confidence(variables: dict, batch: dict, wanted: Wanted) -> jax.Array:
        probs = jax.nn.softmax(logits(variables, batch))[..., wanted["label"]]
        return jnp.sum(probs * wanted["area"], axis=(1, 2)) / jnp.maximum(jnp.sum(wanted["area"]), 1)

    return score, confidence


def of_box(task: Task, label: int, name: str, box: np.ndarray) -> Target:
    """How well a detection is found again: the largest product of score and overlap (IoU) among those of its class.

    The overlap is taken as it is: what is differentiated is the score. box: [4] xyxy in pixels of the network's image.
    """
    score = _of_box(task)
    return Target(name, score, score, {"label": np.int32(label), "box": np.asarray(box, np.float32)})


@functools.lru_cache(KEPT)
def _of_box(task: Task) -> Function:
    def score(variables: dict, batch: dict, wanted: Wanted) -> jax.Array:
        found, box, label = task.predict(variables, batch), wanted["box"], wanted["label"]
        boxes = jax.lax.stop_gradient(found["boxes"])
        corner = jnp.minimum(boxes[..., 2:], box[2:]) - jnp.maximum(boxes[..., :2], box[:2])
        shared = jnp.prod(jnp.maximum(corner, 0), axis=-1)
        area = jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) + jnp.prod(box[2:] - box[:2])
        iou = shared / jnp.maximum(area - shared, 1e-6)
        alike = found["valid"] & (found["labels"] == label)
        return jnp.max(jnp.where(alike, iou * found["scores"], 0.0), axis=1)

    return score


class Explained(NamedTuple):
    """A target on one image.

    Attributes:
      image: float32 [H, W, C] 0..1, as the network sees it.
      batch: of one row, whose image is replaced.
      variables: of the model.
      target: what is explained.
    """

    image: np.ndarray
    batch: Mapping[str, Any]
    variables: Any
    target: Target

    def score(self) -> Score:
        return compiled(functools.partial(_of_images(self.target.score), *self._arguments))

    def confidence(self) -> Score:
        return compiled(functools.partial(_of_images(self.target.confidence), *self._arguments))

    @property
    def _arguments(self) -> tuple[Any, dict, Wanted]:
        return self.variables, dict(self.batch), self.target.wanted

    def look(self, layer: str) -> Looked:
        """The layer's map and the gradient of the score by it.

        Raises:
          ValueError: for a layer that is no map of the model, with those that are.
        """
        known = self.layers()
        if layer not in known:
            raise ValueError(f"--layer={layer} is no map of the model; it has {list(known)}")
        found, gradient = _map_and_gradient(self.target.score, layer)(*self._arguments, jnp.asarray(self.image[None]))
        return Looked(np.asarray(found, np.float32), np.asarray(gradient, np.float32))

    def layers(self) -> dict[str, tuple[int, ...]]:
        """{path: shape} of the maps that `look` takes, in the order in which they are computed."""
        leaves, tree = jax.tree.flatten((*self._arguments, self.image[None]))
        return dict(_maps(self.target.score, tree, tuple(jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in leaves)))

    def values(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """{path: map [1, h, w, F]} of these layers."""
        return jax.device_get(_values(self.target.score, names)(*self._arguments, jnp.asarray(self.image[None])))


@functools.lru_cache(KEPT)
def _of_images(function: Function) -> Function:
    return lambda variables, batch, wanted, images: function(variables, rows_of(batch, images), wanted)


@functools.lru_cache(KEPT)
def _map_and_gradient(function: Function, layer: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    shifted = layers.added(_of_images(function))

    @jax.jit
    def both(*arguments: Any) -> tuple[jax.Array, jax.Array]:
        found = layers.watched(_of_images(function), (layer,))(*arguments)[1][layer]
        by_map = jax.grad(lambda shift: jnp.sum(shifted({layer: shift}, *arguments)))(jnp.zeros_like(found))
        return found[0], by_map[0]

    return both


@functools.lru_cache(KEPT)
def _values(function: Function, names: tuple[str, ...]) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(lambda *arguments: layers.watched(_of_images(function), names)(*arguments)[1])


@functools.lru_cache(KEPT)
def _maps(function: Function, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> dict[str, tuple[int, ...]]:
    *arguments, images = jax.tree.unflatten(tree, leaves)

    def on_a_batch(variables: Any, batch: dict, wanted: Wanted, given: dict) -> jax.Array:
        return function(variables, rows_of(batch, given["image"]), wanted)

    return layers.maps(on_a_batch, *arguments, {"image": images})


def rows_of(batch: Mapping[str, Any], images: jax.Array | np.ndarray) -> dict[str, Any]:
    """A batch of one row, repeated for images [N, H, W, C], which replace its own."""
    count = images.shape[0]
    repeated = {key: jnp.repeat(jnp.asarray(value)[:1], count, axis=0) for key, value in batch.items() if key != "image"}
    return {**repeated, "image": images}


def default_layer(maps: Mapping[str, tuple[int, ...]]) -> str:
    """The last map of a classifier, the deepest of the others: the widest one, the last of equals.

    Raises:
      ValueError: for a model without maps.
    """
    if not maps:
        raise ValueError("this model has no map of features; take a method that needs none: gradients, occlusion, rise")
    inner = [name for name in maps if not name.startswith(("rpn/", "roi_heads/"))] or list(maps)  # not a detector's heads
    widest = max(maps[name][3] for name in inner)
    return next(name for name in reversed(inner) if maps[name][3] == widest)
