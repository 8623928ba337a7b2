"""Pictures: image files of any kind as pixels a network can take, upright and with their depth.

Palettes are looked up, CMYK becomes RGB, what is transparent lies on white, the orientation tag is obeyed, and of an animation
the first picture counts. (Boxes are drawn on pixels as stored: `images.decode_image` serves them.)

Shape letters: H W C image.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.data.images import (
    FORMATS,
    MAX_PIXELS,
    ImageFileError,
    UndecodableError,
    damage,
    decode_deep,
    decode_jpeg,
    is_deep,
    open_image,
    orientation_in,
    palette_of,
    stored_size,
    turned,
)
from imgrec_jax.data.own import dicom

# What is odd about a file, as bits of `Picture.notes`, and how it is met.
NOTES = ("CMYK", "16-bit", "palette", "transparent", "turned by its EXIF tag", "animated", "wrong suffix")
_CMYK, _DEEP, _PALETTE, _TRANSPARENT, _TURNED, _ANIMATED, _SUFFIX = (1 << n for n in range(len(NOTES)))
_SUFFIXES = {
    "PNG": (".png",), "GIF": (".gif",), "BMP": (".bmp", ".dib"), "WEBP": (".webp",), "TIFF": (".tif", ".tiff"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".mpo"),
}  # fmt: skip
_CHECKED = ("JPEG", "MPO")  # to their ends by `damage`; of a PNG that tells nothing of what is packed in its parts
_JPEG = b"\xff\xd8"  # how one begins


class Picture(NamedTuple):
    """What an image file is, told without its pixels being decoded where its format allows that.

    Attributes:
      height, width: upright.
      channels: 1 or 3.
      depth: 8 or 16 bits a channel.
      notes: bits of NOTES.
      digest: uint64 of the file's bytes.
      problem: why it cannot be read; "" for a good file.
    """

    height: int = 0
    width: int = 0
    channels: int = 0
    depth: int = 8
    notes: int = 0
    digest: int = 0
    problem: str = ""


def describe(data: bytes, name: str, max_pixels: int = MAX_PIXELS, *, to_the_end: bool = True) -> Picture:
    """What the bytes of the file `name` are; whatever is wrong with them is told in `problem`, and never raised.

    to_the_end: with its digest, and what in some formats only decoding tells, that the file was cut off.
    """
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") if to_the_end else 0
    if not data:
        return Picture(problem="an empty file (0 bytes)")
    if dicom.is_dicom(name):
        return _describe_dicom(data, digest, max_pixels)
    try:
        with open_image(io.BytesIO(data)) as image:
            height, width = stored_size(image)
            if height * width > max_pixels:
                return Picture(problem=f"{height} x {width} pixels, more than config.data.max_pixels={max_pixels}")
            if found := damage(data, image.format):
                return Picture(problem=f"a damaged {image.format} ({found})")
            turn = orientation_in(image, data)  # a TIFF that is loaded has none
            deep = is_deep(image, data)
            if to_the_end and image.format not in _CHECKED:  # nothing else tells that pixels are missing
                if deep:
                    decode_deep(data)
                else:
                    image.load()
            if image.mode == "F" or (image.mode == "I" and not deep):
                return Picture(
                    problem=f"a {image.format} of mode {image.mode!r}, whose white nobody knows; write it with 8 or 16 bits"
                )
            notes = (
                _CMYK * (image.mode == "CMYK") + _DEEP * deep + _PALETTE * (image.mode == "P")
                + _TRANSPARENT * _is_transparent(image) + _TURNED * (turn in range(2, 9))
                + _ANIMATED * bool(getattr(image, "is_animated", False) and image.format != "MPO")
                + _SUFFIX * (not name.lower().endswith(_SUFFIXES.get(image.format, ("",))))
            )  # fmt: skip
            channels = 1 if _is_grey(image) else 3
    except UndecodableError as error:
        return Picture(problem=str(error))
    except Exception as error:  # whatever damaged bytes do to a parser
        if type(error).__name__ == "UnidentifiedImageError":
            return Picture(problem=f"{len(data)} bytes that are no image; expected one of {', '.join(FORMATS)}")
        return Picture(problem=f"an image with a damaged header ({' '.join(str(error).split())})")
    height, width = (width, height) if turn in range(5, 9) else (height, width)
    return Picture(height, width, channels, 16 if deep else 8, notes, digest)


def _describe_dicom(data: bytes, digest: int, max_pixels: int) -> Picture:
    try:
        height, width, channels, depth, several = dicom.size(dicom.header(data), max_pixels)
    except ImageFileError as error:
        return Picture(problem=str(error))
    except Exception as error:  # whatever damaged bytes do to a parser
        return Picture(problem=f"no DICOM file with an image ({' '.join(str(error).split())})")
    return Picture(height, width, channels, depth, _DEEP * (depth == 16) + _ANIMATED * several, digest)


def _is_transparent(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _is_grey(image: Any) -> bool:
    if image.mode != "P":
        return image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    palette = palette_of(image)
    return palette is not None and bool((palette == palette[:, :1]).all())


def decode(data: bytes, name: str, depth: int = 8, max_pixels: int = MAX_PIXELS, window: tuple[float, ...] = ()) -> np.ndarray:
    """The bytes of an image file -> [H, W, 1] or [H, W, 3] RGB; uint8 for depth 8, float32 0..1 for depth 16.

    window: (centre, width) of DICOM values; () takes the file's.

    Raises:
      ImageFileError: naming the file.
    """
    from PIL import Image, ImageOps

    found = describe(data, name, max_pixels, to_the_end=False)
    if found.problem:
        raise ImageFileError(f"{name}: {found.problem}; replace the file")
    try:
        if dicom.is_dicom(name):
            values = dicom.pixels(data, window, max_pixels)
        elif found.depth == 16:
            values = _decode_deep(data)
        elif data[:2] == _JPEG and not found.notes & _TURNED and (image := decode_jpeg(data, name)) is not None:
            values = image if found.channels == 3 else np.ascontiguousarray(image[..., :1])
        else:
            with open_image(io.BytesIO(data)) as image:
                upright = ImageOps.exif_transpose(image) if found.notes & _TURNED else image
                if found.notes & _TRANSPARENT:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, (255, 255, 255, 255)), upright)
                values = np.asarray(upright.convert("L" if found.channels == 1 else "RGB"))
    except Exception as error:  # whatever damaged bytes do to a decoder
        raise ImageFileError(f"{name}: cannot be decoded ({' '.join(str(error).split())}); replace the file") from error
    values = values if values.ndim == 3 else values[..., None]
    if depth == 16:
        return values.astype(np.float32) / np.float32(65535 if values.dtype == np.uint16 else 255)
    return np.round(values / 257).astype(np.uint8) if values.dtype == np.uint16 else values


def _decode_deep(data: bytes) -> np.ndarray:
    """uint16 [H, W, 1 or 3], upright; an alpha channel is laid on white."""
    values = decode_deep(data)
    with open_image(io.BytesIO(data)) as image:
        if image.format != "TIFF":
            values = turned(values, image.getexif().get(0x0112, 1))
    if values.shape[2] in (2, 4):
        share = values[..., -1:].astype(np.float64) / 65535
        values = np.round(values[..., :-1] * share + 65535 * (1 - share)).astype(np.uint16)
    return values
