"""What masks say: their values as stored, palettes, and the targets of an image.

Shape letters: H W image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from imgrec_jax.data.files import Files
from imgrec_jax.data.images import ImageFileError, check_image, is_lossy, open_image

OF_OBJECTS = ("instance_map", "instances")  # the kinds that tell objects apart


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


def mask_values(files: Files, path: PurePosixPath) -> np.ndarray:
    """Values [H, W] as stored (of a palette PNG: the indices), or [H, W, C] for a colour image; of a lossy file 0 and 1."""
    return _values_and_palette(files, path)[0]


def _values_and_palette(files: Files, path: PurePosixPath) -> tuple[np.ndarray, np.ndarray | None]:
    """(as `mask_values`, of a palette its colours uint8 [n, 3])."""
    data, name = files.read(path), str(files.root / path)
    try:
        with open_image(io.BytesIO(data)) as image:
            lossy, palette = is_lossy(data, image.format), None
            if image.mode == "P" and image.palette is not None:
                palette = np.frombuffer(image.palette.tobytes(), np.uint8).reshape(-1, len(image.palette.mode))[:, :3]
            if image.mode in ("LA", "La", "PA"):  # an alpha channel says nothing of the mask
                values = np.asarray(image)[..., 0]
            else:
                values = np.asarray(image.convert("L") if lossy else image)
    except Exception as error:  # whatever damaged bytes do to a decoder
        raise ImageFileError(
            f"{name}: a mask that cannot be decoded ({' '.join(str(error).split())}); replace the file"
        ) from error
    if not lossy:
        return values, palette
    if 0 < values.max() < 128:
        raise ValueError(f"{name} is a lossy mask whose largest value is {values.max()}; expected 0 and 255; write it as PNG")
    return (values >= 128).astype(np.uint8), None


def foreground(files: Files, path: PurePosixPath) -> np.ndarray:
    """bool [H, W]: what is not 0; of a palette with one black among the colours that are used, what is not black."""
    values, palette = _values_and_palette(files, path)
    if palette is not None:
        used = np.unique(values)
        black = [n for n in used[used < len(palette)].tolist() if not palette[n].any()]
        if len(black) == 1:
            return values != black[0]
    return _nonzero(values)


def _nonzero(values: np.ndarray) -> np.ndarray:
    if values.ndim == 3:  # an alpha channel says nothing of the mask
        values = np.max(values[..., : 3 if values.shape[2] > 2 else 1], axis=2)
    return values != 0


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
            instances[foreground(files, path)] = number
    return {
        "segmentation": (instances > 0).astype(np.uint8),
        "pixel_valid": np.ones(size, np.bool_),
        "instances": instances,
    }


def _classes_of(files: Files, mask: PurePosixPath, kind: str, classes: int, void: int | None) -> dict:
    values, name = mask_values(files, mask), files.root / mask
    if kind == "binary":
        drawn = foreground(files, mask)
        return {"segmentation": drawn.astype(np.uint8), "pixel_valid": np.ones(values.shape[:2], np.bool_)}
    if values.ndim == 3:
        expected = "grey PNG" if kind == "grey" else "grey or palette PNG of class numbers"
        raise ValueError(f"{name} is a colour image; kind={kind!r} expects {expected}")
    if kind == "grey":
        least = 1 if values.max(initial=0) <= 1 else 128  # a lossy file is read as 0 and 1
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
    return values.astype(np.int32)
