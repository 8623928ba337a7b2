"""Pictures of a run while it trains, for TensorBoard and its like: what the network sees, what it answers, plots at the end.

Shape letters: H W picture, B rows.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from imgrec_jax.data import pieces
from imgrec_jax.experiment import Experiment
from imgrec_jax.inference import drawing
from imgrec_jax.inference.results import Result, result_of
from imgrec_jax.pages import examples, sections
from imgrec_jax.pages.evidence import MOST_PIXELS, Evidence, truth_of

ROWS = 8  # examples whose answers are shown
LOOKED_AT = 512  # examples that the plots are of
SIDE = 320  # pixels of the longer side of a tile

Batch = dict[str, np.ndarray]
Predict = Callable[[Batch], dict[str, np.ndarray]]  # a batch of B rows -> predictions, both on the host
Pictures = dict[str, np.ndarray]


class Watch:
    """What `run.loop` asks for pictures.

    Attributes:
      batch: the first rows of the split that is looked at; predictions are asked for batches of its shapes.
    """

    def __init__(self, experiment: Experiment, devices: int):
        """devices: that share a batch."""
        self._experiment = experiment
        self._split = "validation" if "validation" in experiment.data.evals else next(iter(experiment.data.evals))
        self._pipeline = experiment.data.evals[self._split]
        self._names = list(experiment.card["class_names"])
        self._rows = -(-ROWS // devices) * devices
        self.batch = next(self._parts())

    def training(self) -> Pictures:
        """The first rows that the network is trained on, after augmentation."""
        rows = itertools.islice(examples.rows(self._experiment.data.train.batch(0)), 2 * ROWS)
        return {"train/batch": grid([_titled(*examples.drawn(row, self._names)) for row in rows])}

    def answers(self, predict: Predict) -> Pictures:
        """Some examples, each with its truth and the answer."""
        tiles = []
        for index, result in self._results(self.batch, predict):
            truth, text = examples.drawn(self._pipeline.source[index], self._names)
            if not hasattr(result, "probs"):
                tiles.append(_titled(truth, "truth"))
            tiles.append(_titled(result.draw(), f"is {text}" if hasattr(result, "probs") else "answer"))
        return {f"{self._split}/answers": grid(tiles)}

    def plots(self, predict: Predict) -> Pictures:
        """What a report draws, of the first examples of the split."""
        if self._experiment.config.data.multi_label:  # the statistics are of one label an image
            return {}
        if pieces.whole(self._pipeline.source) is not self._pipeline.source:  # and of whole images
            return {}
        found: list[tuple[int, Result]] = []
        for batch in self._parts():
            found += self._results(batch, predict)
            kept = sum(np.size(getattr(result, "segmentation", ())) for _, result in found)  # pixels of maps
            if len(found) >= LOOKED_AT or kept >= MOST_PIXELS:
                break
        source = self._pipeline.source
        truths = [truth_of(source[index]) for index, _ in found]
        indices = np.array([index for index, _ in found])
        evidence = Evidence(self._split, source, indices, [result for _, result in found], truths, 0.0)
        return {f"{self._split}_plots/{name}": _on_white(plot.png) for name, plot in sections.of(evidence)[1].items()}

    def _parts(self) -> Iterator[Batch]:
        """The batches of the split in parts of so many rows; of evaluation's shapes otherwise."""
        for step in range(self._pipeline.steps_per_epoch):
            batch = self._pipeline.batch(step)
            rows = len(batch["image"])
            for start in range(0, rows, self._rows):
                taken = np.arange(start, start + self._rows)
                part = {key: value[taken % rows] for key, value in batch.items()}
                part["example_valid"] = part["example_valid"] & (taken < rows)
                yield part

    def _results(self, batch: Batch, predict: Predict) -> Iterator[tuple[int, Result]]:
        """(position in the split, answer) of the valid rows."""
        records = self._experiment.task.records
        assert records is not None  # every task of the package has them
        for row, record in enumerate(records(predict(batch), batch)):
            if batch["example_valid"][row]:
                index = int(batch["index"][row])
                size = np.asarray(self._pipeline.source[index]["image"]).shape[:2]
                read = functools.partial(_image, self._pipeline.source, index)
                common = {"file": f"{self._split} {index}", "size": size, "read": read, "video": None}
                yield index, result_of(record, class_names=tuple(self._names), **common)


def _image(source: Any, index: int) -> np.ndarray:
    return np.asarray(source[index]["image"])


def _titled(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture of about SIDE pixels over a line."""
    import cv2

    picture, _ = drawing.enlarge(drawing.as_rgb(picture))
    if (step := max(picture.shape[:2]) / SIDE) > 1:
        size = max(int(picture.shape[1] / step), 1), max(int(picture.shape[0] / step), 1)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return drawing.caption(picture, [(text, None)]) if text else picture


def grid(tiles: list[np.ndarray], columns: int = 4) -> np.ndarray:
    """Pictures [H, W, 3] side by side in rows, as one."""
    height, width = (max(tile.shape[axis] for tile in tiles) + 6 for axis in (0, 1))
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * height, min(columns, len(tiles)) * width, 3), 24, np.uint8)
    for number, tile in enumerate(tiles):
        y, x = number // columns * height, number % columns * width
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return canvas


def _on_white(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
