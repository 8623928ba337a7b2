"""Resizing of one image as Pillow does it, which is what most released classifiers were evaluated with.

A smaller image averages over what it covers (antialias); a larger one interpolates. Two passes, along the rows first, each
rounded to the type of the image (Pillow, src/libImaging/Resample.c). Shape letters: H W C image, h w output.
"""

from collections.abc import Callable, Sequence

import numpy as np


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys 1981, with Pillow's a."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {"bilinear": (_linear, 1.0), "bicubic": (_cubic, 2.0)}


def weights(length: int, target: int, interpolation: str) -> np.ndarray:
    """float64 [target, length], whose rows sum to about 1: along one axis, output = weights @ input."""
    kernel, reach = FILTERS[interpolation]
    scale = length / target
    stretch = max(scale, 1.0)
    centre = (np.arange(target)[:, None] + 0.5) * scale
    first, last = (np.floor(centre + sign * reach * stretch + 0.5) for sign in (-1, 1))
    cell = np.arange(length)[None]
    found = kernel((cell + 0.5 - centre) / stretch) * ((cell >= first) & (cell < last))
    return np.rint(found / found.sum(1, keepdims=True) * 2**22) / 2**22  # as Pillow keeps them for uint8


def resample(image: np.ndarray, size: Sequence[int], interpolation: str) -> np.ndarray:
    """image [H, W, C], uint8 or float -> [h, w, C] of the same type; interpolation: a key of `FILTERS`."""
    if image.shape[:2] == tuple(size):
        return image
    along_rows = _rounded(np.einsum("wW,HWc->Hwc", weights(image.shape[1], size[1], interpolation), image), image.dtype)
    return _rounded(np.einsum("hH,Hwc->hwc", weights(image.shape[0], size[0], interpolation), along_rows), image.dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.uint8:
        return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
    return values.astype(dtype)
