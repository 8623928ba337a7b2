"""YOLO folders: images, and beside them a text file each of `class x y width height`, in shares of the image.

data.yaml names the classes and where the splits lie; without it `images/` and `labels/` are looked for, with the splits inside
or around them, and classes.txt. An empty text file, or none, means no object; a line of a polygon, `class x1 y1 x2 y2 ...`,
gives its box, and where data.yaml has a `kpt_shape`, the key points behind a box are passed over; what lies a little outside of
0..1 is cut, and counted. Format: https://docs.ultralytics.com/datasets/detect
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.data.files import IMAGES, folders
from imgrec_jax.data.images import read_regular, read_text
from imgrec_jax.data.own.division import called_after, canonical_split, split_in, splits_in
from imgrec_jax.data.walking import is_hidden, walk

OUTSIDE = 0.05  # of the side: what is cut; more is a mistake
_MOST_BYTES = 2**26
_NAMES = re.compile(rb"^\s*['\"]?names['\"]?\s*:", re.MULTILINE)
_CALLED = ("data", "dataset")  # what the file that describes a folder is called; the first counts before the others
_NO_LABELS = ("classes", "labels", "notes", "predefined_classes", "readme")  # text files that tools leave beside the labels


class Labels(NamedTuple):
    """Of one image: boxes float64 [N, 4] xyxy in shares, classes int [N]; cut: how many were cut."""

    boxes: np.ndarray
    classes: np.ndarray
    cut: int


class Folder(NamedTuple):
    """splits: {"train", "validation", "test" or "": (image, its text file or None)}; class_names: () where nothing names
    them; notes: lines to print; key_points: numbers of them behind each box."""

    splits: dict[str, list[tuple[Path, Path | None]]]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    key_points: int = 0


def find(root: Path, *, allow_outside: bool = False) -> Folder | None:
    """The YOLO folder at `root`; None where there is none.

    Raises:
      ValueError: for a data.yaml that cannot be one, or, unless allow_outside, names what lies elsewhere; for two of them.
    """
    if (chosen := _the_yaml(root)) is not None:
        path, content, passed = chosen
        described = _from_yaml(path, content, allow_outside)
        return described._replace(notes=(*passed, *described.notes))
    texts = {root / name for name in walk(root) if _is_text_of_labels(name)}
    if not texts:
        return None
    images: list[Path] = []
    for folder in folders(root):
        if folder.name == "labels" and any(text.is_relative_to(folder) for text in texts):
            beside = folder.parent / "images"
            images += _images(beside if beside.is_dir() else folder.parent)
    split_of, words = splits_in({image.relative_to(root).parent.parts for image in images})
    splits: dict[str, list] = {}
    for image in images:
        splits.setdefault(split_of[image.relative_to(root).parent.parts], []).append((image, _text_of(image)))
    text = _text_of_classes(root, texts)
    found = {split: sorted(pairs) for split, pairs in splits.items()}
    unclaimed = sorted(texts - {text for pairs in found.values() for _, text in pairs if text})
    kept, notes = _annotated(root, found, unclaimed)
    return Folder(kept, tuple(line.strip() for line in text.splitlines() if line.strip()), (*words, *notes))


def _text_of_classes(root: Path, texts: Collection[Path]) -> str:
    """What names the classes, a line each: at the top, or beside the text files of labels; "" where nothing does.

    Raises:
      ValueError: where two files of folders of labels differ, and none goes on where another ends, as LabelImg writes them.
    """
    top = [path for name in ("classes.txt", "obj.names", "labels.txt") if (path := root / name).is_file()][:1]
    beside = [path for folder in sorted({text.parent for text in texts}) if (path := folder / "classes.txt").is_file()]
    found = {path: read_text(path, "names of classes", _MOST_BYTES) for path in top or beside}
    longest = max(found, key=lambda path: len(found[path].split()), default=root)
    for path, text in found.items():
        if (names := text.split()) != found[longest].split()[: len(names)]:
            raise ValueError(f"{path} and {longest} name the classes differently; keep one, as {root / 'classes.txt'}")
    return found.get(longest, "")


def _the_yaml(root: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """(the file that says what lies at `root`, its content, lines to print on others); None where no yaml names classes.

    Raises:
      ValueError: where two of them may be it and say different things, or the one that is meant cannot be read.
    """
    named: dict[Path, dict[str, Any]] = {}
    faults: dict[Path, ValueError] = {}
    for path in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        try:
            if not is_hidden(path.name) and (content := _read_yaml(path)) is not None:
                named[path] = content
        except ValueError as error:
            faults[path] = error
    among = [path for path, content in named.items() if _names_splits(content)] or list(named)
    if faults and (not among or min(map(_rank, faults)) < min(map(_rank, among))):
        raise faults[min(faults, key=_rank)]
    if not among:
        return None
    first, *others = [path for path in among if _rank(path) == min(map(_rank, among))]
    if different := [path for path in others if _said(named[path]) != _said(named[first])]:
        what = "classes and splits" if _names_splits(named[first]) else "classes"
        advice = "" if _rank(first) < len(_CALLED) else ", or call it data.yaml"
        raise ValueError(f"{root} has {first.name} and {different[0].name}, which name {what} differently; keep one{advice}")
    passed = [path for path in named if _said(named[path]) != _said(named[first])] + list(faults)
    return first, named[first], [f"{path.name} is passed over beside {first.name}" for path in passed]


def _rank(path: Path) -> int:
    """0 for the name that counts before all others."""
    return _CALLED.index(path.stem.lower()) if path.stem.lower() in _CALLED else len(_CALLED)


def _names_splits(content: dict[str, Any]) -> bool:
    return any(canonical_split(str(key)) and isinstance(value, str | list) and value for key, value in content.items())


def _said(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its names as a list, however they are written."""
    names = content["names"]
    if isinstance(names, dict):
        names = [str(names[key]) for key in sorted(names, key=lambda key: (len(str(key)), str(key)))]
    return {**content, "names": list(map(str, names)) if isinstance(names, list) else names}


def _is_text_of_labels(name: str) -> bool:
    """Of a path from the root: a text file below a folder `labels` that is none of those that tools leave there."""
    parts = name.split("/")
    stem, _, suffix = parts[-1].rpartition(".")
    return "labels" in parts[:-1] and suffix.lower() == "txt" and stem.lower() not in _NO_LABELS


def _annotated(root: Path, splits: dict[str, list], unclaimed: Sequence[Path]) -> tuple[dict[str, list], tuple[str, ...]]:
    """(the splits that somebody annotated, lines to print): test images alone may come without text files.

    Raises:
      ValueError: where no image of a split has a text file.
    """
    notes, kept = [], {}
    for split, pairs in splits.items():
        beside = split == "" and len(splits) > 1  # whoever reads them says that they are of no split
        if not pairs or beside or any(text for _, text in pairs):
            kept[split] = pairs
        elif split == "test" and not unclaimed and len(splits) > 1:
            notes.append(f"none of the {len(pairs):,} images of test has a text file: left out")
        else:
            alone = f"; text files without an image: {', '.join(str(p.relative_to(root)) for p in unclaimed[:3])}"
            image = pairs[0][0]
            absent = "" if image.exists() else ", which is not there"
            raise ValueError(
                f"{root}: none of the {len(pairs):,} images{f' of {split}' if split else ''} has a text file, e.g. "
                f"{image}{absent}: expected {_place_of(image)}{alone if unclaimed else ''}; rename or move one or the other"
            )
    if unclaimed and kept:
        notes.append(f"{len(unclaimed):,} text files belong to no image, e.g. {unclaimed[0].relative_to(root)}: passed over")
    return kept, tuple(notes)


def _read_yaml(path: Path) -> dict[str, Any] | None:
    """A file with `names`; None for any other yaml, of which nothing needs to be read."""
    import yaml

    data = read_regular(path, "a YOLO data.yaml", _MOST_BYTES)
    try:
        content = yaml.safe_load(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if not _NAMES.search(data.replace(b"\0", b"")):  # the zeros are UTF-16's
            return None
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}); correct the file") from error
    return content if isinstance(content, dict) and "names" in content else None


def _from_yaml(path: Path, content: dict[str, Any], allow_outside: bool) -> Folder:
    names = content["names"]
    if isinstance(names, dict):
        numbered = {int(key) if str(key).isdecimal() else key: name for key, name in names.items()}  # '1' is 1
        if set(numbered) != set(range(len(names))):
            raise ValueError(f"{path}: names has the keys {list(names)}; expected 0 to {len(names) - 1}")
        names = [numbered[n] for n in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: names={names!r}; expected a list of classes")
    if "nc" in content and content["nc"] != len(names):
        raise ValueError(f"{path}: nc={content['nc']!r}, but names has {len(names)}; correct the file")
    base = path.parent / str(content.get("path") or "")
    splits: dict[str, list] = {}
    keys, words = _places(path, content, base)
    for split, given in keys.items():
        for entry in given if isinstance(given, list) else [given]:
            images = list(_listed(path, base, str(entry), allow_outside))
            splits.setdefault(split, []).extend((image, _text_of(image)) for image in images)
    if not splits:
        raise ValueError(f"{path} has none of train, val, test; expected the folders of their images")
    kept, notes = _annotated(path.parent, splits, ())
    return Folder(kept, tuple(map(str, names)), (*words, *notes), _key_points(path, content.get("kpt_shape")))


def _places(path: Path, content: dict[str, Any], base: Path) -> tuple[dict[str, Any], list[str]]:
    """({split: where its images are}, lines on keys that are passed over).

    Raises:
      ValueError: for two keys of one split, and one that names a place, and a split that it is not called after.
    """
    given = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, str | list) and value}
    named = {key: canonical_split(key) or split_in(PurePath(key)) for key in given}
    keys = called_after(named, str)
    for split, mine in list(keys.items()):
        if not canonical_split(mine[0]):  # a note, or a place
            places = [key for key in mine if _is_place(path, base, given[key])]
            if places:
                raise ValueError(
                    f"{path} has a key {places[0]!r}; expected train, val and test, each once; rename or remove it"
                )
            del keys[split]
        elif len(mine) > 1:
            raise ValueError(f"{path} has a key {mine[1]!r} beside {mine[0]!r}; expected train, val and test, each once")
    taken = {split: key for split, (key,) in keys.items()}
    notes = [
        f"{path.name}: {key!r} is passed over{f' beside {taken[split]!r}' if split in taken else ''}: no key of a split"
        for key, split in named.items()
        if split and key not in taken.values()
    ]
    return {split: given[key] for split, key in taken.items()}, notes


def _is_place(file: Path, base: Path, given: Any) -> bool:
    """Whether a file or folder is where a key says."""
    entries = given if isinstance(given, list) else [given]
    try:
        return any(place.exists() for entry in entries for place in _elsewhere(file, base, str(entry)))
    except OSError:  # a note is longer than a name
        return False


def _elsewhere(file: Path, base: Path, entry: str) -> list[Path]:
    """Where an entry of a data.yaml may lie: at its place, or, for one of another machine, beside the yaml."""
    clean = re.sub(r"^(\.\./|\./)+", "", entry)
    return [base / entry, file.parent / entry, file.parent / clean, base / clean]


def _key_points(path: Path, shape: Any) -> int:
    """Numbers behind each box: K points of x, y and perhaps visibility."""
    if shape is None:
        return 0
    numbers = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
    if not numbers or shape[1] not in (2, 3):
        raise ValueError(f"{path}: kpt_shape={shape!r}; expected [points, 2 or 3]; correct the file")
    return shape[0] * shape[1]


def _listed(file: Path, base: Path, entry: str, allow_outside: bool) -> Iterator[Path]:
    """The images of a folder, or of a text file that lists them; a path from elsewhere is looked for beside the yaml."""
    places = _elsewhere(file, base, entry)
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
    for line in read_text(found, "a list of images", _MOST_BYTES).splitlines():
        if line.strip():
            image = _named_in(found.parent, line.strip())
            if not allow_outside and not any(_inside(image, folder) for folder in (file.parent, base)):
                raise ValueError(
                    f"{found}: {line.strip()} lies outside of {file.parent}; correct the file, or take it with "
                    "--config.data.options=\"{'allow_outside': True}\""
                )
            yield image


def _named_in(folder: Path, text: str) -> Path:
    """The image that a line of a list names; of one that was written elsewhere, by what of its path lies here."""
    parts = PurePath(text.replace("\\", "/")).parts
    places = [folder / text, *(folder.joinpath(*parts[n:]) for n in range(len(parts)))]
    return next((place for place in places if place.exists()), places[0])


def _inside(path: Path, folder: Path) -> bool:
    """By their texts: links are followed wherever they lead."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _images(folder: Path) -> list[Path]:
    return [folder / name for name in walk(folder) if name.lower().endswith(IMAGES)]


def _text_of(image: Path) -> Path | None:
    """labels/.../NAME.txt of images/.../NAME.jpg, or the text file beside it."""
    places = (_place_of(image), image.with_suffix(".txt"))
    return next((path for place in places for path in (place, place.with_suffix(".TXT")) if path.is_file()), None)


def _place_of(image: Path) -> Path:
    """Where the text file of an image is expected."""
    parts = list(image.parts)
    if "images" not in parts[:-1]:
        return image.with_suffix(".txt")
    at = len(parts) - 2 - parts[:-1][::-1].index("images")
    return Path(*parts[:at], "labels", *parts[at + 1 : -1], f"{image.stem}.txt")


def read_labels(path: Path, class_names: Sequence[str] = (), key_points: int = 0) -> Labels:
    """The objects of one text file; class_names: () takes any class; key_points: numbers of them behind each box.

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
        if len(values) == 5 or (key_points and len(values) == 5 + key_points):
            x, y, w, h = values[1:5]
            if w < 0 or h < 0:
                raise ValueError(f"{where}: width {w:g}, height {h:g}; expected 0 or more")
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        elif len(values) >= 7 and len(values) % 2 and not key_points:
            box = [min(values[1::2]), min(values[2::2]), max(values[1::2]), max(values[2::2])]
        else:
            more = f"{5 + key_points}: kpt_shape has {key_points}" if key_points else "a class and three points or more"
            raise ValueError(f"{where}: {len(values)} numbers; expected 5, or {more}")
        if min(box) < -OUTSIDE or max(box) > 1 + OUTSIDE:
            raise ValueError(f"{where}: a box {np.round(box, 3).tolist()} outside of 0..1; are these pixels? expected shares")
        cut += min(box) < -1e-6 or max(box) > 1 + 1e-6
        boxes.append(box)
        classes.append(int(label))
    return Labels(np.clip(np.array(boxes, np.float64).reshape(-1, 4), 0, 1), np.array(classes, np.int64), cut)
