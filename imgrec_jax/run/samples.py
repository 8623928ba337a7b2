"""A handful of images that a workdir keeps, so that a run can be tried where its data are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np

from imgrec_jax.data.source import Source

FOLDER = "samples"
SIDE = 512  # pixels of the longer side of an image that is kept; a larger one is made smaller
BYTES = 2_000_000  # of all of them


def keep(folder: Path, source: Source, count: int) -> None:
    """Writes the first `count` images of a source to folder/samples as PNG, fewer where they are large and none where they
    have other channels than a PNG; once.

    Raises:
      OSError: where nothing can be written.
    """
    if count == 0 or (folder / FOLDER).exists():
        return
    partial = folder / f".{FOLDER}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        left = BYTES
        for number in range(min(count, len(source))):
            image = np.asarray(source[number]["image"])
            if image.ndim == 3 and image.shape[2] not in (1, 3):
                return  # a PNG cannot hold it
            data = _png(image)
            left -= len(data)
            if left < 0:
                break
            (partial / f"{number}.png").write_bytes(data)
        partial.rename(folder / FOLDER)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _png(image: np.ndarray) -> bytes:
    """uint8, another unsigned type of its whole range, or float 0..1, [H, W, C] -> PNG of 8 bits."""
    if image.dtype != np.uint8:
        white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
        image = np.rint(np.clip(image / white, 0, 1) * 255).astype(np.uint8)
    if (step := max(image.shape[:2]) / SIDE) > 1:
        size = max(round(image.shape[1] / step), 1), max(round(image.shape[0] / step), 1)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    image = image if image.ndim == 2 or image.shape[2] == 1 else image[..., ::-1]
    return cv2.imencode(".png", image)[1].tobytes()


def files(folder: Path) -> list[Path]:
    """The images that a workdir keeps; [] where it keeps none."""
    return sorted((folder / FOLDER).glob("*.png"))
