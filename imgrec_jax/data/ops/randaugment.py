"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): a few random distortions of one common strength.

The operations and their ranges are those of torchvision/transforms/autoaugment.py, RandAugment; a strength runs from 0 to 30.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from imgrec_jax.data.ops.geometry import Example, Op
from imgrec_jax.data.ops.pixels import checked

_STRONGEST = 30
_Picture = Callable[[Image.Image, float], Image.Image]  # (picture, strength in -1..1) -> picture


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _enhanced(kind: Callable) -> _Picture:
    return lambda picture, s: kind(picture).enhance(1 + 0.9 * s)


def _of_strength(op: Callable[[Image.Image, float], Image.Image]) -> _Picture:
    return lambda picture, s: op(picture, abs(s))


OPERATIONS: dict[str, _Picture] = {
    "identity": lambda picture, s: picture,
    "shear_x": lambda picture, s: _affine(picture, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda picture, s: _affine(picture, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda picture, s: _affine(picture, (1, 0, 150 / 331 * picture.width * s, 0, 1, 0)),
    "translate_y": lambda picture, s: _affine(picture, (1, 0, 0, 0, 1, 150 / 331 * picture.height * s)),
    "rotate": lambda picture, s: picture.rotate(30 * s, resample=Image.Resampling.BILINEAR),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "colour": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": _of_strength(lambda picture, s: ImageOps.posterize(picture, 8 - round(4 * s))),
    "solarize": _of_strength(lambda picture, s: ImageOps.solarize(picture, round(255 * (1 - s)))),
    "autocontrast": lambda picture, s: ImageOps.autocontrast(picture),
    "equalize": lambda picture, s: ImageOps.equalize(picture),
}


def rand_augment(*, count: int = 2, strength: int = 9) -> Op:
    """Applies `count` operations, drawn with replacement, of `strength` 0 to 30; signs are drawn, too.

    The function raises:
      ValueError: for an image that is not uint8 with 1 or 3 channels.
    """
    if not 0 <= strength <= _STRONGEST or count < 0:
        raise ValueError(f"count={count}, strength={strength}; expected at least 0, and a strength of at most {_STRONGEST}")
    operations = list(OPERATIONS.values())

    def op(example: Example, rng: np.random.Generator) -> Example:
        image = checked(example["image"])
        if image.dtype != np.uint8 or image.shape[-1] not in (1, 3):
            raise ValueError(f"rand_augment takes uint8 images of 1 or 3 channels, not {image.dtype} {image.shape}")
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        for chosen, sign in zip(rng.integers(0, len(operations), count), rng.choice((-1, 1), count), strict=True):
            picture = operations[chosen](picture, sign * strength / _STRONGEST)
        return {**example, "image": np.asarray(picture).reshape(image.shape)}

    return op
