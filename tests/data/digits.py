"""Digits drawn with OpenCV in MNIST's format, for tests that must not need MNIST."""

import cv2
import numpy as np


def draw_digits(copies: int = 12) -> dict:
    """{"train": (images uint8 [n, 28, 28], labels int64 [n]), "test": ...}; the classes take turns."""

    def draw(first: int, count: int):
        images = np.zeros((count, 28, 28), np.uint8)
        for n, image in enumerate(images):
            rng = np.random.default_rng(first + n)
            origin = (int(rng.integers(5, 8)), int(rng.integers(21, 24)))
            cv2.putText(image, str(n % 10), origin, cv2.FONT_HERSHEY_SIMPLEX, 0.75, 255, 2, cv2.LINE_AA)
        return images, np.arange(count, dtype=np.int64) % 10

    return {"train": draw(0, 10 * copies), "test": draw(1000, 30)}
