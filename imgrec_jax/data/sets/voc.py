"""Pascal VOC folders: JPEGImages, Annotations/*.xml and ImageSets/Main/<set>.txt.

VOC counts pixels from 1 and its xmax, ymax are the last pixel inside, so [xmin - 1, ymin - 1, xmax, ymax] is the box in
continuous pixels; a box of the whole 640 x 480 image is written 1, 1, 640, 480. Some tools write 0-based corners into VOC
files: `one_based=False` reads those as they are. (The stock `voc` sets of TFDS do not subtract the 1;
`annotated.open_prepared` does.)

`difficult` objects become crowd: neither required nor forbidden in training and evaluation, as VOC has it. Format:
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import contextlib
import re
import reprlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.annotated import DetectionSource, FolderSplit, open_folder, open_prepared
from imgrec_jax.data.annotations import from_images, refuse_shares
from imgrec_jax.data.files import IMAGES
from imgrec_jax.data.images import read_regular, read_text
from imgrec_jax.data.own.division import called_after, canonical_split, split_in, splits_of
from imgrec_jax.data.sets.coco import prepare
from imgrec_jax.data.source import Request, parse_split
from imgrec_jax.data.walking import is_hidden

__all__ = ["CLASS_NAMES", "prepare", "open_voc", "open_voc_folder", "read_folder", "read_stems", "split_lists", "trees_of"]

MOST_XML_BYTES = 64 * 2**20
MOST_PIXELS = 2**31 - 1  # of a side
_COLUMN = re.compile(r"\s+(-1|0|1)$")
_EXTENSION = re.compile(r"\.(xml|" + "|".join(suffix[1:] for suffix in IMAGES) + ")$", re.IGNORECASE)

# Folders of xml files and of images, as tools and sets other than the devkit have them; "." is one folder of both.
_LAYOUTS = (
    *((annotations, images) for annotations in ("annotations", "Annotations") for images in ("images", "Images", "JPEGImages")),
    ("annotations/xmls", "images"),
    (".", "."),
)

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def open_voc_folder(request: Request, *, class_names: tuple[str, ...] = CLASS_NAMES, one_based: bool = True) -> DetectionSource:
    """A Pascal VOC folder, read as it is; the split's name is that of a list in ImageSets/Main."""
    base = parse_split(request.split)[0]
    folder = read_folder(request.folder, base, class_names=class_names, one_based=one_based)
    return open_folder(f"{request.name} {base}", folder, request.targets, request.max_pixels).subset(request.split)


def open_voc(request: Request) -> DetectionSource:
    """A prepared TFDS set of VOC: "voc/2007", "voc/2012"."""
    return open_prepared(request.name, request.split, request.data_dir, targets=request.targets, max_pixels=request.max_pixels)


class Tree(NamedTuple):
    """A folder, and where in it the xml files and the images lie."""

    root: Path
    annotations: str = "Annotations"
    images: str = "JPEGImages"

    def files(self) -> list[Path]:
        """The xml files."""
        return [path for path in sorted((self.root / self.annotations).glob("*.xml")) if not is_hidden(path.name)]


def trees_of(root: Path) -> dict[str, Tree]:
    """{split, "" for all: its tree}, as LabelImg, Roboflow and the sets made with them lay it out, and not the devkit: at the
    root or in folders of splits; {} where there is none."""
    if (tree := _tree(root)) is not None:
        return {"": tree}
    below = {path.name: tree for path in sorted(root.iterdir()) if path.is_dir() and (tree := _tree(path)) is not None}
    splits = splits_of(below)
    told = all(splits.values()) and len(set(splits.values())) == len(splits)
    return {splits[name]: tree for name, tree in below.items()} if told else {}


def _tree(root: Path) -> Tree | None:
    """Of a folder that is laid out otherwise than the devkit."""
    for files_in, images in _LAYOUTS:
        tree = Tree(root, files_in, images)
        if (root / images).is_dir() and (files := tree.files()):
            with contextlib.suppress(ElementTree.ParseError, OSError, LookupError, ValueError):
                if ElementTree.parse(files[0]).getroot().find("size/width") is not None:
                    return tree
    return None


def read_folder(
    root: str | Path, image_set: str, class_names: tuple[str, ...] = CLASS_NAMES, *, one_based: bool = True
) -> FolderSplit:
    """Read the images that ImageSets/Main/<image_set>.txt lists, in its order; image ids are 1, 2, ... in that order.

    class_names: names of labels 1..K. An annotation's id is its position in its file, from 1.

    Raises:
      FileNotFoundError: when the list or an xml file is missing.
      ValueError: on a list or an xml that cannot be read, a size or box that is no number, or an object of another class; names
        the file and the object.
    """
    root = Path(root)
    list_file = root / "ImageSets" / "Main" / f"{image_set}.txt"
    if not list_file.exists():
        sets = sorted(path.stem for path in list_file.parent.glob("*.txt"))
        raise FileNotFoundError(f"{list_file} does not exist; there are {sets}")
    return read_stems(Tree(root), _stems(list_file, root / "Annotations"), class_names, one_based=one_based)


def read_stems(tree: Tree, stems: Sequence[str], class_names: tuple[str, ...], *, one_based: bool = True) -> FolderSplit:
    """The images of these names of xml files; as `read_folder`."""
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    folder, images = tree.root / tree.annotations, tree.root / tree.images
    rows = [_read_xml(folder / f"{stem}.xml", i, label_of, one_based) for i, stem in enumerate(stems, 1)]
    refuse_shares((box.tolist() for row in rows for box in row["boxes"]), str(folder))
    annotations = from_images(rows, class_names=tuple(class_names))
    paths = tuple(images / name for name in annotations.file_names)
    return FolderSplit(annotations, paths, str(folder))


def split_lists(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({split: the list of its images}, lines on lists that are passed over) of a folder of lists; {} where none is of a split.

    A list that has the very name of a split is that of it; lists of a class are passed over.

    Raises:
      ValueError: where two lists are of one split, and neither has its name.
    """
    files = [path for path in sorted(folder.glob("*.txt")) if not is_hidden(path.name)]
    named = {path: canonical_split(path.stem) or "" for path in files}
    by_name = set(named.values())
    for path in files:
        word = "" if named[path] else split_in(PurePath(path.stem))
        named[path] = named[path] or (word if word in by_name or (word and not _is_of_class(path)) else "")
    of = called_after(named, lambda path: path.stem)
    for split, paths in of.items():
        if len(paths) > 1:
            plain = f"{'val' if split == 'validation' else split}.txt"
            raise ValueError(
                f"{paths[0]} and {paths[1]} are both of split {split!r}; move one away, or call the one that is meant {plain}"
            )
    found = {split: paths[0] for split, paths in of.items()}
    both = next((path for path in files if re.sub(r"[\W_\d]+", "", path.stem) == "trainval"), None)
    if both is not None and not {"train", "validation"} & set(found):
        found["train"] = both  # as VOC2007 calls what is trained on
    unread = [path for path, split in named.items() if split and path != found[split] and not _is_of_class(path)]
    said = ", ".join(path.name for path in unread[:5])
    return found, [f"lists that are not read, beside those called after the splits: {said}"] if unread else []


def _is_of_class(path: Path) -> bool:
    """Whether every line of a list has a second column, that tells of one class."""
    text = read_regular(path, "a list of names").decode("utf-8", "replace")  # what is no text is told when it is read
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and all(_COLUMN.search(line.strip()) for line in lines)


def _stems(list_file: Path, folder: Path) -> list[str]:
    """Names of the xml files in `folder` that a list names, one a line.

    A per-class list has a second column, -1, 0 or 1; a name may have spaces, too, and a list extensions. What is there decides.

    Raises:
      FileNotFoundError: for a line without an xml file; names list and line.
      ValueError: for a list that is no text or names nothing.
    """
    text = read_text(list_file, "a list of names")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{list_file} is empty; expected a name a line")
    there = {path.stem for path in folder.glob("*.xml")}
    columns = all(_COLUMN.search(line) for _, line in lines)
    stems = []
    for number, line in lines:
        cut = _COLUMN.sub("", line)
        names = [cut, line] if columns else [line, cut]
        names += [_EXTENSION.sub("", name) for name in names]
        found = next((name for name in names if name in there), None)
        if found is None:
            raise FileNotFoundError(
                f"{list_file}, line {number}: {folder} has no xml file of {reprlib.repr(cut)}; put it there, or remove the line"
            )
        stems.append(found)
    return stems


def _read_xml(path: Path, image_id: int, label_of: dict[str, int], one_based: bool) -> dict:
    try:
        tree = ElementTree.fromstring(read_regular(path, "a Pascal VOC annotation", MOST_XML_BYTES))
        if tree.tag != "annotation":
            raise ValueError(f"its root is <{tree.tag}>; expected <annotation>")
        height, width = (_side(tree, f"size/{key}") for key in ("height", "width"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise ValueError(f"{path}: not a Pascal VOC annotation ({error}); correct the file") from error
    objects = [_object(path, n, entry, label_of) for n, entry in enumerate(tree.findall("object"), start=1)]
    boxes = np.array([box for box, _, _ in objects], np.float64).reshape(-1, 4)
    boxes[:, :2] -= one_based
    return {
        "image_id": image_id,
        # As in the devkit, the name of the xml counts: <filename> often went stale when files were renamed.
        "file_name": path.stem + (Path((tree.findtext("filename") or "").strip()).suffix or ".jpg"),
        "size": (height, width),
        "boxes": boxes,
        "labels": [label for _, label, _ in objects],
        "crowd": [difficult for _, _, difficult in objects],
        "ids": range(1, len(objects) + 1),
        "areas": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    }


def _object(path: Path, number: int, entry: ElementTree.Element, label_of: dict[str, int]) -> tuple[list[float], int, bool]:
    """(xmin, ymin, xmax, ymax), label, difficult; ValueError names file and object."""
    try:
        name = _text(entry, "name")
        if name not in label_of:
            raise ValueError(f"is a {name!r}; expected one of {sorted(label_of)} (data.options.class_names)")
        corners = [_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        difficult = (entry.findtext("difficult") or "0").strip() or "0"
        if difficult not in ("0", "1"):
            raise ValueError(f"has difficult={difficult!r}; expected 0 or 1")
    except ValueError as error:
        raise ValueError(f"{path}: object {number} {error}; correct the file") from error
    return corners, label_of[name], difficult == "1"


def _number(element: ElementTree.Element, path: str) -> float:
    text = _text(element, path)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= MOST_PIXELS:  # NaN is not
        raise ValueError(f"has {path}={reprlib.repr(text)}; expected a number of pixels")
    return value


def _side(tree: ElementTree.Element, path: str) -> int:
    value = _number(tree, path)
    if value < 1 or not value.is_integer():
        raise ValueError(f"has {path}={value:g}; expected the image's, a whole number of 1 or more")
    return int(value)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"has no <{path}>")
    return text.strip()
