"""Answers drawn on pictures: boxes, class areas, a caption. Sizes follow the picture, so that text can be read on any.

Pictures are uint8 RGB [H, W, 3]; a small one is enlarged by a whole factor first, pixels staying squares.
"""

from __future__ import annotations

import colorsys
import functools
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax.run.writers import emit

JPEG_SIDE = 65_500  # pixels of the longest side that libjpeg writes
READABLE = 320  # pixels of the longer side below which a picture is enlarged before anything is written on it
DARK = 0.25  # of white: an image of more than 8 bits below it is shown brighter
_GOLDEN = 0.618033988749895  # hues this far apart stay distinct for any number of classes

Colour = tuple[int, int, int]


def colour_of(label: int) -> Colour:
    """The colour of a class number, the same in every picture; bright and saturated, neighbours far apart."""
    hue, bright = (0.02 + label * _GOLDEN) % 1.0, (1.0, 0.85, 0.95)[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, bright)
    return round(red * 255), round(green * 255), round(blue * 255)


def _white(image: np.ndarray) -> float:
    """What all but a thousandth of the values lie below, a few hot pixels."""
    step = max(int(np.sqrt(image.shape[0] * image.shape[1] / 1e5)), 1)
    return float(np.quantile(image[::step, ::step], 0.999))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 or float 0..1, [H, W] or [H, W, C] -> uint8 [H, W, 3]; of more than three channels the first three, of two these.

    A float image that uses less than a quarter of the range, as a camera of 10 to 14 bits in files of 16, is shown brighter.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 and 0 < (white := _white(image)) < DARK:
        image = image / white
    image = image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.pad(image[..., :3], ((0, 0), (0, 0), (0, max(3 - image.shape[2], 0))))


def enlarge(image: np.ndarray) -> tuple[np.ndarray, int]:
    """(picture whose longer side has at least READABLE pixels, the whole factor)."""
    factor = max(-(-READABLE // max(image.shape[:2])), 1)
    return image.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else image, factor


def text_size(shape: Sequence[int]) -> int:
    """Height of letters in pixels: a 40th of the mean side, never below 12."""
    return max(12, round((shape[0] + shape[1]) / 2 / 40))


@functools.lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(_font_file(), size)


def _font_file() -> str:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and others; Pillow's own has ASCII."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file()).get_charmap())


@functools.lru_cache(maxsize=4096)
def one_line(text: str) -> str:
    """A text as it can be written: blanks for ends of lines and tabs, a mark for other controls.

    Letters that the font lacks are boxes, which is told once.
    """
    blank = "".join(" " if letter.isspace() else letter for letter in text)
    legible = "".join("\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in blank)
    if missing := sorted({letter for letter in legible if ord(letter) not in _letters()}):
        _say_boxes("".join(missing[:10]))
    return legible


_SAID = set[str]()


def _say_boxes(letters: str) -> None:
    if not _SAID:
        _SAID.add(letters)
        emit(f"note: pictures show boxes for letters that their font lacks ({letters}); the answers have them", sys.stderr)


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever reads better on `colour`."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def boxes(image: np.ndarray, boxes: np.ndarray, colours: Sequence[Colour], texts: Sequence[str]) -> np.ndarray:
    """Boxes with a tag each, the first ones on top.

    Args:
      boxes: [n, 4] xyxy in pixels of `image`.
      colours, texts: n; a text of "" has no tag.
    """
    from PIL import Image, ImageDraw

    picture, factor = enlarge(as_rgb(image))
    height, width = picture.shape[:2]
    size = text_size(picture.shape)
    thick = max(2, round(size / 6))
    canvas = Image.fromarray(np.ascontiguousarray(picture))
    pen, font = ImageDraw.Draw(canvas), _font(size)
    scaled = np.asarray(boxes, np.float64).reshape(-1, 4) * factor
    for box, colour in reversed(list(zip(scaled, colours, strict=True))):
        x1, y1, x2, y2 = np.rint(box)
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=thick)
    taken: list[tuple[float, float, float, float]] = []
    for box, colour, text in zip(scaled, colours, map(one_line, texts), strict=True):
        if text:
            left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
            w, h = right - left + 6, bottom - top + 6
            x, y = _place(box, (w, h), (width, height), taken)
            taken.append((x, y, x + w, y + h))
            pen.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
            pen.text((x + 3 - left, y + 3 - top), text, fill=_ink(colour), font=font)
    return np.asarray(canvas)


def _place(
    box: np.ndarray, tag: tuple[float, float], whole: tuple[int, int], taken: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Where the tag of a box goes: above it, below it or inside, the first place in the picture that no tag has taken."""
    (w, h), (width, height) = tag, whole
    x1, y1, x2, y2 = box
    wanted = [(x1, y1 - h), (x1, y2), (x2 - w, y1 - h), (x2 - w, y2), (x1, y1), (x1, y2 - h), (x2, y1), (x1 - w, y1)]
    places = [(min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))) for x, y in wanted]
    for (x, y), (free_x, free_y) in zip(places, wanted, strict=True):
        covered = any(x < r and x + w > l and y < b and y + h > t for l, t, r, b in taken)
        if not covered and abs(y - free_y) < h / 2 and abs(x - free_x) < w:
            return x, y
    return places[0]


def films(image: np.ndarray, masks: Iterable[np.ndarray], colours: Sequence[Colour], opacity: float = 0.45) -> np.ndarray:
    """The picture, uint8 [H, W, 3], under a coloured film for each mask bool [H, W]; the first ones on top."""
    out = image.copy()
    free = np.ones(image.shape[:2], np.bool_)
    for mask, colour in zip(masks, colours, strict=True):
        shown = mask & free
        out[shown] = (opacity * np.array(colour) + (1 - opacity) * image[shown]).astype(np.uint8)
        free &= ~mask
    return out


def areas(
    image: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    opacity: float = 0.45,
    skip: int | None = 0,
    objects: np.ndarray | None = None,
) -> np.ndarray:
    """Class areas as a coloured film with outlines, and a legend of the classes that occur below.

    Args:
      classes: int [H, W] of the image.
      names: of the classes.
      skip: the class that stays clear, usually the background; None for none.
      objects: int [H, W], the number of each pixel's object, outlined in place of the classes.
    """
    picture, factor = enlarge(as_rgb(image))
    outlined = classes if objects is None else objects
    present = [int(c) for c in np.unique(classes) if c != skip]
    table = np.array([colour_of(c) for c in range(max(int(classes.max(initial=0)), 0) + 1)], np.uint8)
    if factor > 1:
        classes, outlined = (values.repeat(factor, axis=0).repeat(factor, axis=1) for values in (classes, outlined))
    covered = np.isin(classes, present)
    out = picture.copy()
    film = opacity * table[classes[covered]] + (1 - opacity) * picture[covered]
    out[covered] = film.astype(np.uint8)
    edge = _outline(outlined, thick=max(1, round(text_size(picture.shape) / 12))) & covered
    out[edge] = table[classes[edge]]
    legend: list[tuple[str, Any]] = [(names[c] if c < len(names) else str(c), colour_of(c)) for c in present]
    if objects is not None:
        legend.append((f"{np.count_nonzero(np.unique(objects)):,} objects", None))
    return caption(out, legend or [("nothing found", None)])


def _outline(classes: np.ndarray, thick: int) -> np.ndarray:
    """Pixels within `thick` of another class, bool [H, W]."""
    import cv2

    values = classes.astype(np.uint16)
    square = np.ones((2 * thick + 1,) * 2, np.uint8)
    return cv2.dilate(values, square) != cv2.erode(values, square)


def caption(picture: np.ndarray, words: Sequence[tuple[str, Colour | None]]) -> np.ndarray:
    """The picture over lines of words, each on its colour; None writes it plain."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    size = text_size(picture.shape)
    font, line, gap = _font(size), round(size * 1.7), round(size * 0.5)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    rows: list[list[tuple[float, str, Colour | None]]] = [[]]
    x: float = gap
    for text, colour in ((one_line(text), colour) for text, colour in words):
        wide = pen.textlength(text, font=font) + gap
        if rows[-1] and x + wide > width:
            rows.append([])
            x = gap
        rows[-1].append((x, text, colour))
        x += wide + gap
    canvas = Image.new("RGB", (width, height + line * len(rows)), (24, 24, 24))
    canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        y = height + number * line
        for x, text, colour in row:
            if colour is not None:
                wide = pen.textlength(text, font=font)
                pen.rectangle((x - gap / 2, y + 2, x + wide + gap / 2, y + line - 3), fill=colour)
            pen.text((x, y + line / 2), text, fill=_ink(colour) if colour else (255, 255, 255), font=font, anchor="lm")
    return np.asarray(canvas)


def bars(image: np.ndarray, rows: Sequence[tuple[str, float, Colour]]) -> np.ndarray:
    """The picture over one bar a row: name, share 0..1, colour."""
    from PIL import Image, ImageDraw

    picture, _ = enlarge(as_rgb(image))
    height, width = picture.shape[:2]
    size = text_size(picture.shape)
    font, line = _font(size), round(size * 1.7)
    canvas = Image.new("RGB", (width, height + line * len(rows) + 2), (24, 24, 24))
    canvas.paste(Image.fromarray(np.ascontiguousarray(picture)), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, (name, share, colour) in enumerate(rows):
        y, text = height + 2 + number * line, f"{share:.1%}"
        room = width - pen.textlength("100.0%", font=font) - 2 * size
        pen.rectangle(
            (0, y + 1, max(round((width - 1) * min(share, 1.0)), 1), y + line - 3), fill=tuple(c // 2 for c in colour)
        )
        pen.text(
            (size / 2, y + line / 2), _fitted(pen, one_line(name), room, font), fill=(255, 255, 255), font=font, anchor="lm"
        )
        pen.text((width - size / 2, y + line / 2), text, fill=(255, 255, 255), font=font, anchor="rm")
    return np.asarray(canvas)


def _fitted(pen: Any, text: str, room: float, font: Any) -> str:
    """`text`, cut with an ellipsis where it is longer than `room` pixels."""
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text + "…"


def save(path: Any, image: np.ndarray) -> None:
    """Writes a picture; the format is that of the ending, JPEG at quality 90."""
    from PIL import Image

    options: dict[str, Any] = {"quality": 90} if str(path).lower().endswith((".jpg", ".jpeg")) else {}
    Image.fromarray(np.ascontiguousarray(image)).save(path, **options)
