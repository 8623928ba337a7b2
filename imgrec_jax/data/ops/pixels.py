"""What the numbers of an image mean: uint8 0..255, or float 0..1. Nothing else is an image here.

An op computes in the image's own units and hands back the image's own type: `white` scales what it adds or fills, `as_image`
rounds only where the type holds whole numbers.

Shape letters: H W C image.
"""

import numpy as np


def white(dtype: np.dtype) -> float:
    """The largest value of an image of `dtype`: 255 for uint8, 1 for floats.

    Raises:
      ValueError: for any other type, e.g. uint16, whose white nobody knows (255, 1023, 4095, 65535?).
    """
    dtype = np.dtype(dtype)
    if dtype == np.uint8:
        return 255.0
    if dtype.kind == "f":
        return 1.0
    raise ValueError(f"an image is {dtype}; expected uint8 0..255 or float 0..1: divide by its white, e.g. 65535 for uint16")


def checked(image: np.ndarray) -> np.ndarray:
    """`image`, if it is one.

    Raises:
      ValueError: for a type that `white` does not know, or floats outside 0..1, which a clip would silently cut.
    """
    white(image.dtype)
    # resizing in float32 leaves 0..1 by some units in the last place
    if image.dtype.kind == "f" and image.size and not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):
        raise ValueError(
            f"an image is {image.dtype} with values from {image.min():.6g} to {image.max():.6g}; expected 0..1: divide by 255, "
            "or give uint8"
        )
    return image


def as_image(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats in the units of `dtype` -> an image of it: clipped to 0..white, and rounded to whole numbers for uint8."""
    values = np.clip(np.rint(values) if np.dtype(dtype) == np.uint8 else values, 0, white(dtype))
    return values.astype(dtype)
