"""YOLO folders: images, and beside them a text file each of `class x y width height`, in shares of the image.

data.yaml names the classes and where the splits lie; without it `images/` and `labels/` are looked for, with the splits inside
or around them, and classes.txt. An empty text file, or none, means no object; a line of a polygon, `class x1 y1 x2 y2 ...`,
gives its box; what lies a little outside of 0..1 is cut, and counted. Format: https://docs.ultralytics.com/datasets/detect
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.data.files import IMAGES, folders
from imgrec_jax.data.images import read_regular
from imgrec_jax.data.own.division import canonical_split
from imgrec_jax.data.walking import walk

OUTSIDE = 0.05  # of the side: what is cut; more is a mistake
_MOST_BYTES = 2**26


class Labels(NamedTuple):
    """Of one image: boxes float64 [N, 4] xyxy in shares, classes int [N]; cut: how many were cut."""

    boxes: np.ndarray
    classes: np.ndarray
    cut: int


class Folder(NamedTuple):
    """splits: {"train", "validation", "test" or "": (image, its text file or None)}; class_names: () where nothing names
    them."""

    splits: dict[str, list[tuple[Path, Path | None]]]
    class_names: tuple[str, ...]


def find(root: Path, *, allow_outside: bool = False) -> Folder | None:
    """The YOLO folder at `root`; None where there is none.

    Raises:
      ValueError: for a data.yaml that cannot be one, or, unless allow_outside, names what lies elsewhere.
    """
    described = [path for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))) if _read_yaml(path) is not None]
    if described:
        content = _read_yaml(described[0])
        return _from_yaml(described[0], content, allow_outside) if content else None
    labels = [path for path in folders(root) if path.name == "labels"]
    if not labels:
        return None
    splits: dict[str, list] = {}
    for folder in labels:
        images = folder.parent / "images"
        for image in _images(images if images.is_dir() else folder.parent):
            parts = image.relative_to(root).parts[:-1]
            split = next((name for part in parts if (name := canonical_split(part))), "")
            splits.setdefault(split, []).append((image, _text_of(image)))
    names = next((root / name for name in ("classes.txt", "obj.names", "labels.txt") if (root / name).is_file()), None)
    text = read_regular(names, "names of classes", _MOST_BYTES).decode("utf-8-sig") if names else ""
    found = {split: sorted(pairs) for split, pairs in splits.items()}
    return Folder(found, tuple(line.strip() for line in text.splitlines() if line.strip()))


def _read_yaml(path: Path) -> dict[str, Any] | None:
    """A file with `names`; None for any other yaml."""
    import yaml

    try:
        content = yaml.safe_load(read_regular(path, "a YOLO data.yaml", _MOST_BYTES).decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}); correct the file") from error
    return content if isinstance(content, dict) and "names" in content else None


def _from_yaml(path: Path, content: dict[str, Any], allow_outside: bool) -> Folder:
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"{path}: names has the keys {sorted(names)}; expected 0 to {len(names) - 1}")
        names = [names[n] for n in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: names={names!r}; expected a list of classes")
    if "nc" in content and content["nc"] != len(names):
        raise ValueError(f"{path}: nc={content['nc']!r}, but names has {len(names)}; correct the file")
    base = path.parent / str(content.get("path") or "")
    splits: dict[str, list] = {}
    for key in ("train", "val", "test"):
        given = content.get(key)
        for entry in given if isinstance(given, list) else [given] if given else []:
            images = list(_listed(path, base, str(entry), allow_outside))
            splits.setdefault(canonical_split(key) or "", []).extend((image, _text_of(image)) for image in images)
    if not splits:
        raise ValueError(f"{path} has none of train, val, test; expected the folders of their images")
    return Folder(splits, tuple(map(str, names)))


def _listed(file: Path, base: Path, entry: str, allow_outside: bool) -> Iterator[Path]:
    """The images of a folder, or of a text file that lists them; a path from elsewhere is looked for beside the yaml."""
    clean = re.sub(r"^(\.\./|\./)+", "", entry)
    places = [base / entry, file.parent / entry, file.parent / clean, base / clean]
    there = [place for place in places if place.exists()]
    inside = [place for place in there if Path(os.path.normpath(place)).is_relative_to(os.path.normpath(file.parent))]
    if not there:
        raise FileNotFoundError(f"{file}: {entry} is neither at {places[0]} nor at {places[2]}; correct the file")
    if not inside and not allow_outside:
        raise ValueError(
            f"{file}: {entry} is at {there[0]}, outside of this folder; correct the file, or take it with "
            "--config.data.options=\"{'allow_outside': True}\""
        )
    found = (inside or there)[0]
    if found.is_dir():
        yield from _images(found)
        return
    for line in read_regular(found, "a list of images", _MOST_BYTES).decode("utf-8-sig").splitlines():
        if line.strip():
            yield found.parent / line.strip()


def _images(folder: Path) -> list[Path]:
    return [folder / name for name in walk(folder) if name.lower().endswith(IMAGES)]


def _text_of(image: Path) -> Path | None:
    """labels/.../NAME.txt of images/.../NAME.jpg, or the text file beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[:-1][::-1].index("images")
        there = Path(*parts[:at], "labels", *parts[at + 1 : -1], f"{image.stem}.txt")
        if there.is_file():
            return there
    beside = image.with_suffix(".txt")
    return beside if beside.is_file() else None


def read_labels(path: Path, class_names: Sequence[str] = ()) -> Labels:
    """The objects of one text file; class_names: () takes any class.

    Raises:
      ValueError: naming file and line, for what is no number, a class that does not exist, or lies far outside of the image.
    """
    boxes, classes, cut = [], [], 0
    text = read_regular(path, "a YOLO label file", _MOST_BYTES).decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = [float(word) for word in line.split()]
        except ValueError as error:
            raise ValueError(f"{where}: {line.strip()[:60]!r} is no line of numbers, `class x y width height`") from error
        label = values[0]
        if not np.isfinite(values).all() or label != int(label) or label < 0 or (class_names and label >= len(class_names)):
            known = f"0 to {len(class_names) - 1}" if class_names else "a whole number from 0"
            raise ValueError(f"{where}: class {values[0]:g}; expected {known}, and finite numbers")
        if len(values) == 5:
            x, y, w, h = values[1:]
            if w < 0 or h < 0:
                raise ValueError(f"{where}: width {w:g}, height {h:g}; expected 0 or more")
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        elif len(values) >= 7 and len(values) % 2:
            box = [min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2])]
        else:
            raise ValueError(f"{where}: {len(values)} numbers; expected 5, or a class and three points or more")
        if min(box) < -OUTSIDE or max(box) > 1 + OUTSIDE:
            raise ValueError(f"{where}: a box {np.round(box, 3).tolist()} outside of 0..1; are these pixels? expected shares")
        cut += min(box) < -1e-6 or max(box) > 1 + 1e-6
        boxes.append(box)
        classes.append(int(label))
    return Labels(np.clip(np.array(boxes, np.float64).reshape(-1, 4), 0, 1), np.array(classes, np.int64), cut)
