"""Encoded images: reading the file, checking it, decoding it.

What is read here was written by others: nothing is opened that is no regular file, nothing is decoded before its header says
how large it is, and every error names the file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import stat
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

MAX_PIXELS = 200_000_000  # of an image that is decoded: 600 MB
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # as PIL names them
_BYTES_UNCHECKED = 64 * 2**20  # a smaller file is read before its header is looked at
_BYTES_PER_PIXEL = 16  # of a larger file: four channels of float32
_PIL_LOCK = threading.Lock()
_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)  # of damage, by who listens
_SAID: set[str] = set()  # files whose damage was said
_MOST_SAID = 10_000  # of them; a server is sent names for ever
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Of a tag's bytes that are cut off or none of its type: nobody could mend them, and only the orientation is looked at here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
_DAMAGE = re.compile(r"Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|CRC error|not enough image data")


class ImageFileError(ValueError):
    """A file that is no image that may be read: names the file and says what is wrong with it."""


class ImageSizeError(ValueError):
    """An image whose size is not the annotated one: names the file and both sizes."""


class Header(NamedTuple):
    """What an image says of itself before its pixels; format: "PNG", "JPEG", ..."""

    height: int
    width: int
    format: str


def file_problem(path: Path) -> str | None:
    """Why `path` cannot be read, told without opening it; None where nothing speaks against it. Links are followed."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is not there"
    except (OSError, ValueError) as error:  # no rights, a name that is too long, a loop of links
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    # a device or a pipe may never end
    return None if stat.S_ISREG(mode) else "is no regular file"


def read_regular(path: Path, what: str, most: int | None = None) -> bytes:
    """The bytes of a regular file of at most `most` bytes; what: what is expected there, for messages.

    Raises:
      FileNotFoundError: when it is not there.
      ValueError: for anything but a regular file, or one that is larger.
    """
    problem = file_problem(path)
    if problem:
        error = FileNotFoundError if problem == "is not there" else ValueError
        raise error(f"{path} {problem}; expected {what}")
    if most is not None and (size := path.stat().st_size) > most:
        raise ValueError(f"{path} has {size:,} bytes; expected {what} of at most {most:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); expected {what}") from error


def read_text(path: Path, what: str, most: int | None = None) -> str:
    """The UTF-8 text of a regular file, see `read_regular`; a byte-order mark is dropped.

    Raises:
      ValueError: for what is no such text, too; names the file.
    """
    return text_of(read_regular(path, what, most), str(path))


def text_of(data: bytes, name: str, encoding: str = "utf-8-sig") -> str:
    """The text of a file's bytes.

    Raises:
      ValueError: for what is none; with `name`.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8 text ({error.reason} at byte {error.start}); write it as such") from error


def read_image_file(path: Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file; one with far more bytes than pixels is refused before it is read.

    Raises:
      FileNotFoundError: when it is not there.
      ValueError: for anything but a regular file that can be an image.
    """
    if file_problem(path) is None:
        check_size(lambda: path.open("rb"), str(path), path.stat().st_size, max_pixels)
    return read_regular(path, "an image file")


def check_size(open_file: Callable[[], IO[bytes]], name: str, size: int, max_pixels: int) -> None:
    """Raises ImageFileError for a file of `size` bytes whose header does not account for them; reads a small one not at all."""
    if size > _BYTES_UNCHECKED:
        with open_file() as file:
            header = read_header(file, name, max_pixels)
        if size > _BYTES_UNCHECKED + _BYTES_PER_PIXEL * header.height * header.width:
            raise ImageFileError(f"{name}: {size:,} bytes for an image of {header.height} x {header.width}; replace the file")


def file_header(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """`read_header` of a regular file; OSError becomes an ImageFileError that names it."""
    try:
        with path.open("rb") as file:
            return read_header(file, str(path), max_pixels)
    except OSError as error:
        raise ImageFileError(f"{path} cannot be read ({error.strerror}); expected an image file") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this PIL has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(file: IO[bytes]) -> Any:
    """`PIL.Image.open` for FORMATS, without its limit of pixels: ours is another, and an error that names the file."""
    from PIL import Image

    formats = _formats()
    with _PIL_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def stored_size(image: Any) -> tuple[int, int]:
    """(height, width) of an opened PIL image as its pixels are stored; of a TIFF some PILs tell that of the turned image."""
    if image.format == "TIFF":
        return int(image.tag_v2[257]), int(image.tag_v2[256])
    return image.height, image.width


def read_header(file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an image, without its pixels being read.

    Raises:
      ImageFileError: when it is none, or one of more than `max_pixels`.
    """
    from PIL import Image

    try:
        with open_image(file) as image:
            header = Header(*stored_size(image), image.format or "")
    except Image.UnidentifiedImageError as error:
        raise ImageFileError(f"{name}: no image; expected one of {', '.join(FORMATS)}; replace the file") from error
    except Exception as error:  # whatever damaged bytes do to a parser
        raise ImageFileError(f"{name}: an image with a damaged header ({_line(error)}); replace the file") from error
    if header.height * header.width > max_pixels:
        raise ImageFileError(
            f"{name}: an image of {header.height} x {header.width} pixels, more than config.data.max_pixels={max_pixels}; "
            "scale it down, or raise the limit where the memory allows"
        )
    return header


def check_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an encoded image, after what can be seen to be wrong with it without decoding: no image, too many pixels,
    a PNG or JPEG that is cut off, a PNG part that is not what its checksum says.

    Args:
      name: of the file, for messages.
      max_pixels: height x width above which nothing is decoded.

    Raises:
      ImageFileError: naming the file.
    """
    if not data:
        raise ImageFileError(f"{name}: an empty file (0 bytes); expected an image; replace the file")
    try:
        header = read_header(io.BytesIO(data), name, max_pixels)
    except ImageFileError as error:
        if error.args[0].startswith(f"{name}: no image"):
            raise ImageFileError(f"{name}: {len(data)} bytes that are no image; replace the file") from error
        raise
    if found := damage(data, header.format):
        raise ImageFileError(f"{name}: a damaged {header.format} ({found}); replace the file")
    return header


def damage(data: bytes, format: str | None) -> str | None:
    """What can be seen to be wrong with an encoded image of this format without decoding it; None where nothing can."""
    check = {"PNG": _png_damage, "JPEG": _jpeg_damage, "MPO": _jpeg_damage}.get(format or "")
    return check(data) if check else None


def _png_damage(data: bytes) -> str | None:
    """PNG (https://www.w3.org/TR/png-3), section 5: parts of length, name, content and checksum; pixels need capital names."""
    at = 8
    while at + 12 <= len(data):
        stop = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if stop > len(data):
            break
        if name[:1].isupper() and zlib.crc32(memoryview(data)[at + 4 : stop - 4]) != int.from_bytes(
            data[stop - 4 : stop], "big"
        ):
            return f"the checksum of its part {name.decode('latin-1')} at byte {at} is wrong"
        if name == b"IEND":
            return None
        at = stop
    return f"cut off after {len(data)} bytes"


def _jpeg_damage(data: bytes) -> str | None:
    """ITU-T T.81, B.1.1: markers are followed by their length, but for a scan, which lasts until the next marker."""
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        at = found.end()
        if found[0][-1] == 0xD9:
            return None
        if found[0][-1] not in (0x01, 0xD8):
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
    return f"cut off after {len(data)} bytes, without an end marker"


def palette_of(image: Any) -> np.ndarray | None:
    """The colours uint8 [n, 3] of an opened PIL image with a palette; None for any other."""
    if image.mode != "P" or image.palette is None:
        return None
    if image.palette.rawmode:  # of BMP and TIFF, whose palettes PIL keeps as they are stored until the pixels are wanted
        image.load()
    return np.frombuffer(image.palette.tobytes(), np.uint8).reshape(-1, len(image.palette.mode))[:256, :3]


def is_deep(image: Any, data: bytes) -> bool:
    """Whether an opened PIL image has 16 bits a channel, by its bytes; PIL opens some such files in 8."""
    if image.format == "PNG":
        return data[24] == 16
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (8,))
        return max(bits if isinstance(bits, tuple) else (bits,)) == 16
    return image.mode.startswith("I;16")


class UndecodableError(ValueError):
    """Of 16-bit images: says what is wrong, without the name."""


def decode_deep(data: bytes) -> np.ndarray:
    """An encoded image of 16 bits a channel -> uint16 [H, W, 1, 2, 3 or 4], RGB(A), as OpenCV turns it: a TIFF upright, others
    as stored."""
    import cv2

    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UndecodableError(f"16 bits a channel that OpenCV cannot decode ({_line(error)})") from error
    if values is None:
        raise UndecodableError("16 bits a channel that OpenCV cannot decode; a file that was cut off, or one of a rare kind")
    if values.dtype != np.uint16:
        raise UndecodableError(f"values of {values.dtype}; expected 16 bits without a sign, 0 to 65535: write it so")
    values = values if values.ndim == 3 else values[..., None]
    return values[..., [2, 1, 0, 3][: values.shape[2]]] if values.shape[2] > 2 else values


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS, depth: int = 8) -> np.ndarray:
    """Encoded image -> [H, W, 3] RGB, as stored: the orientation tag is ignored, for boxes are drawn on stored pixels. An alpha
    channel is dropped.

    Args:
      depth: 8 gives uint8, the upper half of 16 bits; 16 gives float32 0..1 with all that is stored.

    Raises:
      ImageFileError: naming the file, when the bytes are not an image, are seen to be damaged, or are too many pixels.
    """
    import cv2

    header = check_image(data, name, max_pixels)
    if depth == 16:
        return _decode_as_float(data, name, header)
    if header.format == "JPEG" and (image := decode_jpeg(data, name)) is not None:
        return image
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        image = None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    except cv2.error as error:
        raise ImageFileError(
            f"{name}: {len(data)} bytes that OpenCV cannot decode ({_line(error)}); replace the file"
        ) from error
    if image is None:
        raise ImageFileError(f"{name}: {len(data)} bytes that are no image OpenCV can decode; replace the file")
    if header.format == "TIFF":  # OpenCV turns a TIFF whatever it is told
        tag = orientation_of(data)
        image = turned(image, _BACK.get(tag, tag))
    return image


def _decode_as_float(data: bytes, name: str, header: Header) -> np.ndarray:
    """float32 [H, W, 3] of 0..1; see `decode_image`."""
    with open_image(io.BytesIO(data)) as opened:
        deep = is_deep(opened, data)
    if not deep:
        return decode_image(data, name, header.height * header.width).astype(np.float32) / np.float32(255)
    try:
        values = decode_deep(data)
    except UndecodableError as error:
        raise ImageFileError(f"{name}: {error}; replace the file") from error
    if header.format == "TIFF":
        tag = orientation_of(data)
        values = turned(values, _BACK.get(tag, tag))
    values = values[..., :3] if values.shape[2] > 2 else np.repeat(values[..., :1], 3, axis=2)
    return values.astype(np.float32) / np.float32(65535)


def decode_jpeg(data: bytes, name: str) -> np.ndarray | None:
    """RGB [H, W, 3] as OpenCV's libjpeg, and PIL's, give it, bit for bit; None for what is not decoded here, such as CMYK.

    OpenCV writes what libjpeg thinks of a damaged file to stderr, without the name of the file.
    """
    import simplejpeg

    try:
        if simplejpeg.decode_jpeg_header(data, strict=False)[2] not in ("YCbCr", "Gray"):
            return None
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        except ValueError as error:
            image = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False)
            _say_damage(name, _line(error))
            return image
    except ValueError:  # OpenCV may know better, or says that it is no image
        return None


class Undecoded(NamedTuple):
    """An image that waits to be told how much of its resolution is wanted.

    Attributes:
      shape: (H, W, C) as stored.
      read: least (height, width) -> [H', W', C] at least as large, as far as it is stored so large.
    """

    shape: tuple[int, int, int]
    read: Callable[[tuple[int, int]], np.ndarray]


def decode_reduced(data: bytes, name: str, least: tuple[int, int], channels: int) -> np.ndarray | None:
    """A JPEG at 1/2, 3/8, 1/4 or 1/8 of its size where that leaves at least (height, width); None where nothing does.

    libjpeg drops the high frequencies before it transforms: much like an average over the pixels that become one.
    """
    import simplejpeg

    colorspace = "GRAY" if channels == 1 else "RGB"
    height, width = (max(side, 1) for side in least)
    try:
        full = simplejpeg.decode_jpeg_header(data, strict=True)
        if full[2] not in ("YCbCr", "Gray") or 2 * height > full[0] + 1 or 2 * width > full[1] + 1:
            return None
        return simplejpeg.decode_jpeg(data, colorspace, min_height=height, min_width=width, min_factor=2, strict=True)
    except ValueError:  # damaged: who decodes it all says so
        return None


def _say_damage(name: str, what: str) -> None:
    """To whoever listens (`decoder_warnings`), else once a file to stderr."""
    if (heard := _HEARD.get()) is not None:
        heard.append(what)
    elif name not in _SAID:
        if len(_SAID) >= _MOST_SAID:
            _SAID.clear()
        _SAID.add(name)
        print(f"warning: {name} is damaged ({what}); its pixels are used as they decode", file=sys.stderr, flush=True)


# EXIF 2.32, section 4.6.4 A: tag 0x0112 -> (mirrored left to right first, quarter turns to the left).
_UPRIGHT = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}
_BACK = {6: 8, 8: 6}  # the others undo themselves


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """[H, W, C] as stored -> as it is to be looked at; orientation: EXIF's 1 to 8."""
    mirrored, turns = _UPRIGHT.get(orientation, (False, 0))
    upright = np.rot90(image[:, ::-1] if mirrored else image, turns)
    return np.ascontiguousarray(upright) if mirrored or turns else image


_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # the parts of a PNG that PIL finds an orientation in


def orientation_in(image: Any, data: bytes) -> int:
    """The EXIF orientation of an opened PIL image, by its bytes: 1, which is upright, where it says nothing.

    PIL decodes a PNG to look behind its pixels, too: not where nothing is there.
    """
    if image.format == "PNG" and not any(part in data for part in _PNG_EXIF):
        return 1
    return image.getexif().get(0x0112, 1)


def orientation_of(data: bytes) -> int:
    """The EXIF orientation of an encoded image; 1 where it says nothing."""
    with contextlib.suppress(Exception), open_image(io.BytesIO(data)) as image:
        if image.format in ("JPEG", "MPO", "PNG", "TIFF", "WEBP"):
            return orientation_in(image, data)
    return 1


def is_lossy(data: bytes, format: str | None) -> bool:
    """Whether the pixels of an encoded image are not exactly those that were stored, so that they cannot be class numbers."""
    return format in ("JPEG", "MPO") or (format == "WEBP" and b"VP8L" not in data)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def encoded_size(data: bytes, name: str = "an image") -> tuple[int, int]:
    """(height, width) from an image's header, without decoding its pixels; ImageFileError where it is none."""
    return check_image(data, name)[:2]


def orientation(path: Path) -> int | None:
    """The EXIF orientation tag of an image file, where it has one: 1 is upright, 5 to 8 exchange height and width."""
    from PIL import Image

    with contextlib.suppress(Exception), Image.open(path, formats=("JPEG", "TIFF", "WEBP")) as image:
        return image.getexif().get(0x0112)
    return None


class DecoderWarnings(NamedTuple):
    """What decoders said while they were listened to."""

    damage: str  # that pixels are not what was stored; "" where nothing was said of that
    rest: str


@contextlib.contextmanager
def decoder_warnings() -> Iterator[list[DecoderWarnings]]:
    """Catches what decoders say of damage, and what OpenCV's write to the process's stderr, in a list of one item.

    A damaged file decodes to something. Not for several threads at a time.
    """
    said: list[DecoderWarnings] = []
    heard: list[str] = []
    listening = _HEARD.set(heard)
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            _HEARD.reset(listening)
            kept.seek(0)
            lines = kept.read().decode(errors="replace").splitlines()
            damage = heard + [line.strip() for line in lines if _DAMAGE.search(line)]
            said.append(DecoderWarnings("; ".join(damage), "\n".join(line for line in lines if not _DAMAGE.search(line))))
