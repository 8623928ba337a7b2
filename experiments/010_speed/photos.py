"""Made-up photographs in folders of classes, which both sides of the benchmark read."""

import tempfile
from pathlib import Path

import cv2
import numpy as np

COUNT = 64


def folder(height: int, width: int) -> Path:
    """COUNT JPEG files of that size in two folders, of about as many bytes as photographs; made where they are not there."""
    root = Path(tempfile.gettempdir()) / f"imgrec_speed_{height}x{width}"
    for n in range(COUNT):
        path = root / f"class{n % 2}" / f"{n:03}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), _photo(np.random.default_rng(n), height, width), (cv2.IMWRITE_JPEG_QUALITY, 90))
    return root


def _photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise whose power falls with its frequency, as in natural images."""
    image = np.full((height, width, 3), 128.0)
    for octave in range(1, 9):
        cells = rng.normal(size=(2**octave, 2**octave, 3)) * 60 / octave**1.2
        image += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(size=image.shape) * 6, 0, 255).astype(np.uint8)
