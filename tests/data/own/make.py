"""Small sets of own images, made for tests: each class has a colour of its own."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "emu": (40, 40, 200)}


def pixels(label: str, number: int, size=(20, 24)) -> np.ndarray:
    """uint8 [H, W, 3], near the colour of the class; no two alike."""
    noise = np.random.default_rng([number, len(label), ord(label[0])]).integers(-30, 31, (*size, 3))
    return np.clip(np.array(COLOURS.get(label, (120, 120, 120))) + noise, 0, 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def folder(root: Path, counts: dict[str, int], above: str = "", start: int = 0, size=(20, 24)) -> Path:
    """root/[above/]CLASS/NNN.png."""
    for label, count in counts.items():
        for n in range(start, start + count):
            write(root / above / label / f"{n:03}.png", encoded(pixels(label, n, size)))
    return root
