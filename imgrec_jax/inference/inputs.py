"""Where images to be looked at come from: files, folders, globs, lists, arrays, PIL images, videos.

Everything becomes a stream of `Picture`s, whose pixels are read when they are asked for, so that any number of them takes the
memory of one. What is wrong with an image is said when it is read, by its name; the next one goes on.
Shape letters: N images, H W C one of them.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from imgrec_jax.data.images import (
    MAX_PIXELS,
    ImageFileError,
    check_image,
    decode_image,
    file_problem,
    open_image,
    orientation_of,
    read_image_file,
    turned,
)
from imgrec_jax.data.own.listing import PICTURES
from imgrec_jax.data.walking import walk

IMAGES = PICTURES  # a folder is looked through as one to train on is
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
ARRAYS = (".npy", ".npz")
Decode = Callable[[bytes, str], np.ndarray]
_LARGE = 32_000_000  # pixels: larger images are decoded one at a time, whatever the number of threads
_LARGE_LOCK = threading.Lock()


class Picture(NamedTuple):
    """An image that can be read.

    Attributes:
      name: of its file, or "array 3", for answers and messages.
      read: () -> uint8 0..255 or float 0..1, [H, W, C] or [H, W]; ValueError that begins with the name where it cannot be.
      video: (path, frame number, frames per second) of a frame.
    """

    name: str
    read: Callable[[], np.ndarray]
    video: tuple[str, int, float] | None = None


def read_file(path: str | os.PathLike, max_pixels: int = MAX_PIXELS, upright: bool = True) -> np.ndarray:
    """An image file of any mode -> uint8 [H, W, 3] RGB. An alpha channel is dropped, 16 bits become 8, a GIF gives its first
    frame.

    Args:
      max_pixels: height x width above which nothing is decoded.
      upright: turn it as its EXIF orientation says, as viewers show it; False keeps the pixels as stored, on which the boxes
        and masks of data sets are drawn.

    Raises:
      ValueError: naming the file and what is wrong with it.
    """
    try:
        return decode(read_image_file(Path(path), max_pixels), os.fspath(path), max_pixels, upright)
    except FileNotFoundError as error:
        raise ImageFileError(str(error)) from error


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS, upright: bool = True, depth: int = 8) -> np.ndarray:
    """Encoded image -> uint8 [H, W, 3] RGB, or of depth 16 float32 0..1; see `read_file`."""
    header = check_image(data, name, max_pixels)
    with _LARGE_LOCK if header.height * header.width > _LARGE else contextlib.nullcontext():
        try:
            image = decode_image(data, name, max_pixels, depth)
        except ImageFileError:  # a format that this OpenCV lacks
            image = _decode_by_pil(data, name)
            image = image.astype(np.float32) / np.float32(255) if depth == 16 else image
        return turned(image, orientation_of(data)) if upright else image


class AsStored:
    """Decodes files, whose pixels are left as they are stored, and knows which have an EXIF orientation that says otherwise.

    Attributes:
      turned: their names.
    """

    def __init__(self, decode: Decode):
        self._decode, self.turned = decode, set[str]()

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        if orientation_of(data) != 1:
            self.turned.add(name)
        return self._decode(data, name)


def _decode_by_pil(data: bytes, name: str) -> np.ndarray:
    try:
        with open_image(io.BytesIO(data)) as image:
            return np.asarray(as_rgb(image))
    except Exception as error:  # whatever damaged bytes do to a decoder
        raise ImageFileError(
            f"{name}: {len(data):,} bytes that cannot be decoded ({' '.join(str(error).split())}); replace the file"
        ) from error


def as_rgb(image: Any) -> Any:
    """A PIL image of any mode as one of mode "RGB"; 16 and 32 bit grey values are scaled by the white of 16 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        from PIL import Image

        values = np.asarray(image, np.float64)
        white = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def pictures(
    images: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    upright: bool = True,
    every: int = 1,
    decode: Decode | None = None,
) -> Iterator[Picture]:
    """Whatever images there are, one by one.

    Args:
      images: one or an iterable of any length of: path (of an image, a folder, a video, an npz), array [H, W] or [H, W, C], PIL
        image, `Picture`; or an array [N, H, W], [N, H, W, C].
      max_pixels, upright: see `read_file`.
      every: of a video, one frame in so many.
      decode: (bytes of a file, its name) -> image, in place of `read_file`; a PIL image is read as a file of it would be.
    """
    if isinstance(images, np.ndarray):
        one = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3, 4))
        images = [images] if one else images
    elif isinstance(images, str | os.PathLike | Picture) or _is_pil(images):
        images = [images]
    for position, item in enumerate(images):
        if isinstance(item, Picture):
            yield item
        elif isinstance(item, str | os.PathLike):
            yield from of_path(os.fspath(item), max_pixels=max_pixels, upright=upright, every=every, decode=decode)
        elif _is_pil(item):
            name = os.fspath(getattr(item, "filename", "") or f"image {position}")
            yield Picture(name, functools.partial(_read_pil, item, name, max_pixels, upright, decode))
        else:
            yield Picture(f"image {position}", functools.partial(np.asarray, item))


def _is_pil(item: Any) -> bool:
    return hasattr(item, "getexif") and hasattr(item, "convert")


def _read_pil(image: Any, name: str, max_pixels: int, upright: bool, decode_file: Decode | None) -> np.ndarray:
    """A PIL image as a file of it is read, by whatever reads files."""
    image.load()  # of a TIFF, turns it and drops the tag
    tag = image.getexif().get(0x0112, 1)
    if decode_file is None and image.mode in ("RGB", "L"):  # what every reader makes of them
        pixels = np.asarray(image.convert("RGB"))
        return turned(pixels, tag) if upright else pixels
    data = _as_png(image, tag)
    return decode(data, name, max_pixels, upright) if decode_file is None else decode_file(data, name)


def _as_png(image: Any, orientation: int) -> bytes:
    """A PIL image of any mode as a PNG with all that a PNG can say: palette, transparency, 16 bits."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # which some PILs open so
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    elif image.mode in ("RGBa", "La", "PA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = as_rgb(image)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(file, "PNG", exif=exif, icc_profile=None, compress_level=1)
    return file.getvalue()


def of_path(
    path: str,
    *,
    max_pixels: int = MAX_PIXELS,
    upright: bool = True,
    every: int = 1,
    decode: Decode | None = None,
) -> Iterator[Picture]:
    """The pictures of a file (an image, npy or npz of arrays, a video), of a folder and those below it, or of a glob."""
    options: dict[str, Any] = {"max_pixels": max_pixels, "upright": upright, "every": every, "decode": decode}
    place = Path(path)
    if file_problem(place) == "is not there":  # a file may be called ~name
        with contextlib.suppress(RuntimeError):
            place = place.expanduser()
    ending = place.suffix.lower()
    if _is_folder(place):
        try:
            found = [place / name for name in walk(place) if name.lower().endswith(IMAGES + VIDEOS)]
        except ValueError as error:
            yield fault(path, f"cannot be listed: {error}")
            return
        if not found:
            yield fault(path, f"holds no image; expected files with one of the endings {', '.join(IMAGES + VIDEOS)}")
        for file in found:
            yield from of_path(str(file), **options)
    elif glob.has_magic(path) and file_problem(place) is not None:
        names = sorted(glob.glob(str(place), recursive=True))
        if not names:
            yield fault(path, "matches no file")
        for name in names:
            if name == str(place):  # a link to nowhere with a star in its name
                yield fault(name, "is not there")
            else:
                yield from of_path(name, **options)
    elif (problem := file_problem(place)) is not None:
        yield fault(path, problem)
    elif ending in ARRAYS:
        yield from _of_arrays(place)
    elif ending in VIDEOS:
        yield from _frames(place, every)
    elif decode is not None:
        yield Picture(str(place), functools.partial(_read_and_decode, place, max_pixels, decode))
    else:
        yield Picture(str(place), functools.partial(read_file, place, max_pixels, upright))


def _read_and_decode(path: Path, max_pixels: int, decode: Decode) -> np.ndarray:
    try:
        return decode(read_image_file(path, max_pixels), str(path))
    except FileNotFoundError as error:
        raise ImageFileError(str(error)) from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def fault(name: str, problem: str) -> Picture:
    """A picture that there is not: reading it raises ImageFileError "NAME PROBLEM"."""

    def read() -> NoReturn:
        raise ImageFileError(f"{name} {problem}")

    return Picture(name, read)


def _of_arrays(path: Path) -> Iterator[Picture]:
    """Every image of every array of an npy or npz file that can be one: [H, W], [H, W, C] or a stack of them."""
    try:
        loaded = np.load(path, allow_pickle=False)
        members = {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except Exception as error:  # zipfile's, zlib's, numpy's: whatever damaged bytes do to them
        yield fault(str(path), f"cannot be read as arrays ({' '.join(str(error).split())})")
        return
    images = {key: array for key, array in members.items() if array.ndim in (2, 3, 4) and array.dtype.kind in "ufb"}
    if not images:
        shapes = {key: f"{array.dtype}{list(array.shape)}" for key, array in members.items()}
        yield fault(
            str(path), f"holds no image: {shapes}; expected [N, H, W, C], [N, H, W], [H, W, C] or [H, W], uint8 or float"
        )
    for key, array in images.items():
        name = f"{path}[{key}]" if key else str(path)
        if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
            yield Picture(name, functools.partial(np.asarray, array))
        else:
            for position, image in enumerate(array):
                yield Picture(f"{name}[{position}]", functools.partial(np.asarray, image))


def _frames(path: Path, every: int) -> Iterator[Picture]:
    """Every `every`-th frame of a video, decoded as it is asked for the next one."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    rate, number = capture.get(cv2.CAP_PROP_FPS) or 25.0, 0
    try:
        while capture.grab():
            if number % every == 0:
                good, frame = capture.retrieve()
                if not good:
                    break
                image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                yield Picture(f"{path}#{number}", functools.partial(np.asarray, image), (str(path), number, rate / every))
            number += 1
    finally:
        capture.release()
    if number == 0:
        yield fault(str(path), "is no video that OpenCV can decode")


def of_words(words: Iterable[str], lines: Iterable[str], **options: Any) -> Iterator[Picture]:
    """The pictures of a command line: paths, and "-" for a list of paths, one a line; options: of `pictures`."""
    for word in words:
        if word == "-":
            yield from pictures((line.rstrip("\r\n") for line in lines if line.strip()), **options)
        else:
            yield from pictures(word, **options)
