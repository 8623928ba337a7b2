"""Preprocessing: how an image becomes a row of an evaluation batch. Evaluation and prediction share one such object.

Shape letters: H W C image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from imgrec_jax.data.batch import Batch
from imgrec_jax.data.ops.geometry import Example, Op


def size_of(example: Example) -> tuple[int, int]:
    """(height, width) of its image."""
    height, width = example["image"].shape[:2]
    return height, width


@dataclass(frozen=True)
class Preprocess:
    """The fixed ops of an image and how examples form a batch; both do without targets where an example has none.

    Attributes:
      ops: op(example, rng) -> example.
      collate: examples -> batch.
      group: prepared example -> the size that it has in a batch, (height, width); examples of one size can share a batch.
      pad: (example, (height, width)) -> the example enlarged to that size, where padding leaves its answer as good; else None.
    """

    ops: tuple[Op, ...]
    collate: Callable[[Sequence[Example]], Batch]
    group: Callable[[Example], tuple[int, int]] = size_of
    pad: Callable[[Example, tuple[int, int]], Example] | None = None

    def __call__(self, image: np.ndarray, targets: Mapping[str, Any] = MappingProxyType({})) -> Example:
        """An image [H, W, C] with its targets, if there are any -> the example that `collate` takes."""
        example: Example = {"image": image, "original_size": np.array(image.shape[:2], np.int32), **targets}
        rng = np.random.default_rng(0)  # for ops of one's own that draw: the same for every image, at every call
        for op in self.ops:
            example = op(example, rng)
        return example

    def batch(self, examples: Sequence[Example], indices: Sequence[int], rows: int) -> Batch:
        """The batch of `rows` rows of these examples, whose positions are `indices`; a batch that is not full repeats them and
        says which rows are valid, as in evaluation."""
        chosen = np.resize(np.arange(len(examples)), rows)
        batch = self.collate([examples[n] for n in chosen.tolist()])
        if "pixel_valid" in batch:  # void pixels are not valid either: what is padding is told by the sizes
            sizes = [example.get("image_size", size_of(example)) for example in examples]
            batch["image_size"] = np.array(sizes, np.int32)[chosen]
        batch["index"] = np.asarray(indices, np.int32)[chosen]
        batch["example_valid"] = np.arange(rows) < len(examples)
        return batch
