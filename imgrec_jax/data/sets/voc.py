"""Pascal VOC folders: JPEGImages, Annotations/*.xml and ImageSets/Main/<set>.txt.

VOC counts pixels from 1 and its xmax, ymax are the last pixel inside, so [xmin - 1, ymin - 1, xmax, ymax] is the box in
continuous pixels; a box of the whole 640 x 480 image is written 1, 1, 640, 480. Some tools write 0-based corners into VOC
files: `one_based=False` reads those as they are. (The stock `voc` sets of TFDS do not subtract the 1;
`annotated.open_prepared` does.)

`difficult` objects become crowd: neither required nor forbidden in training and evaluation, as VOC has it. Format:
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from imgrec_jax.data.annotated import DetectionSource, FolderSplit, open_folder, open_prepared
from imgrec_jax.data.annotations import from_images
from imgrec_jax.data.sets.coco import prepare
from imgrec_jax.data.source import Request, parse_split

__all__ = ["CLASS_NAMES", "prepare", "open_voc", "open_voc_folder", "read_folder"]

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def open_voc_folder(request: Request, *, class_names: tuple[str, ...] = CLASS_NAMES, one_based: bool = True) -> DetectionSource:
    """A Pascal VOC folder, read as it is; the split's name is that of a list in ImageSets/Main."""
    base = parse_split(request.split)[0]
    folder = read_folder(request.folder, base, class_names=class_names, one_based=one_based)
    return open_folder(f"{request.name} {base}", folder, request.targets).subset(request.split)


def open_voc(request: Request) -> DetectionSource:
    """A prepared TFDS set of VOC: "voc/2007", "voc/2012"."""
    return open_prepared(request.name, request.split, request.data_dir, targets=request.targets)


def read_folder(
    root: str | Path, image_set: str, class_names: tuple[str, ...] = CLASS_NAMES, *, one_based: bool = True
) -> FolderSplit:
    """Read the images that ImageSets/Main/<image_set>.txt lists, in its order; image ids are 1, 2, ... in that order.

    class_names: names of labels 1..K. An annotation's id is its position in its file, from 1.

    Raises:
      FileNotFoundError: when the list or an xml file is missing.
      ValueError: on an xml that cannot be read or an object of another class; names the file and the object.
    """
    root = Path(root)
    list_file = root / "ImageSets" / "Main" / f"{image_set}.txt"
    if not list_file.exists():
        sets = sorted(path.stem for path in list_file.parent.glob("*.txt"))
        raise FileNotFoundError(f"{list_file} does not exist; there are {sets}")
    # a per-class list has a second column, 1 or -1
    stems = [line.split()[0] for line in list_file.read_text().splitlines() if line.strip()]
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    rows = [_read_xml(root / "Annotations" / f"{stem}.xml", i, label_of, one_based) for i, stem in enumerate(stems, 1)]
    annotations = from_images(rows, class_names=tuple(class_names))
    return FolderSplit(annotations, tuple(root / "JPEGImages" / name for name in annotations.file_names))


def _read_xml(path: Path, image_id: int, label_of: dict[str, int], one_based: bool) -> dict:
    try:
        tree = ElementTree.parse(path).getroot()
        height, width = (int(_text(tree, f"size/{key}")) for key in ("height", "width"))
        objects = tree.findall("object")
        names = [_text(entry, "name") for entry in objects]
        corners = [[float(_text(entry, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")] for entry in objects]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: not a Pascal VOC annotation ({error})") from error
    unknown = [(n, name) for n, name in enumerate(names, start=1) if name not in label_of]
    if unknown:
        n, name = unknown[0]
        raise ValueError(f"{path}: object {n} is a {name!r}; expected one of {sorted(label_of)}")
    boxes = np.array(corners, np.float64).reshape(-1, 4)
    boxes[:, :2] -= one_based
    return {
        "image_id": image_id,
        # As in the devkit, the name of the xml counts: <filename> often went stale when files were renamed.
        "file_name": path.stem + (Path(tree.findtext("filename", "").strip()).suffix or ".jpg"),
        "size": (height, width),
        "boxes": boxes,
        "labels": [label_of[name] for name in names],
        "crowd": [entry.findtext("difficult", "0").strip() == "1" for entry in objects],
        "ids": range(1, len(names) + 1),
        "areas": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    }


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> has no <{path}>")
    return text.strip()
