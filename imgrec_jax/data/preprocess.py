"""Preprocessing: how an image becomes a row of an evaluation batch. Evaluation and prediction share one such object.

Shape letters: H W C image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgrec_jax.data.batch import Batch
from imgrec_jax.data.ops.geometry import Example, Op

_NO_RANDOMNESS = np.random.default_rng(0)  # ops of evaluation draw nothing


@dataclass(frozen=True)
class Preprocess:
    """The fixed ops of an image and how examples form a batch; both do without targets where an example has none.

    Attributes:
      ops: op(example, rng) -> example.
      collate: examples -> batch.
      group: prepared example -> a key; examples of one key can share a batch.
    """

    ops: tuple[Op, ...]
    collate: Callable[[Sequence[Example]], Batch]
    group: Callable[[Example], Any] = lambda example: None

    def __call__(self, image: np.ndarray) -> Example:
        """An image [H, W, C] without targets -> the example that `collate` takes."""
        example: Example = {"image": image, "original_size": np.array(image.shape[:2], np.int32)}
        for op in self.ops:
            example = op(example, _NO_RANDOMNESS)
        return example

    def batches(self, images: Sequence[np.ndarray], batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """(positions in `images` [n], batch of `batch_size` rows, the first n of them valid), group by group in order.

        A batch that is not full repeats its images, as in evaluation.
        """
        examples = [self(image) for image in images]
        groups: dict[Any, list[int]] = {}
        for position, example in enumerate(examples):
            groups.setdefault(self.group(example), []).append(position)
        for members in groups.values():
            for start in range(0, len(members), batch_size):
                chosen = np.array(members[start : start + batch_size])
                rows = np.resize(chosen, batch_size)
                batch = self.collate([examples[row] for row in rows])
                batch["index"] = rows.astype(np.int32)
                batch["example_valid"] = np.arange(batch_size) < len(chosen)
                yield chosen, batch
