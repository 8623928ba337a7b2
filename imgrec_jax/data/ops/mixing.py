"""Ops that mix the examples of a batch: op(batch, rng) -> batch; numpy alone.

Shape letters: B batch, H W C image.
"""

from collections.abc import Callable

import numpy as np

from imgrec_jax.data.batch import Batch

BatchOp = Callable[[Batch, np.random.Generator], Batch]


def mixup(*, alpha: float) -> BatchOp:
    """Mixes every image with another of the batch (Zhang et al. 2017, arXiv 1710.09412), one Beta(alpha, alpha) weight each."""

    def op(batch: Batch, rng: np.random.Generator) -> Batch:
        size = len(batch["label"])
        mix = rng.beta(alpha, alpha, size).astype(np.float32)
        other = rng.permutation(size)
        weight = mix.reshape(-1, 1, 1, 1)
        image = batch["image"] * weight + batch["image"][other] * (1 - weight)
        return _mixed(batch, np.rint(image).astype(batch["image"].dtype), other, mix)

    return op


def cutmix(*, alpha: float, probability: float = 1.0) -> BatchOp:
    """Pastes a rectangle of another image of the batch (Yun et al. 2019, arXiv 1905.04899); the weight is the area left."""

    def op(batch: Batch, rng: np.random.Generator) -> Batch:
        size, height, width = batch["image"].shape[:3]
        other = rng.permutation(size)
        side = np.sqrt(1 - rng.beta(alpha, alpha, size)) * (rng.random(size) < probability)
        centre_y, centre_x = rng.uniform(0, height, size), rng.uniform(0, width, size)
        image, mix = batch["image"].copy(), np.ones(size, np.float32)
        for i in range(size):
            y1, y2 = np.clip(np.rint(centre_y[i] + np.array([-0.5, 0.5]) * side[i] * height), 0, height).astype(int)
            x1, x2 = np.clip(np.rint(centre_x[i] + np.array([-0.5, 0.5]) * side[i] * width), 0, width).astype(int)
            image[i, y1:y2, x1:x2] = batch["image"][other[i], y1:y2, x1:x2]
            mix[i] = 1 - (y2 - y1) * (x2 - x1) / (height * width)
        return _mixed(batch, image, other, mix)

    return op


def _mixed(batch: Batch, image: np.ndarray, other: np.ndarray, mix: np.ndarray) -> Batch:
    # A padded row lends nothing: an example mixed with one keeps its own image and label.
    lone = ~batch["example_valid"][other]
    image = np.where(lone[:, None, None, None], batch["image"], image)
    return {**batch, "image": image, "label_b": batch["label"][other], "mix": np.where(lone, np.float32(1), mix)}
