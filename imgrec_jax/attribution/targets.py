"""What is explained: the score of a class, of a detection, or of the pixels of a class, as a function of images.

Shape letters: N images, H W C image, D detections, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.attribution.methods import Looked, Score
from imgrec_jax.inference import layers
from imgrec_jax.tasks.task import Task

Function = Callable[..., jax.Array]  # (variables, batch) -> float32 [N]


class Target(NamedTuple):
    """Attributes:
    text: what it is, for captions.
    score: (variables, batch) -> [N], to be differentiated: a logit, or a detection's score.
    confidence: the same within 0..1, for figures of merit.
    """

    text: str
    score: Function
    confidence: Function


def of_class(task: Task, label: int, name: str) -> Target:
    """The logit of a class of an image."""
    assert task.logits is not None
    logits = task.logits
    return Target(
        name,
        lambda variables, batch: logits(variables, batch)[:, label],
        lambda variables, batch: task.predict(variables, batch)["probs"][:, label],
    )


def of_area(task: Task, label: int, name: str, area: np.ndarray) -> Target:
    """The logit of a class summed over an area, bool [H, W]; the mean probability there."""
    assert task.logits is not None
    logits, pixels, size = task.logits, jnp.asarray(area, jnp.float32), max(int(area.sum()), 1)

    def confidence(variables: dict, batch: dict) -> jax.Array:
        return jnp.sum(jax.nn.softmax(logits(variables, batch))[..., label] * pixels, axis=(1, 2)) / size

    return Target(name, lambda v, b: jnp.sum(logits(v, b)[..., label] * pixels, axis=(1, 2)), confidence)


def of_box(task: Task, label: int, name: str, box: np.ndarray) -> Target:
    """How well a detection is found again: the largest product of score and overlap (IoU) among those of its class.

    The overlap is taken as it is: what is differentiated is the score. box: [4] xyxy in pixels of the network's image.
    """
    wanted = jnp.asarray(box, jnp.float32)

    def score(variables: dict, batch: dict) -> jax.Array:
        found = task.predict(variables, batch)
        boxes = jax.lax.stop_gradient(found["boxes"])
        corner = jnp.minimum(boxes[..., 2:], wanted[2:]) - jnp.maximum(boxes[..., :2], wanted[:2])
        shared = jnp.prod(jnp.maximum(corner, 0), axis=-1)
        area = jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) + jnp.prod(wanted[2:] - wanted[:2])
        iou = shared / jnp.maximum(area - shared, 1e-6)
        alike = found["valid"] & (found["labels"] == label)
        return jnp.max(jnp.where(alike, iou * found["scores"], 0.0), axis=1)

    return Target(name, score, score)


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
        return self._of_images(self.target.score)

    def confidence(self) -> Score:
        return jax.jit(self._of_images(self.target.confidence))

    def _of_images(self, function: Function) -> Score:
        return lambda images: function(self.variables, rows_of(self.batch, images))

    def look(self, layer: str) -> Looked:
        """The layer's map and the gradient of the score by it.

        Raises:
          ValueError: for a layer that is no map of the model, with those that are.
        """
        known = layers.maps(self.target.score, self.variables, rows_of(self.batch, jnp.asarray(self.image[None])))
        if layer not in known:
            raise ValueError(f"--layer={layer} is no map of the model; it has {list(known)}")

        @jax.jit
        def both(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            batch = rows_of(self.batch, images)
            found = layers.watched(self.target.score, (layer,))(variables, batch)[1][layer]
            shifted = layers.added(self.target.score)
            by_map = jax.grad(lambda shift: jnp.sum(shifted({layer: shift}, variables, batch)))(jnp.zeros_like(found))
            return found[0], by_map[0]

        found, gradient = both(self.variables, jnp.asarray(self.image[None]))
        return Looked(np.asarray(found, np.float32), np.asarray(gradient, np.float32))

    def layers(self) -> dict[str, tuple[int, ...]]:
        """{path: shape} of the maps that `look` takes, in the order in which they are computed."""
        return layers.maps(self.target.score, self.variables, rows_of(self.batch, jnp.asarray(self.image[None])))


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
