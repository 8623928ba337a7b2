"""A trained run, opened without its data: what it predicts on images.

Shape letters: N images, H W C one of them, B rows of a batch, K classes.
"""

import sys
from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imgrec_jax import assemble, parallel
from imgrec_jax.assemble import own
from imgrec_jax.data.ops.photometric import to_channels
from imgrec_jax.run import checkpoint, start, workdir

Result = dict[str, Any]


class Predictor:
    """A run that answers.

    Attributes:
      workdir: its folder.
      config: what it was trained with.
      step: of the checkpoint; checkpoint: "best" or "last".
      class_names: in label order (for detection of labels 1, 2, ...); () where the run does not say, see `lacks`.
      variables: {"params": ..., other collections}, numpy; averaged where the run averages and nothing else was asked for.
      task: its functions; `apply(variables, batch) -> predictions` and `task.logits` are pure and can be differentiated.
      preprocess: the same that evaluation used.
      lacks: lines on what the folder does not say, because an early version wrote it.
    """

    def __init__(
        self,
        folder: Path,
        config: ConfigDict,
        card: dict[str, Any],
        found: checkpoint.Found,
        averaged: bool | None,
        allow_code: bool = False,
    ):
        self.workdir, self.config, self.step = folder, config, found.step
        self.checkpoint = "best" if found.kind == checkpoint.BEST else "last"
        with own.carried(own.of_workdir(folder, config, card.get("code", {}), allow_code)):
            self.task, self.preprocess = assemble.inference(config)
            self.class_names = tuple(card.get("class_names") or assemble.class_names(config))
        self.variables = checkpoint.read_variables(found, averaged)
        self._card = card
        self.lacks = () if "image_shape" in card else _missing(self.class_names)
        self._batch_size = card.get("eval_batch_size") or min(config.data.eval_batch_size, 64)

    @property
    def apply(self) -> Any:
        """(variables, batch of the contract in `data/batch.py`) -> predictions, pure."""
        return self.task.predict

    @cached_property
    def _predict(self) -> Any:
        # The options of training's own evaluation, so that it gives the same numbers.
        return jax.jit(self.task.predict, compiler_options=parallel.compiler_options())

    @cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    def predict(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Result]:
        """What the run sees in images of any number.

        Args:
          images: arrays [H, W] or [H, W, C], or one array [N, H, W, C]; uint8 0..255 or float 0..1, RGB where C is 3.

        Returns:
          For each image a dict of numpy values in pixels of that image:
            classification: "label" int, "name" its class, "probs" float32 [K]; of several labels an image "probs",
              "present" bool [K], "names" of these;
            detection: "boxes" float32 [n, 4] xyxy, "scores" [n], "labels" int [n] from 1, "names" [n], best first;
            segmentation: "segmentation" int32 [H, W].

        Raises:
          ValueError: for an image that cannot be one: its position, shape and type, and what is expected.
        """
        prepared = [self._as_image(image, position) for position, image in enumerate(images)]
        if not prepared:
            return []
        assert self.task.records is not None  # every task of the package has them
        results: list[Result] = [{} for _ in prepared]
        for positions, batch in self.preprocess.batches(prepared, self._rows(len(prepared))):
            predictions = jax.device_get(self._predict(self._on_device, batch))
            for position, record in zip(positions, self.task.records(predictions, batch), strict=False):
                results[position] = self._named(record, prepared[position].shape[:2])
        return results

    def _rows(self, count: int) -> int:
        """Rows of a batch: as in evaluation, or the next power of two where there are fewer images."""
        return min(self._batch_size, 1 << (count - 1).bit_length())

    def _as_image(self, image: Any, position: int) -> np.ndarray:
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        good = (
            array.ndim == 3 and array.shape[2] in (1, 3) and array.size and (array.dtype == np.uint8 or array.dtype.kind == "f")
        )
        if not good:
            raise ValueError(
                f"image {position} has shape {np.shape(image)} and type {array.dtype}; expected [H, W], [H, W, 1] or "
                "[H, W, 3], uint8 0..255 or float 0..1"
            )
        if array.dtype.kind == "f":
            if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
                raise ValueError(f"image {position} is a float image with values outside 0..1; divide by 255, or give uint8")
            array = array.astype(np.float32)
        shape = self._card.get("image_shape")
        if shape is None:
            return array
        if array.shape[2] != shape[2]:
            array = to_channels(shape[2])({"image": array}, np.random.default_rng(0))["image"]
        if self.config.task == "classification" and not len(self.config.data.eval_ops) and list(array.shape) != list(shape):
            raise ValueError(
                f"image {position} has shape {array.shape}; this run classifies images of {tuple(shape)}; resize it"
            )
        return array

    def _named(self, record: Result, size: tuple[int, int]) -> Result:
        """The record with names beside its labels, and maps brought to the (height, width) of the image."""
        names = self.class_names
        if "present" in record:
            present = np.flatnonzero(record["present"]).tolist()
            return {**record, "names": [names[n] if names else str(n) for n in present]}
        if "label" in record:
            return {**record, "name": names[record["label"]] if names else str(record["label"])}
        if "labels" in record:
            return {**record, "names": [names[n - 1] if names else str(n) for n in record["labels"]]}
        if record["segmentation"].shape != size:
            import cv2

            whole = record["segmentation"].astype(np.int32)
            record = {**record, "segmentation": cv2.resize(whole, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)}
        return record

    def __repr__(self) -> str:
        return f"<{self.config.task} run {self.workdir}, {self.checkpoint} checkpoint, step {self.step}>"


def _missing(class_names: tuple[str, ...]) -> tuple[str, ...]:
    lines = ["the folder does not say of what size its images were: they are taken as they come"]
    if not class_names:
        lines.append("the folder does not name its classes: they are called by their numbers")
    return tuple(lines)


def load(
    folder: str | PathLike, which: str | int | None = None, *, averaged: bool | None = None, allow_code: bool = False
) -> Predictor:
    """See `imgrec_jax.load`."""
    path = workdir.resolve(folder)
    config, card = workdir.read_config(path), workdir.read_card(path)
    if which is None:
        which = "best" if checkpoint.saved(path, checkpoint.BEST) else "last"
    found, _ = start.choose(path, which, lambda line: print(line, file=sys.stderr))
    return Predictor(path, config, card, found, averaged, allow_code)
