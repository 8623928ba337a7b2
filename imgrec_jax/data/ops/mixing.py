"""Ops that mix an example with another one of its batch; numpy alone.

The partner of a row is the next row of the global batch, that of the last the first: rows are shuffled anew each epoch, so it
is a random example, never the row itself, and the same one however many processes share the batch. For the same reason what is
drawn comes from the row's own generator, of (seed, step, row).

Shape letters: B batch, H W C image.
"""

from collections.abc import Callable, Sequence

import numpy as np

from imgrec_jax.data.batch import Batch
from imgrec_jax.data.ops.pixels import as_image, checked

# (image, partner's image, rng) -> (mixed image, weight of the first label: its share of the image)
Mix = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, float]]
# (batch, partners: row i is that of row i, generators of the rows) -> batch
BatchOp = Callable[[Batch, Batch, Sequence[np.random.Generator]], Batch]


def mixup(*, alpha: float = 0.2) -> Mix:
    """Mixes two images with a Beta(alpha, alpha) weight (Zhang et al. 2017, arXiv 1710.09412)."""

    def mix(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        weight = np.float32(rng.beta(alpha, alpha))
        mixed = weight * checked(image).astype(np.float32) + (1 - weight) * checked(other).astype(np.float32)
        return as_image(mixed, image.dtype), float(weight)

    return mix


def cutmix(*, alpha: float = 1.0, probability: float = 1.0) -> Mix:
    """Pastes a rectangle of the other image (Yun et al. 2019, arXiv 1905.04899); the weight is the area left.

    Args:
      alpha: the rectangle's share of the image is Beta(alpha, alpha), less where the border cuts it.
      probability: of an image being touched.
    """

    def mix(image: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        height, width = checked(image).shape[:2]
        side = np.sqrt(1 - rng.beta(alpha, alpha)) * (rng.random() < probability)
        centre_y, centre_x = rng.uniform(0, height), rng.uniform(0, width)
        y1, y2 = np.clip(np.rint(centre_y + np.array([-0.5, 0.5]) * side * height), 0, height).astype(int)
        x1, x2 = np.clip(np.rint(centre_x + np.array([-0.5, 0.5]) * side * width), 0, width).astype(int)
        mixed = image.copy()
        mixed[y1:y2, x1:x2] = checked(other)[y1:y2, x1:x2]
        return mixed, 1 - float((y2 - y1) * (x2 - x1)) / (height * width)

    return mix


def mix_batch(mixes: Sequence[Mix]) -> BatchOp:
    """Mixes each example with its partner by one of `mixes`, drawn for each example with equal probability.

    The batch gains label_b, the partner's label, and mix, the weight of the own label. A padded row lends nothing: an example
    whose partner is padding keeps its own image, with weight 1.
    """

    def op(batch: Batch, partners: Batch, rngs: Sequence[np.random.Generator]) -> Batch:
        image, weight = batch["image"].copy(), np.ones(len(rngs), np.float32)
        for i in np.flatnonzero(partners["example_valid"]).tolist():
            mix = mixes[int(rngs[i].integers(len(mixes))) if len(mixes) > 1 else 0]
            image[i], weight[i] = mix(batch["image"][i], partners["image"][i], rngs[i])
        return {**batch, "image": image, "label_b": partners["label"], "mix": weight}

    return op
