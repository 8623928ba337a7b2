"""DICOM files as pictures, by pydicom (`pip install 'imgrec-jax[dicom]'`): rescaled, windowed, bright where the body is dense.

The window is the given one, else the file's first, else the range of its stored bits; below it is 0, above it white.
MONOCHROME1, which stores white as 0, is turned round. Of several frames the first counts. DICOM PS3.3, C.7.6.3 and C.11.2.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from imgrec_jax.data.images import MAX_PIXELS, ImageFileError

SUFFIXES = (".dcm", ".dicom")
GROUPS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")  # that can be `data.group`


def is_dicom(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _read(data: bytes, **options: Any) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImageFileError("a DICOM file: pip install 'imgrec-jax[dicom]'") from error
    return pydicom.dcmread(io.BytesIO(data), **options)


def header(data: bytes) -> Any:
    """The data set without its pixels."""
    return _read(data, stop_before_pixels=True)


def size(found: Any, max_pixels: int = MAX_PIXELS) -> tuple[int, int, int, int, bool]:
    """(height, width, channels, depth, whether there are several frames) of a header."""
    height, width = int(found.Rows), int(found.Columns)
    if height * width > max_pixels:
        raise ImageFileError(f"{height} x {width} pixels, more than config.data.max_pixels={max_pixels}")
    channels = 3 if int(found.get("SamplesPerPixel", 1)) == 3 else 1
    deep = channels == 1 and int(found.get("BitsStored", 8)) > 8
    return height, width, channels, 16 if deep else 8, int(found.get("NumberOfFrames", 1) or 1) > 1


def pixels(data: bytes, window: tuple[float, ...] = ()) -> np.ndarray:
    """[H, W] uint16 or uint8, or [H, W, 3] uint8; window: (centre, width) in units of the rescaled values."""
    found = _read(data)
    _, _, channels, depth, several = size(found)
    stored = found.pixel_array[0] if several else found.pixel_array
    if channels == 3:
        from pydicom.pixels import convert_color_space

        kind = str(found.PhotometricInterpretation)
        return np.asarray(stored if kind == "RGB" else convert_color_space(stored, kind, "RGB"), np.uint8)
    slope, intercept = float(found.get("RescaleSlope", 1) or 1), float(found.get("RescaleIntercept", 0) or 0)
    values = stored.astype(np.float64) * slope + intercept
    low, high = _limits(found, window, slope, intercept)
    share = np.clip((values - low) / (high - low), 0, 1)
    if found.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    white, dtype = (65535, np.uint16) if depth == 16 else (255, np.uint8)
    return np.rint(share * white).astype(dtype)


def _limits(found: Any, window: tuple[float, ...], slope: float, intercept: float) -> tuple[float, float]:
    if not window and "WindowCenter" in found and "WindowWidth" in found:
        first = lambda value: float(value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) else value)  # noqa: E731
        window = (first(found.WindowCenter), first(found.WindowWidth))
    if window:
        centre, width = window  # PS3.3, C.11.2.1.2.1: LINEAR
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (max(width, 2) - 1) / 2
    bits, signed = int(found.get("BitsStored", 8)), int(found.get("PixelRepresentation", 0))
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return min(e * slope + intercept for e in ends), max(e * slope + intercept for e in ends)
