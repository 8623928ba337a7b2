"""Semantic segmentation: one class per pixel.

Shape letters: B batch, H W image, C classes (with background where there is one).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imgrec_jax import metrics
from imgrec_jax.models import unet
from imgrec_jax.segmentation import objects, tiling
from imgrec_jax.segmentation.losses import LossSums
from imgrec_jax.segmentation.metrics import COMPONENTS, ObjectMaps, pixel_scores
from imgrec_jax.tasks.task import TINY, Aux, Task, apply_model, mean_probabilities, normalise


def make_task(
    *,
    model: nn.Module,
    loss_fn: Callable[..., LossSums],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    aux_weight: float = 0.5,
    window: tuple[int, int] | None = None,
    overlap: float = 0.25,
    test_time: str = "none",
    separate: objects.Separate | None = None,
    axis_name: str | None = None,
) -> Task:
    """A segmentation task.

    A network with padding="valid" is trained on the centre that it predicts; in evaluation and prediction images are mirrored
    beyond their border, so that every pixel has a prediction.

    Args:
      model: images [B, H, W, C] -> {"logits": [B, h, w, C], "aux_logits" the same, optional}.
      loss_fn: (logits, label, valid, pixel_weight or None) -> LossSums, see `segmentation.losses`.
      num_classes: C.
      mean, std: of the pixels in 0..1, per channel or one for all.
      aux_weight: of the loss of "aux_logits" (torchvision trains with 0.5).
      window: predict by windows of this size (see `tiling.sliding_window`); None predicts images whole.
      overlap: of the windows.
      test_time: versions of an image to average over, one of `tiling.TEST_TIME`.
      separate: a predicted foreground -> single objects, which the records then have, too; None has connected components
        scored and none in the records.
      axis_name: mapped axis under `pmap`.

    Raises:
      ValueError: unknown `test_time`.
    """
    if test_time not in tiling.TEST_TIME:
        raise ValueError(f"eval.test_time={test_time!r} is unknown; choose one of {tiling.TEST_TIME}")
    context = _context(model)

    def init(rng, batch_spec):
        image = jnp.zeros((1, *batch_spec["image"].shape[1:]), jnp.float32)
        return model.init(rng, image)

    def probabilities(variables, batch):
        image = normalise(batch["image"], mean, std)

        def predict(x):
            outputs, _ = apply_model(model, variables, x, rng=None, train=False)
            return jax.nn.softmax(outputs["logits"].astype(jnp.float32))

        windowed = partial(tiling.sliding_window, predict, window=window, overlap=overlap, context=context)
        return tiling.averaged(windowed, image, test_time)

    def forward(variables, batch, rng, train):
        """Outputs and new model state; in evaluation those of the prediction as it is made, by windows and averaged."""
        if train:
            image = normalise(batch["image"], mean, std)
            return apply_model(model, variables, image, rng=rng, train=True, axis_name=axis_name)
        state = {name: value for name, value in variables.items() if name != "params"}
        return {"logits": jnp.log(jnp.maximum(probabilities(variables, batch), TINY))}, state

    def loss(variables, batch, rng, train):
        outputs, model_state = forward(variables, batch, rng, train)
        logits = outputs["logits"]
        size = logits.shape[1:3]
        label, valid = _centre(batch["segmentation"], size), _centre(_valid(batch), size)
        weight = _centre(batch["pixel_weight"], size) if "pixel_weight" in batch else None
        sums = loss_fn(logits, label, valid, weight)
        if "aux_logits" in outputs:
            sums = sums.with_aux(loss_fn(outputs["aux_logits"], label, valid, weight), aux_weight)
        hits = (jnp.argmax(logits, -1) == label) & valid
        accuracy = metrics.Accuracy(jnp.sum(hits, dtype=jnp.int32), jnp.sum(valid, dtype=jnp.int32))
        return sums.value(axis_name), Aux(model_state, {"loss": sums, "pixel_accuracy": accuracy}, sums.count())

    def predict(variables, batch):
        probs = probabilities(variables, batch)
        return {"segmentation": jnp.argmax(probs, axis=-1).astype(jnp.int32), "probs": probs}

    def task_metrics(predictions, batch):
        predicted, valid = predictions["segmentation"], _valid(batch)
        states: dict[str, Any] = {**pixel_scores(predicted, batch["segmentation"], valid, num_classes)}
        if "instances" in batch:
            states["object"] = ObjectMaps(predicted > 0, batch["instances"], valid, separate=separate or COMPONENTS)
        return states

    def logits(variables, batch):
        outputs, _ = apply_model(model, variables, normalise(batch["image"], mean, std), rng=None, train=False)
        return outputs["logits"].astype(jnp.float32)

    return Task(init, loss, predict, task_metrics, logits, partial(records, separate=separate), averaged)


def averaged(predictions: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """Predictions of several networks -> those of the mean of their probabilities."""
    probs = mean_probabilities(predictions)
    return {"segmentation": jnp.argmax(probs, axis=-1).astype(jnp.int32), "probs": probs}


def records(
    predictions: dict[str, np.ndarray], batch: dict[str, np.ndarray], separate: objects.Separate | None = None
) -> list[dict[str, np.ndarray]]:
    """Of each row: segmentation int32 [h, w], the class of each pixel of the image as the network saw it, without padding; and
    with `separate` objects int32 [h, w], the number of each pixel's object."""
    maps = np.asarray(predictions["segmentation"])
    sizes = batch["image_size"] if "image_size" in batch else [maps.shape[1:]] * len(maps)
    found = [{"segmentation": classes[:height, :width]} for classes, (height, width) in zip(maps, sizes, strict=True)]
    return [row | {"objects": separate(row["segmentation"] > 0)} for row in found] if separate else found


def _valid(batch: dict[str, jax.Array]) -> jax.Array:
    """Pixels that count, bool [B, H, W]: none of a padded row."""
    return batch["pixel_valid"] & batch["example_valid"][:, None, None]


def _centre(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The central `size` of [B, H, W]."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


def _context(model: nn.Module) -> Callable[[int], tuple[int, int]]:
    """What to add to a side of n pixels so that the network predicts at least these n."""
    if getattr(model, "padding", "same") != "valid":
        return tiling.no_context

    def context(n: int) -> tuple[int, int]:
        margin = unet.valid_margin(model.depth)
        return margin, unet.valid_sizes(n + 2 * margin, model.depth)[1] - n - margin

    return context
