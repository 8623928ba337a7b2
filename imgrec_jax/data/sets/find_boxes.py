"""Where boxes lie in a folder, and in which format: COCO json, Pascal VOC, YOLO's text files, or a mask for each object.

Shape letters: N boxes.
"""

from __future__ import annotations

import functools
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.annotated import FolderSplit
from imgrec_jax.data.annotations import from_images
from imgrec_jax.data.files import folders, list_files, only_folder, stamp
from imgrec_jax.data.images import MAX_PIXELS, file_header, read_regular
from imgrec_jax.data.own import index as indices
from imgrec_jax.data.own.division import called_after, split_in, without_split
from imgrec_jax.data.own.found import sample, shown
from imgrec_jax.data.own.pictures import NOTES
from imgrec_jax.data.own.stores import folder_store
from imgrec_jax.data.sets import coco, coco_json, mask_folder, mask_pairs, voc, yolo
from imgrec_jax.data.sets.find_masks import without_bare_tests
from imgrec_jax.data.walking import is_hidden, walk

_SAMPLE = 60  # names of a json that are looked for
_NO_OBJECTS = "has images without 'annotations'"
_OF_COCO = re.compile(r"coco|instances", re.IGNORECASE)
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')  # of a file that is cut off
TURNED = 1 << NOTES.index("turned by its EXIF tag")


class Given(NamedTuple):
    """format: as it is called; splits: {"train", ... or "" where none is given: annotated images}; notes: lines to print."""

    format: str
    splits: dict[str, FolderSplit]
    notes: list[str]


class Ways(NamedTuple):
    """How a folder is read; see `survey_boxes`."""

    allow_outside: bool = False
    one_based: bool | None = None
    depth: int | None = None


def find(root: Path, max_pixels: int = MAX_PIXELS, ways: Ways = Ways()) -> Given:  # noqa: B008
    """What format a folder is of, and its annotations.

    Raises:
      FileNotFoundError, ValueError: where it is of none, with what was looked for.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"config.data.manual_dir={root} is no folder; give the one with your images and annotations")
    while (inner := only_folder(root)) is not None:
        root = inner
    for look in (
        functools.partial(_find_voc, one_based=ways.one_based, devkit=True),
        functools.partial(_find_yolo, max_pixels=max_pixels, allow_outside=ways.allow_outside),
        functools.partial(_find_coco, allow_outside=ways.allow_outside),
        functools.partial(_find_voc, one_based=ways.one_based, devkit=False),  # may lie beside one of these
        functools.partial(_find_masks, max_pixels=max_pixels),  # last: the others may have folders of that name beside theirs
    ):
        if (found := look(root)) is not None:
            return found
    there = sorted(path.name for path in root.iterdir() if not is_hidden(path.name))[:10]
    raise ValueError(
        f"{root} holds {there}; expected Pascal VOC (Annotations/*.xml and JPEGImages/ or images/), YOLO (data.yaml, or "
        "images/ and labels/ with text files), a COCO json with images, annotations and categories, or NAME/images/ and "
        "NAME/masks/ with a file for each object"
    )


def _find_voc(root: Path, one_based: bool | None, devkit: bool) -> Given | None:
    """devkit: only as the devkit has it; False: only otherwise."""
    trees = {"": voc.Tree(root)} if devkit else voc.trees_of(root)
    of = {split: tree.files() for split, tree in trees.items()}
    files = [path for paths in of.values() for path in paths]
    if not files or (devkit and not (root / "JPEGImages").is_dir() and voc.trees_of(root)):
        return None
    names: set[str] = set()
    from_zero: list[Path] = []
    for path in files:
        try:
            objects = list(ElementTree.parse(path).getroot().iter("object"))
            names |= {(entry.findtext("name") or "").strip() for entry in objects}
            if any(float(entry.findtext(f"bndbox/{key}") or 1) < 1 for entry in objects for key in ("xmin", "ymin")):
                from_zero.append(path)
        except (ElementTree.ParseError, OSError, LookupError, ValueError):
            continue  # said by `voc.read_folder`, with all it has to say
    notes = []
    if one_based is None and from_zero:
        notes.append(
            f"{len(from_zero):,} of {len(files):,} files have boxes that begin at 0, e.g. {from_zero[0].name}: pixels are "
            "counted from 0 (data.options.one_based says otherwise)"
        )
    base = not from_zero if one_based is None else one_based
    class_names = tuple(sorted(names - {""}))
    lists, unread = voc.split_lists(root / "ImageSets" / "Main")
    notes += unread
    if lists and devkit:
        splits = {split: voc.read_folder(root, path.stem, class_names, one_based=base) for split, path in lists.items()}
        return Given("Pascal VOC", splits, notes)
    read = {split: [path.stem for path in paths] for split, paths in of.items()}
    splits = {split: voc.read_stems(trees[split], stems, class_names, one_based=base) for split, stems in read.items()}
    return Given("Pascal VOC", splits, notes)


def _find_masks(root: Path, max_pixels: int) -> Given | None:
    """A folder for each image, with `images` and `masks` in it; the folders above may name splits."""
    holders = {path.parent for path in folders(root) if path.name == "masks" and (path.parent / "images").is_dir()}
    if not holders or root in holders:  # images/ and masks/ at the top are maps of classes
        return None
    files, left_out = without_bare_tests(list_files(root, max_pixels), "images", "masks")
    every = mask_pairs.pair(files, kind="instances")
    given, notes = mask_folder.given_splits(every, "instances")
    notes = [*left_out, *notes]
    entries: dict[str, list[mask_pairs.Entry]] = {}
    for entry in every:
        entries.setdefault(given[entry.name], []).append(entry)
    splits = {}
    for split, of_split in entries.items():
        for entry in of_split:
            mask_folder.check_entry(files, entry, "instances", max_pixels)
        rows = [mask_folder.objects_of(files, entry, "instances", n, max_pixels) for n, entry in enumerate(of_split, start=1)]
        table = from_images(rows, class_names=mask_folder.CLASS_NAMES[1:])
        splits[split] = FolderSplit(table, tuple(root / entry.image for entry in of_split), str(root))
    if not any(len(split.annotations.boxes) for split in splits.values()):
        raise ValueError(f"{root}: none of its masks has a pixel that is not 0; expected a file for each object, drawn in it")
    return Given("a mask file for each object", splits, notes)


def _find_yolo(root: Path, max_pixels: int, allow_outside: bool) -> Given | None:
    found = yolo.find(root, allow_outside=allow_outside)
    if found is None:
        return None
    names, notes, cut, absent = found.class_names, list(found.notes), 0, 0
    read: dict[str, list[tuple[Path, yolo.Labels]]] = {}
    for split, pairs in found.splits.items():
        for image, text in pairs:
            none = yolo.Labels(np.zeros((0, 4)), np.zeros(0, np.int64), 0)
            labels = yolo.read_labels(text, names, found.key_points) if text else none
            cut, absent = cut + labels.cut, absent + (text is None)
            read.setdefault(split, []).append((image, labels))
    if not names:
        most = max((int(labels.classes.max(initial=-1)) for rows in read.values() for _, labels in rows), default=-1)
        names = tuple(map(str, range(most + 1)))
        notes.append("nothing names the classes (data.yaml, classes.txt): they are called by their numbers")
    if cut:
        notes.append(f"{cut:,} boxes reached a little out of their image, and were cut")
    if absent:
        notes.append(f"{absent:,} images have no text file: taken as without objects")
    store = folder_store(root, max_pixels, {})
    splits = {}
    for split, rows in read.items():
        paths = [image for image, _ in rows]
        store.stamps.update({str(path): stamp(path) for path in paths})
        index = indices.make(store, [str(path) for path in paths], None, max_pixels)
        sizes = index.table[["height", "width"]].tolist()
        for n in np.flatnonzero((index.table["notes"] & TURNED) > 0).tolist():  # the index tells those of upright images
            sizes[n] = list(file_header(paths[n], max_pixels)[:2])
        images = [_row(n, root, *row, size) for n, (row, size) in enumerate(zip(rows, sizes, strict=True), start=1)]
        splits[split] = FolderSplit(from_images(images, class_names=names), tuple(paths), str(root))
    return Given("YOLO", splits, notes)


def _row(number: int, root: Path, image: Path, labels: yolo.Labels, size: tuple[int, int]) -> dict:
    boxes = labels.boxes * [size[1], size[0], size[1], size[0]]
    return {
        "image_id": number,
        "file_name": str(image.relative_to(root)) if image.is_relative_to(root) else str(image),
        "size": size,
        "boxes": boxes,
        "labels": labels.classes + 1,
        "crowd": np.zeros(len(boxes), np.bool_),
        "ids": np.arange(1, len(boxes) + 1),
        "areas": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
    }


def _find_coco(root: Path, allow_outside: bool) -> Given | None:
    files = [root / name for name in walk(root) if name.lower().endswith(".json")]
    split_of = {path: split_in(path.relative_to(root).with_suffix("")) for path in files}
    looked = {path: _look(path) for path in files}
    good = [path for path in files if looked[path].problem is None]
    plain = {path: split for path, split in split_of.items() if path in good and not split}
    of = {"": list(plain)} if plain else {}
    of |= called_after({path: split_of[path] for path in good}, lambda path: _stem(path).rstrip("0123456789"))
    found: dict[str, Path] = {}
    notes = []
    for split, paths in of.items():
        paths = [path for path in paths if path.stem.startswith("instances")] or paths  # COCO's, beside its key points
        if len(paths) > 1:
            raise ValueError(f"{root}: both {paths[0]} and {paths[1]} are of split {split or 'unknown'!r}; move one away")
        found[split] = paths[0]
    if unread := [path for path in good if path not in found.values() and not path.stem.startswith("person_keypoints")]:
        notes.append(f"not read, beside the json of its split: {shown([str(path.relative_to(root)) for path in unread])}")
    alike = {without_split(str(path.relative_to(root))) for path in found.values()}
    for path, (problem, is_coco) in looked.items():
        if not problem:
            continue
        split = split_of[path]  # captions, for one, lie beside the instances of their split
        meant = is_coco or _OF_COCO.search(path.name) or without_split(str(path.relative_to(root))) in alike
        if problem == _NO_OBJECTS and split == "test" and found:
            notes.append(f"{path} {problem}: test is left out")
        elif meant and ((split and split not in found) if found else True):
            raise ValueError(
                f"{path} looks like the annotations of {split or 'the images'}, but {problem}; correct it, or move it away"
            )
        elif found and split and split not in found:
            notes.append(f"{path} {problem}: passed over")
    if not found:
        return None
    if "" in found and len(found) > 1:
        raise ValueError(
            f"{root}: {found['']} names no split, beside {sorted(map(str, found.values()))}; move it away, or rename it"
        )
    read = {split: (_images_of(root, path, split), path) for split, path in found.items()}
    return Given("COCO", {split: coco.read_folder(*pair, allow_outside=allow_outside) for split, pair in read.items()}, notes)


class _Looked(NamedTuple):
    """problem: why a json holds no instances; "" for what is something else, None for instances; is_coco: whether it holds what
    those alone do, boxes and their classes, as far as it can be read."""

    problem: str | None
    is_coco: bool = False


def _look(path: Path) -> _Looked:
    try:
        data = read_regular(path, "a COCO json")
    except (OSError, ValueError) as error:
        return _Looked(f"cannot be read ({error})")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        return _Looked(f"cannot be read ({error if data else '0 bytes'})", bool(_LISTS.search(data)))
    if not isinstance(content, dict) or not {"images", "annotations"} & content.keys():
        return _Looked("")
    lacking = [key for key in ("images", "annotations", "categories") if key not in content]
    if not lacking:
        return _Looked(None)
    objects = content.get("annotations")
    first = objects[0] if isinstance(objects, list) and objects else None
    is_coco = lacking == ["annotations"] or (isinstance(first, dict) and bool({"bbox", "category_id"} & first.keys()))
    return _Looked(_NO_OBJECTS if lacking == ["annotations"] else f"has no {' and no '.join(map(repr, lacking))}", is_coco)


def _stem(file: Path) -> str:
    """A json's name without what its kind is called."""
    return re.sub(r"^(instances_|annotations_|_annotations)|\.coco$|_annotations$", "", file.stem)


def _images_of(root: Path, file: Path, split: str) -> Path:
    """The folder from which a json of a split names its images: the one that holds them.

    Raises:
      ValueError: where several folders of no split, or of other ones, do.
    """
    images = json.loads(read_regular(file, "a COCO json"))["images"]
    images = images if isinstance(images, list) else []  # which `coco.read_folder` refuses
    every = [str(image["file_name"]) for image in images if isinstance(image, dict) and "file_name" in image]
    names = [every[n] for n in sample(len(every), _SAMPLE).tolist()]

    def holds(place: Path) -> bool:
        return bool(names) and all(coco_json.place_of(place, name).is_file() for name in names)

    stem = _stem(file)
    places = [file.parent, file.parent / stem, root / stem, root / "images" / stem]
    below = folders(root)
    places += [path for path in below if split and split_in(path.relative_to(root)) == split]
    places += [root / "images", root]
    if (found := next(filter(holds, places), None)) is not None:
        return found
    others = list(filter(holds, below))
    if len(others) > 1:
        raise ValueError(
            f"{file}: its images, e.g. {names[0]}, are in {', '.join(map(str, others[:3]))}, and no name tells which folder is "
            f"meant; call one after the json's split ({split or 'train, val or test'}), or write it into file_name"
        )
    return others[0] if others else places[0]
