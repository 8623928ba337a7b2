"""Reads a COCO instances json: every value that is used later is checked here, and named with its entry where it is wrong.

Format: https://cocodataset.org/#format-data. Keys that nothing uses are ignored.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, NoReturn

from imgrec_jax.data.annotations import Segmentation, refuse_shares
from imgrec_jax.data.images import read_regular

MOST_PIXELS = 2**31 - 1  # of a side
MOST_ID = 2**53  # evaluation writes ids into rows of float64
CROWD = {0: False, 1: True, "0": False, "1": True}  # False and True are 0 and 1
_NUMBERS = frozenset((int, float))  # and no bool, whose type is its own
_ABSENT = object()


class Image(NamedTuple):
    id: int
    file_name: str
    height: int
    width: int


class Category(NamedTuple):
    id: int
    name: str


class Object(NamedTuple):
    """id: the file's own where all have one, else the position in the list, from 1; bbox: x, y, width, height."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    crowd: bool
    area: float
    segmentation: Segmentation | None


class Instances(NamedTuple):
    """Images and categories in the order of their ids, objects as they come in the file."""

    images: list[Image]
    categories: list[Category]
    objects: list[Object]


class _Entry(NamedTuple):
    """One dict of a list, and what a message about it begins with."""

    file: Path
    kind: str  # "image", "annotation", "category"
    position: int  # from 1
    values: dict

    @property
    def where(self) -> str:
        own = self.values.get("id")
        named = type(own) is int or (isinstance(own, str) and own.isprintable())
        return f"{self.file}: {self.kind} {reprlib.repr(own) if named else f'at position {self.position} of the list'}"

    def refuse(self, key: str, expected: str, value: Any = _ABSENT) -> NoReturn:
        value = self.values.get(key, _ABSENT) if value is _ABSENT else value
        given = f"has no {key!r}" if value is _ABSENT else f"has {key}={reprlib.repr(value)}"
        raise ValueError(f"{self.where} {given}; expected {expected}; correct the file")

    def whole(self, key: str, least: int, most: int) -> int:
        value = self.values.get(key)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            self.refuse(key, f"a whole number from {least} to {most}" if least > 0 else "a whole number")
        return value

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            self.refuse(key, "a text that is not empty")
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which no file name can hold
            self.refuse(key, "text that UTF-8 can write")
        return value


def read(file: Path, *, allow_outside: bool = False) -> Instances:
    """The instances of a json file.

    allow_outside: image names may be absolute or lead out of their folder by `..`.

    Raises:
      FileNotFoundError: without the file.
      ValueError: for a file that is no such json, or an entry with a value that is missing or cannot be; names the file, the
        entry by its id or position, the key and what is expected.
    """
    data = read_regular(file, "the COCO instances json of this split")
    try:
        content = json.loads(data)  # finds out about a byte-order mark, too
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); was it copied as a whole?") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds a JSON {type(content).__name__}; expected a COCO instances file, a dict with images, annotations "
            "and categories (a list alone is a file of results)"
        )
    images = [_image(entry, allow_outside) for entry in _entries(file, content, "images", "image")]
    categories = [
        Category(entry.whole("id", -MOST_ID, MOST_ID), entry.text("name"))
        for entry in _entries(file, content, "categories", "category")
    ]
    if not images:
        raise ValueError(f"{file}: images is empty; expected one entry or more")
    _refuse_twice(file, "image id", [image.id for image in images])
    _refuse_twice(file, "category id", [category.id for category in categories])
    _refuse_twice(file, "category name", [category.name for category in categories])
    entries = _entries(file, content, "annotations", "annotation")
    own_ids = all(type(e.values.get("id")) is int and abs(e.values["id"]) <= MOST_ID for e in entries)
    sizes, known = {image.id: (image.height, image.width) for image in images}, {category.id for category in categories}
    objects = [_object(entry, sizes, known, entry.values["id"] if own_ids else entry.position) for entry in entries]
    refuse_shares((one.bbox for one in objects), str(file))
    return Instances(sorted(images), sorted(categories), objects)


def _entries(file: Path, content: dict, key: str, kind: str) -> list[_Entry]:
    if key not in content:
        raise ValueError(f"{file}: no {key!r}; expected a COCO instances file with images, annotations and categories")
    entries = content[key]
    if not isinstance(entries, list):
        raise ValueError(f"{file}: {key} is {reprlib.repr(entries)}; expected a list of dicts")
    for position, values in enumerate(entries, start=1):
        if not isinstance(values, dict):
            raise ValueError(f"{file}: {kind} at position {position} is {reprlib.repr(values)}; expected a dict")
    return [_Entry(file, kind, position, values) for position, values in enumerate(entries, start=1)]


def _refuse_twice(file: Path, what: str, values: list) -> None:
    if len(set(values)) < len(values):
        twice = next(value for value, count in Counter(values).items() if count > 1)
        raise ValueError(f"{file}: {what} {twice!r} occurs twice; expected each once; correct the file")


def _image(entry: _Entry, allow_outside: bool) -> Image:
    name = entry.text("file_name")
    if not allow_outside and leaves_folder(name):
        entry.refuse("file_name", "a path inside the folder of the images (data.options.allow_outside=True takes any)")
    return Image(
        entry.whole("id", -MOST_ID, MOST_ID),
        name,
        entry.whole("height", 1, MOST_PIXELS),
        entry.whole("width", 1, MOST_PIXELS),
    )


def place_of(folder: Path, name: str) -> Path:
    """Where a file_name lies; as Windows writes it, where nothing has that very name."""
    place = folder / name
    return folder / name.replace("\\", "/") if "\\" in name and not place.exists() else place


def leaves_folder(name: str) -> bool:
    """Whether a relative name, by its text, is absolute or leads out of the folder that it is looked up in."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).drive)


def _object(entry: _Entry, sizes: dict[int, tuple[int, int]], known: set[int], number: int) -> Object:
    values = entry.values
    image, category = entry.whole("image_id", -MOST_ID, MOST_ID), entry.whole("category_id", -MOST_ID, MOST_ID)
    if image not in sizes or category not in known:
        raise ValueError(
            f"{entry.where} refers to image {image} and category {category}; one of them is not listed in the file; correct it"
        )
    box = values.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not _finite(box):
        entry.refuse("bbox", "four finite numbers [x, y, width, height]")
    crowd = values.get("iscrowd", 0)
    if not isinstance(crowd, int | float | str) or crowd not in CROWD:
        entry.refuse("iscrowd", "0 or 1")
    area = values.get("area", box[2] * box[3])
    if "area" in values and not (type(area) in _NUMBERS and 0 <= area <= MOST_PIXELS**2):
        entry.refuse("area", "a finite number, 0 or more (without one, that of the box is taken)")
    segmentation = values.get("segmentation") or None
    if segmentation is not None and (problem := _segmentation_problem(segmentation, *sizes[image])):
        entry.refuse("segmentation", problem)
    return Object(number, image, category, box, CROWD[crowd], area, segmentation)


def _finite(numbers: list) -> bool:
    """Whether all of these (one or more) are numbers of pixels; a set of COCO's size has 50 million of them."""
    if not _NUMBERS.issuperset(map(type, numbers)) or not -MOST_PIXELS <= min(numbers) <= max(numbers) <= MOST_PIXELS:
        return False
    return math.isfinite(sum(numbers))  # min and max overlook NaN where it does not come first


def _segmentation_problem(segmentation: Any, height: int, width: int) -> str | None:
    """What is expected instead; None for polygons and run lengths that can be drawn."""
    if isinstance(segmentation, list):
        good = all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and _finite(p) for p in segmentation)
        return None if good else "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] of three points or more, in finite numbers"
    if not isinstance(segmentation, dict):
        return "a list of polygons, or run lengths {'size': [height, width], 'counts': ...}"
    if segmentation.get("size") != [height, width]:
        return f"run lengths whose size is the image's, [{height}, {width}]"
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    good = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts) and sum(counts) == height * width
    return None if good else f"run lengths that sum to {height} x {width} = {height * width} pixels"


def _unpacked(counts: str) -> list[int] | None:
    """COCO's compressed run lengths as numbers (cocoapi, common/maskApi.c, rleFrString); None where they cannot be."""
    numbers: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) and 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    return None if shift else numbers
