"""Photometric ops of one example; numpy and OpenCV.

An op is `op(example, rng) -> example`; geometry (rotate, scale, translate, flip, crop) is in `geometry.py`. Images are uint8
0..255 or float 0..1 and stay what they are; strengths are of 255 for both. Anything else is a ValueError (`pixels.py`).
Shape letters: H W C image.
"""

import cv2
import numpy as np

from imgrec_jax.data.images import Undecoded
from imgrec_jax.data.ops.geometry import Example, Op
from imgrec_jax.data.ops.pixels import as_image, checked, white

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL and torchvision


def erase(*, probability: float = 0.5, area: tuple[float, float] = (0.02, 0.2), ratio: float = 3.0, fill: int = 0) -> Op:
    """Random erasing (Zhong et al. 2017, arXiv 1708.04896): fills one rectangle of the image.

    Args:
      probability: of an image being touched.
      area: range of the rectangle's share of the image.
      ratio: largest ratio of its sides.
      fill: its value, 0..255; of 1/255 in a float image.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        image = checked(example["image"])
        if rng.random() >= probability:
            return example
        height, width = image.shape[:2]
        pixels = rng.uniform(*area) * height * width
        shape = np.exp(rng.uniform(-1, 1) * np.log(ratio))
        h = min(max(round(np.sqrt(pixels * shape)), 1), height)
        w = min(max(round(np.sqrt(pixels / shape)), 1), width)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        image = image.copy()
        image[y : y + h, x : x + w] = fill * (white(image.dtype) / 255)
        return {**example, "image": image}

    return op


def colour_jitter(*, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0) -> Op:
    """Scales brightness, contrast and saturation by factors in [1 - s, 1 + s] and turns the hue by up to `hue` of the circle.

    The order is fixed (torchvision draws it). Saturation and hue leave images without colour alone.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        factors = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
        turn = rng.uniform(-hue, hue)
        dtype = checked(example["image"]).dtype
        image = example["image"].astype(np.float32) * np.float32(factors[0])
        coloured = image.shape[2] == 3
        if contrast:
            mean = (image @ _LUMA).mean() if coloured else image.mean()
            image = mean + np.float32(factors[1]) * (image - mean)
        if saturation and coloured:
            grey = (image @ _LUMA)[..., None]
            image = grey + np.float32(factors[2]) * (image - grey)
        image = as_image(image, dtype)
        if hue and coloured:
            image = _turn_hue(image, turn)
        return {**example, "image": image}

    return op


def _turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """The hue turned by a share of the circle: exactly in floats, by 256 steps in uint8."""
    if image.dtype == np.uint8:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # the full circle is 256 steps and wraps around
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turn)) % 360
    return as_image(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), image.dtype)


def gaussian_noise(*, sigma: float) -> Op:
    """Adds noise of standard deviation `sigma` (of 255) to every pixel."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        image = checked(example["image"])
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(sigma * white(image.dtype) / 255)
        return {**example, "image": as_image(image + noise, image.dtype)}

    return op


def to_channels(channels: int) -> Op:
    """Grey images to three equal channels, or colour to one by luma; what fits already is left alone.

    Raises:
      ValueError: for a count of channels other than 1 and 3 (drop an alpha channel beforehand), or what is no image.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if isinstance(example["image"], Undecoded):  # of these channels, or it would have been decoded
            return example
        image = checked(example["image"])
        if image.ndim == 2:
            image = image[..., None]
        have = image.shape[2]
        if have not in (1, 3):
            raise ValueError(f"image has {have} channels; expected 1 or 3")
        if have == 1 and channels == 3:
            image = np.repeat(image, 3, axis=2)
        elif have == 3 and channels == 1:
            image = as_image(image @ _LUMA, image.dtype)[..., None]
        return {**example, "image": image}

    op.passes_undecoded = channels  # type: ignore[attr-defined]  # told by `pipeline.Pipeline`
    return op


def colour(image: np.ndarray) -> np.ndarray:
    """Grey [H, W, 1] as RGB [H, W, 3]; three channels as they are."""
    image = np.asarray(image)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
