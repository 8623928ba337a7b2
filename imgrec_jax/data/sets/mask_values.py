"""What masks say: their values as stored, palettes, and the targets of an image.

Shape letters: H W image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.files import Files
from imgrec_jax.data.images import ImageFileError, check_image, is_lossy, open_image, palette_of

OF_OBJECTS = ("instance_map", "instances")  # the kinds that tell objects apart
LEAST_WHITE = 128  # of greys
MOST_COLOURS = 64  # of one mask that are told apart; photographs have more


def check_mask(files: Files, mask: PurePosixPath, size: tuple[int, int], image: str, kind: str, max_pixels: int) -> bool:
    """Whether a mask is lossy, told without decoding it; size, image: of the image that it is of.

    Raises:
      ValueError: for a file that is no image, a mask of another size, and a lossy one where its values count.
    """
    data, name = files.read(mask), str(files.root / mask)
    header = check_image(data, name, max_pixels)
    if header[:2] != size:
        raise ValueError(f"{name} has (height, width) {header[:2]}, and its image {image} has {size}; resize one of them")
    lossy = is_lossy(data, header.format)
    if lossy and kind not in ("binary", "grey"):
        raise ValueError(
            f"{name} is a lossy {header.format}, whose values are not those that were drawn; kind={kind!r} expects PNG; "
            "write the masks as PNG again"
        )
    return lossy


class Mask(NamedTuple):
    """A mask as it is stored.

    Attributes:
      values: [H, W], whole numbers, of a palette its indices; or [H, W, 3] of colours.
      palette: uint8 [n, 3], or None.
      lossy: values are what a lossy file decodes to, uint8 [H, W].
      alpha: nothing but the alpha channel tells one pixel from another.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    lossy: bool = False
    alpha: bool = False


def read_mask(files: Files, path: PurePosixPath) -> Mask:
    """Raises ValueError, naming the file, for what cannot be decoded, and values that are no whole numbers, or of a lossy file
    neither black nor white."""
    data, name = files.read(path), str(files.root / path)
    try:
        with open_image(io.BytesIO(data)) as image:
            lossy, palette = is_lossy(data, image.format), palette_of(image)
            values = np.asarray(image.convert("L") if lossy else image)
    except Exception as error:  # whatever damaged bytes do to a decoder
        raise ImageFileError(
            f"{name}: a mask that cannot be decoded ({' '.join(str(error).split())}); replace the file"
        ) from error
    if lossy and 0 < values.max() < LEAST_WHITE:
        raise ValueError(f"{name} is a lossy mask whose largest value is {values.max()}; expected 0 and 255; write it as PNG")
    if values.dtype.kind == "f":
        values = _whole(values, name)
    alpha = False
    if values.ndim == 3:
        colours = values[..., : 3 if values.shape[2] > 2 else 1]
        alpha = values.shape[2] in (2, 4) and not colours.any() and values[..., -1].min() < values[..., -1].max()
        grey = bool((colours == colours[..., :1]).all())  # of equal channels: a grey image that was saved as RGB
        values = colours[..., 0] if grey else colours
    return Mask(values, palette, lossy, alpha)


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    """Floats as whole numbers, int64."""
    if odd := int((~np.isfinite(values)).sum()):
        raise ValueError(
            f"{name} holds NaN or infinity in {odd:,} pixels; expected whole numbers; where these are without data, write a "
            "number that is void (data.options.void)"
        )
    if (values % 1).any():
        raise ValueError(
            f"{name} holds fractions, {values.min():g} to {values.max():g}; expected whole numbers; write what is foreground "
            "as 1 (of probabilities, what is above 0.5)"
        )
    return values.astype(np.int64)


def mask_values(files: Files, path: PurePosixPath) -> np.ndarray:
    """Values [H, W] as stored (of a palette: the indices), or [H, W, 3] for a colour image; of a lossy file 0 and 1."""
    return _lossless(read_mask(files, path))


def _lossless(mask: Mask) -> np.ndarray:
    return (mask.values >= LEAST_WHITE).astype(np.uint8) if mask.lossy else mask.values


def foreground(files: Files, path: PurePosixPath) -> np.ndarray:
    """bool [H, W]: what is not 0; of a palette with one black among the colours that are used, what is not black.

    Raises:
      ValueError: as `read_mask`, and for negative values.
    """
    return _drawn(read_mask(files, path), files.root / path)


def _drawn(mask: Mask, name: Path) -> np.ndarray:
    values = _lossless(mask)
    if mask.palette is not None:
        used = np.unique(values)
        black = [n for n in used[used < len(mask.palette)].tolist() if not mask.palette[n].any()]
        if len(black) == 1:
            return values != black[0]
    refuse_negative(values, name)
    drawn = values if values.ndim == 2 else values.max(axis=2)
    return drawn != 0


def of_one_object(files: Files, path: PurePosixPath) -> np.ndarray:
    """As `foreground`, of a file that is to hold one object; ValueError where it numbers several, or classes."""
    mask = read_mask(files, path)
    if mask.values.ndim == 2 and not mask.lossy and mask.palette is None:
        numbers = np.unique(mask.values[mask.values > 0])
        if len(numbers) > 1 and numbers[-1] < LEAST_WHITE:  # larger ones are greys: the soft edges of an object
            raise ValueError(
                f"{files.root / path} holds the numbers {numbers[:5].tolist()}; a file for each object has "
                "one; for class numbers train --config=own_segmentation with data.options.kind='index', for numbers of objects "
                "with 'instance_map', or write a file for each object"
            )
    return _drawn(mask, files.root / path)


def refuse_negative(values: np.ndarray, name: Path) -> None:
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        raise ValueError(
            f"{name} holds negative values, e.g. {values.min()}; expected 0 and more; where these are without data, "
            f"--config.data.options=\"{{'kind': 'index', 'void': {values.min()}}}\" leaves them out"
        )


def targets_of(
    files: Files, masks: Sequence[PurePosixPath], size: tuple[int, int], kind: str, classes: int, void: int | None
) -> dict:
    """What the masks of an image of `size` say: segmentation and pixel_valid [H, W], and instances [H, W] of OF_OBJECTS.

    Args:
      kind: one of KINDS; only "instances" has several masks.
      classes: of kind "index", how many; void: its value that is ignored.

    Raises:
      ValueError: naming a mask whose values cannot be of that kind.
    """
    if kind in OF_OBJECTS:
        return _objects_as_classes(files, masks, kind, size)
    return _classes_of(files, masks[0], kind, classes, void)


def _objects_as_classes(files: Files, masks: Sequence[PurePosixPath], kind: str, size: tuple[int, int]) -> dict:
    """Where masks overlap, the last one in the order of names lies on top."""
    instances = np.zeros(size, np.uint16)
    if kind == "instance_map":
        values = instance_map(files, masks[0])
        instances[:] = np.searchsorted(np.unique(np.append(values, 0)), values)  # 0, 1, 2, ...
    else:
        for number, path in enumerate(masks, start=1):
            instances[of_one_object(files, path)] = number
    return {
        "segmentation": (instances > 0).astype(np.uint8),
        "pixel_valid": np.ones(size, np.bool_),
        "instances": instances,
    }


def _classes_of(files: Files, mask: PurePosixPath, kind: str, classes: int, void: int | None) -> dict:
    if kind == "binary":
        drawn = foreground(files, mask)
        return {"segmentation": drawn.astype(np.uint8), "pixel_valid": np.ones(drawn.shape, np.bool_)}
    values, name = mask_values(files, mask), files.root / mask
    if values.ndim == 3:
        expected = "grey PNG" if kind == "grey" else "grey or palette PNG of class numbers"
        raise ValueError(f"{name} is a colour image; kind={kind!r} expects {expected}")
    if kind == "grey":
        least = 1 if values.max(initial=0) <= 1 else LEAST_WHITE  # a lossy file is read as 0 and 1
        return {"segmentation": (values >= least).astype(np.uint8), "pixel_valid": np.ones(values.shape, np.bool_)}
    values = values.astype(np.int64)
    valid = values != void if void is not None else np.ones(values.shape, np.bool_)
    strange = np.unique(values[valid & ((values < 0) | (values >= classes))])
    if strange.size:
        raise ValueError(
            f"{name} has values {strange[:5].tolist()}; expected classes 0..{classes - 1} or void ({void}); give all "
            "data.class_names, or kind='binary' for masks of 0 and 255"
        )
    return {"segmentation": np.where(valid, values, 0).astype(np.int32), "pixel_valid": valid}


def instance_map(files: Files, mask: PurePosixPath) -> np.ndarray:
    """int32 [H, W]: 0, or the number of an object."""
    values, name = mask_values(files, mask), files.root / mask
    if values.ndim == 3:
        raise ValueError(f"{name} is a colour image; kind='instance_map' expects grey or palette PNG of object numbers")
    refuse_negative(values, name)
    return values.astype(np.int32)
