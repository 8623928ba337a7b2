"""What is explained: the score of a class, of a detection, or of the pixels of a class, as a function of images.

What is aimed at (a class, a box, an area) is an argument of its program: targets of one kind on images of one shape share it.
Shape letters: N images, H W C image, D detections, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from imgrec_jax.attribution.methods import Looked, Score
from imgrec_jax.inference import layers
from imgrec_jax.tasks.task import Task

Function = Callable[..., jax.Array]  # (variables, batch) -> float32 [N]


class Target(NamedTuple):
    """Attributes:
    text: what it is, for captions.
    score: (variables, batch) -> [N], to be differentiated: a logit, or a detection's score.
    confidence: the same within 0..1, for figures of merit.
    whole: whether it is of the whole image, and not of a place in it.
    """

    text: str
    score: Function
    confidence: Function
    whole: bool = True


def of_class(task: Task, label: int, name: str) -> Target:
    """The logit of a class of an image."""
    logit, probability = _class_functions(task)
    return Target(name, Partial(logit, jnp.int32(label)), Partial(probability, jnp.int32(label)))


@functools.lru_cache(maxsize=8)
def _class_functions(task: Task) -> tuple[Function, Function]:
    assert task.logits is not None
    logits = task.logits

    def logit(label: jax.Array, variables: dict, batch: dict) -> jax.Array:
        return jnp.take(logits(variables, batch), label, axis=1)

    def probability(label: jax.Array, variables: dict, batch: dict) -> jax.Array:
        return jnp.take(task.predict(variables, batch)["probs"], label, axis=1)

    return logit, probability


def of_area(task: Task, label: int, name: str, area: np.ndarray) -> Target:
    """The logit of a class summed over an area, bool [H, W]; the mean probability there."""
    total, confidence = _area_functions(task)
    aim = jnp.int32(label), jnp.asarray(area, jnp.float32)
    return Target(name, Partial(total, *aim), Partial(confidence, *aim), whole=False)


@functools.lru_cache(maxsize=8)
def _area_functions(task: Task) -> tuple[Function, Function]:
    assert task.logits is not None
    logits = task.logits

    def total(label: jax.Array, area: jax.Array, variables: dict, batch: dict) -> jax.Array:
        return jnp.sum(jnp.take(logits(variables, batch), label, axis=3) * area, axis=(1, 2))

    def confidence(label: jax.Array, area: jax.Array, variables: dict, batch: dict) -> jax.Array:
        probs = jnp.take(jax.nn.softmax(logits(variables, batch)), label, axis=3)
        return jnp.sum(probs * area, axis=(1, 2)) / jnp.maximum(jnp.sum(area), 1)

    return total, confidence


def of_box(task: Task, label: int, name: str, box: np.ndarray) -> Target:
    """How well a detection is found again: the largest product of score and overlap (IoU) among those of its class.

    The overlap is taken as it is: what is differentiated is the score. box: [4] xyxy in pixels of the network's image.
    """
    score = Partial(_box_function(task), jnp.int32(label), jnp.asarray(box, jnp.float32))
    return Target(name, score, score, whole=False)


@functools.lru_cache(maxsize=8)
def _box_function(task: Task) -> Function:
    def score(label: jax.Array, wanted: jax.Array, variables: dict, batch: dict) -> jax.Array:
        found = task.predict(variables, batch)
        boxes = jax.lax.stop_gradient(found["boxes"])
        corner = jnp.minimum(boxes[..., 2:], wanted[2:]) - jnp.maximum(boxes[..., :2], wanted[:2])
        shared = jnp.prod(jnp.maximum(corner, 0), axis=-1)
        area = jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) + jnp.prod(wanted[2:] - wanted[:2])
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
      inside: (H, W) of the image without what it is padded with; () for all of it.
    """

    image: np.ndarray
    batch: Mapping[str, Any]
    variables: Any
    target: Target
    inside: tuple[int, ...] = ()

    def score(self) -> Score:
        return Partial(_of_images, self.target.score, self.variables, self.batch)

    def confidence(self) -> Score:
        return functools.partial(_compiled, Partial(_of_images, self.target.confidence, self.variables, self.batch))

    def look(self, layer: str) -> Looked:
        """The layer's map and the gradient of the score by it.

        Raises:
          ValueError: for a layer that is no map of the model, with those that are.
          NoGradient: for one that has no part in the score.
        """
        try:
            found, gradient = _looked(self.target.score, self.variables, self.batch, self.image[None], layer=layer)
        except _NoMap:
            raise ValueError(f"--layer={layer} is no map of the model; it has {list(self.layers())}") from None
        looked = Looked(np.asarray(found, np.float32), np.asarray(gradient, np.float32))
        if not looked.gradient.any():
            raise NoGradient(
                f"no gradient of {self.target.text!r} reaches layer {layer}; take a --layer of {list(self.layers())}"
            )
        return looked

    def default_layer(self) -> str:
        """The path of the map that a method looks at which is not told where to look, see `default_layer`."""
        return default_layer(self.layers(), self.target.whole)

    def layers(self) -> dict[str, tuple[int, ...]]:
        """{path: shape} of the maps that have a part in the score, in the order in which they are computed."""
        specs = jax.eval_shape(_all_of, self.target.score, self.variables, self.batch, self.image[None])
        leaves, tree = jax.tree.flatten(specs)
        return dict(_layers(tree, tuple(leaves)))


def _all_of(score: Any, variables: Any, batch: Mapping[str, Any], images: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
    return score, variables, rows_of(batch, images)


@functools.lru_cache(maxsize=32)
def _layers(tree: Any, leaves: tuple[Any, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Of a (score, variables, batch) in shapes alone: traced once for images of one size."""
    given = tree.unflatten(leaves)

    def function(score: Any, variables: Any, batch: dict[str, Any]) -> jax.Array:
        return score(variables, batch)

    maps = layers.maps(function, *given)
    reached = layers.reaching(function, maps, *given)
    return tuple((name, shape) for name, shape in maps.items() if name in reached)


def _of_images(function: Function, variables: Any, batch: Mapping[str, Any], images: jax.Array) -> jax.Array:
    return function(variables, rows_of(batch, images))


@jax.jit
def _compiled(score: Any, images: jax.Array) -> jax.Array:
    return score(images)


@functools.partial(jax.jit, static_argnames="layer")
def _looked(
    score: Any, variables: Any, batch: Mapping[str, Any], images: jax.Array, *, layer: str
) -> tuple[jax.Array, jax.Array]:
    """(map, gradient of the score by it) of the one image; _NoMap where the layer is none of it."""
    batch = rows_of(batch, images)
    found = layers.watched(score, (layer,))(variables, batch)[1].get(layer)
    if found is None or not layers.is_map(found.shape, images.shape[0]):
        raise _NoMap(layer)
    shifted = layers.added(score)
    by_map = jax.grad(lambda shift: jnp.sum(shifted({layer: shift}, variables, batch)))(jnp.zeros_like(found))
    return found[0], by_map[0]


class NoGradient(ValueError):
    """Of a layer that has no part in the score, whose explanation would be empty."""


class _NoMap(Exception):
    """Of a layer; the program itself may raise a LookupError."""


def rows_of(batch: Mapping[str, Any], images: jax.Array | np.ndarray) -> dict[str, Any]:
    """A batch of one row, repeated for images [N, H, W, C], which replace its own."""
    count = images.shape[0]
    repeated = {key: jnp.repeat(jnp.asarray(value)[:1], count, axis=0) for key, value in batch.items() if key != "image"}
    return {**repeated, "image": images}


def default_layer(maps: Mapping[str, tuple[int, ...]], whole: bool) -> str:
    """Of maps that have a part in the score, in the order in which they are computed: the last one for a target of the whole
    image, and the deepest for a place in it: a backbone's widest, where there is one before its pyramid, the last of equals.

    Raises:
      ValueError: for a model without maps.
    """
    if not maps:
        raise ValueError("this model has no map of features; take a method that needs none: gradients, occlusion, rise")
    if whole:
        return list(maps)[-1]
    named = [
        name for name in maps if ":" in name[1:]
    ]  # of several that a module returns; those of the whole model are its answer
    inner = [name for name in maps if not name.startswith((*_HEADS, ":"))]
    kept = [name for name in named if name.rpartition(":")[0].endswith("/body")] or named or inner or list(maps)
    widest = max(maps[name][3] for name in kept)
    return next(name for name in reversed(kept) if maps[name][3] == widest)


_HEADS = ("rpn/", "roi_heads/", "head/")  # of detectors
