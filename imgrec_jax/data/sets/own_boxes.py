"""Own images with boxes: a folder with COCO json, Pascal VOC's three folders, YOLO's text files or a mask for each object.

Classes, splits and where the images lie are found; splits that are not given are cut, seeded, and with what must stay together
(groups, files of equal content) in one. Sizes, canvases and anchors that fit the objects are proposed for a small detector.

Shape letters: N boxes, K classes.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.data.annotated import DetectionSource, FolderSplit, open_folder
from imgrec_jax.data.annotations import Annotations, from_images
from imgrec_jax.data.files import folders, list_files, stamp
from imgrec_jax.data.images import MAX_PIXELS, decode_image, file_header, read_image_file, read_regular
from imgrec_jax.data.ops.canvases import canvas_of, default_canvases, resized_size, round_up
from imgrec_jax.data.own import index as indices
from imgrec_jax.data.own.division import FRACTIONS, SPLITS, canonical_split, connected, divide, group_finder, held_out, split_in
from imgrec_jax.data.own.found import (
    Known,
    Problem,
    counts_by_class,
    fold_lines,
    group_lines,
    leak_lines,
    sample,
    settle_problems,
    shown,
    statistics,
)
from imgrec_jax.data.own.pictures import NOTES
from imgrec_jax.data.own.stores import folder_store
from imgrec_jax.data.sets import coco, mask_folder, voc, yolo
from imgrec_jax.data.source import Request, parse_split
from imgrec_jax.data.walking import is_hidden, walk

_LONGEST = (320, 480, 640)  # of an image's side; the first at which most objects have _SMALLEST pixels
_SMALLEST = 12.0
_SAMPLE = 60  # images whose pixels give mean and standard deviation
_TURNED = 1 << NOTES.index("turned by its EXIF tag")


class Given(NamedTuple):
    """format: as it is called; splits: {"train", ... or "" where none is given: annotated images}; notes: lines to print."""

    format: str
    splits: dict[str, FolderSplit]
    notes: list[str]


def survey_boxes(
    request: Request,
    *,
    class_names: tuple[str, ...] = (),
    fractions: tuple[float, ...] = FRACTIONS,
    split_seed: int = 0,
    depth: int | None = None,
    allow_outside: bool = False,
    one_based: bool | None = None,
) -> OwnBoxes:
    """Looks at own annotated images as a whole.

    Args:
      class_names: of labels 1..K; () takes those of the training split.
      fractions: of train, validation and test, where no splits are given.
      split_seed: of cutting them.
      depth: 8 or 16 bits a channel; None: 16 where an image has them. 16 gives float images of 0..1.
      allow_outside: a YOLO data.yaml, or a COCO json, may name folders and files outside of its own.
      one_based: of Pascal VOC, whether its pixels are counted from 1; None: unless a box begins at 0.
    """
    return OwnBoxes(request, tuple(class_names), tuple(fractions), split_seed, Ways(allow_outside, one_based, depth))


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
    while (inner := _only_folder(root)) is not None:
        root = inner
    for look in (
        functools.partial(_find_voc, one_based=ways.one_based),
        functools.partial(_find_yolo, max_pixels=max_pixels, allow_outside=ways.allow_outside),
        functools.partial(_find_coco, allow_outside=ways.allow_outside),
        functools.partial(_find_masks, max_pixels=max_pixels),  # last: the others may have folders of that name beside theirs
    ):
        if (found := look(root)) is not None:
            return found
    there = sorted(path.name for path in root.iterdir() if not is_hidden(path.name))[:10]
    raise ValueError(
        f"{root} holds {there}; expected Pascal VOC (Annotations/*.xml and JPEGImages/), YOLO (data.yaml, or images/ and "
        "labels/ with text files), a COCO json with images, annotations and categories, or NAME/images/ and NAME/masks/ with "
        "a file for each object"
    )


def _only_folder(root: Path) -> Path | None:
    there = [path for path in root.iterdir() if not is_hidden(path.name)]
    return there[0] if len(there) == 1 and there[0].is_dir() else None


def _find_voc(root: Path, one_based: bool | None) -> Given | None:
    files = sorted((root / "Annotations").glob("*.xml"))
    if not files:
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
    lists = {path.stem: canonical_split(path.stem) for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    named = {split: stem for stem, split in lists.items() if split}
    if "trainval" in lists and not {"train", "validation"} & set(named):
        named["train"] = "trainval"  # as VOC2007 calls what is trained on
    if named:
        if "train" not in named:
            raise ValueError(
                f"{root / 'ImageSets' / 'Main'} has lists of {sorted(named)}, but none of the training images; add train.txt"
            )
        splits = {split: voc.read_folder(root, stem, class_names, one_based=base) for split, stem in named.items()}
        return Given("Pascal VOC", splits, notes)
    stems = [path.stem for path in files]
    return Given("Pascal VOC", {"": voc.read_stems(root, stems, class_names, one_based=base)}, notes)


def _find_masks(root: Path, max_pixels: int) -> Given | None:
    """A folder for each image, with `images` and `masks` in it; the folders above may name splits."""
    holders = {path.parent for path in folders(root) if path.name == "masks" and (path.parent / "images").is_dir()}
    if not holders or root in holders:  # images/ and masks/ at the top are maps of classes
        return None
    files = list_files(root, max_pixels)
    entries: dict[str, list[mask_folder.Entry]] = {}
    for entry in mask_folder.pair(files, kind="instances"):
        entries.setdefault(canonical_split(entry.name.split("/")[0]) or "", []).append(entry)
    splits = {}
    for split, of_split in entries.items():
        for entry in of_split:
            mask_folder.check_entry(files, entry, "instances", max_pixels)
        rows = [mask_folder.objects_of(files, entry, "instances", n, max_pixels) for n, entry in enumerate(of_split, start=1)]
        table = from_images(rows, class_names=mask_folder.CLASS_NAMES[1:])
        splits[split] = FolderSplit(table, tuple(root / entry.image for entry in of_split), str(root))
    return Given("a mask file for each object", splits, [])


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
        for n in np.flatnonzero((index.table["notes"] & _TURNED) > 0).tolist():  # the index tells those of upright images
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
    files = [root / name for name in walk(root) if name.endswith(".json")]
    found: dict[str, Path] = {}
    for path in files:
        if not _is_instances(path):
            continue
        split = split_in(path.relative_to(root).with_suffix(""))
        if split in found and path.stem.startswith("instances") != found[split].stem.startswith("instances"):
            path = path if path.stem.startswith("instances") else found[split]  # COCO's, beside its key points
        elif split in found:
            raise ValueError(f"{root}: both {found[split]} and {path} are of split {split or 'unknown'!r}; move one away")
        found[split] = path
    if not found:
        return None
    if "" in found and len(found) > 1:
        raise ValueError(
            f"{root}: {found['']} names no split, beside {sorted(map(str, found.values()))}; move it away, or rename it"
        )
    read = {split: (_images_of(root, path, split), path) for split, path in found.items()}
    return Given("COCO", {split: coco.read_folder(*pair, allow_outside=allow_outside) for split, pair in read.items()}, [])


def _is_instances(path: Path) -> bool:
    """A dict with images and categories; told without reading the whole of what is something else."""
    try:
        content = json.loads(read_regular(path, "a COCO json"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def _images_of(root: Path, file: Path, split: str) -> Path:
    """The folder from which a json of a split names its images: the one that holds them.

    Raises:
      ValueError: where several folders of no split, or of other ones, do.
    """
    images = json.loads(read_regular(file, "a COCO json"))["images"]
    every = [str(image["file_name"]) for image in images if isinstance(image, dict) and "file_name" in image]
    names = [every[n] for n in sample(len(every), _SAMPLE).tolist()]

    def holds(place: Path) -> bool:
        return bool(names) and all((place / name).is_file() for name in names)

    stem = re.sub(r"^(instances_|annotations_|_annotations)|\.coco$|_annotations$", "", file.stem)
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


class OwnBoxes:
    """A `data.own.found.Survey` of detection."""

    def __init__(
        self, request: Request, class_names: tuple[str, ...], fractions: tuple[float, ...], seed: int, ways: Ways,
        whole: str = "",
    ):  # fmt: skip
        """whole: the split that all images are of, or all of those that have that name; "" takes or cuts the splits."""
        self._ways, self.depth = ways, ways.depth or 8
        self._request, self._find_group = request, group_finder(request.group)
        given = find(request.folder, request.max_pixels, ways)
        total = sum(len(split.paths) for split in given.splits.values())
        self.lines = [f"{request.folder}: {given.format}, {total:,} images", *given.notes]
        self.digests: dict[str, np.ndarray] = {}
        if {"", "train"} <= set(given.splits):
            raise ValueError(
                f"{request.folder} has images in a folder of training images and in none of a split, e.g. "
                f"{given.splits[''].paths[0]}; move them to one"
            )
        splits = self._usable(given.splits)
        if class_names:
            splits = {name: self._by_names(split, class_names) for name, split in splits.items()}
        paths = [path for split in splits.values() for path in split.paths]
        groups = [group for split in splits.values() for group in self._groups(split)]
        self.lines += group_lines(str(request.folder), request.group, groups, list(map(self._name, paths)), divided=not whole)
        if whole:
            chosen = splits.get(whole) or (next(iter(splits.values())) if len(splits) == 1 else None)
            if chosen is None:
                raise ValueError(
                    f"{request.folder} has the splits {sorted(splits)}; expected one, or one of the name {whole!r}"
                )
            self.splits = {whole: chosen}
            self.digests = {whole: next(d for name, d in self.digests.items() if splits[name] is chosen)}
        else:
            self.splits = self._divided(splits, fractions, seed)
        self._check_leaks()
        train = self.splits[whole or "train"].annotations
        self.class_names = class_names or train.class_names
        self._describe()
        self.found = {} if whole else self._found(train)

    def other(self, folder: Path) -> DetectionSource:
        """See `data.own.found.Survey`."""
        ways = self._ways._replace(depth=self.depth)
        made = OwnBoxes(self._request._replace(manual_dir=folder, fold=""), (), FRACTIONS, 0, ways, whole="test")
        made.lines += leak_lines(made._known_by("test"), self._known_by("train", "validation"))
        print("\n".join(f"found: {line}" for line in made.lines), file=sys.stderr, flush=True)
        return made.open("test")

    def _by_names(self, split: FolderSplit, class_names: tuple[str, ...]) -> FolderSplit:
        try:
            table = split.annotations.relabelled(class_names, range(1, len(class_names) + 1))
        except ValueError as error:
            raise ValueError(f"{split.origin}: {error}, as config.data.options.class_names says") from error
        return split._replace(annotations=table)

    def _known_by(self, *names: str) -> Known:
        splits = {name: self.splits[name] for name in names if name in self.splits}
        files = [file for split in splits.values() for file in split.annotations.file_names]
        groups = [group for split in splits.values() for group in self._groups(split)]
        return Known(files, np.concatenate([self.digests[name] for name in splits]), groups)

    def _usable(self, splits: dict[str, FolderSplit]) -> dict[str, FolderSplit]:
        """What of the splits can be decoded; what cannot is told, or stops."""
        paths = dict.fromkeys(path for split in splits.values() for path in split.paths)
        store = folder_store(self._request.folder, self._request.max_pixels, {str(p): stamp(p) for p in paths})
        index = indices.make(store, list(map(str, paths)), self._request.data_dir / "own", self._request.max_pixels)
        at = {path: n for n, path in enumerate(paths)}
        return {
            name: self._usable_of(name, split, index.taken(np.array([at[p] for p in split.paths], np.int64)))
            for name, split in splits.items()
        }

    def _usable_of(self, name: str, split: FolderSplit, index: indices.Index) -> FolderSplit:
        names = [str(path) for path in split.paths]
        bad = [Problem(file, problem) for file, problem in zip(names, index.problems, strict=True) if problem]
        turned = "has an EXIF orientation, and its boxes may be of the turned or of the stored pixels; store it upright"
        boxes = np.diff(split.annotations.offsets)
        odd = np.flatnonzero(((index.table["notes"] & _TURNED) > 0) & (boxes > 0)).tolist()
        bad += [Problem(names[i], turned) for i in odd]
        self.lines += settle_problems(f"{self._request.folder} {name}".strip(), bad, self._request.bad_files, len(names))
        keep = np.setdiff1d(np.flatnonzero(index.good), odd)
        self.digests[name] = index.table["digest"][keep]
        if self._ways.depth is None:
            self.depth = max(self.depth, int(index.table["depth"][keep].max(initial=8)))
        return _taken(split, keep)

    def _divided(self, splits: dict[str, FolderSplit], fractions: tuple[float, ...], seed: int) -> dict[str, FolderSplit]:
        """{"train", "validation" and "test": those that are given, and cut from the training images}."""
        splits = {("train" if name == "" else name): split for name, split in splits.items()}
        self.digests = {("train" if name == "" else name): digest for name, digest in self.digests.items()}
        if "train" not in splits:
            raise ValueError(f"{self._request.folder} has no training split; it has {sorted(splits)}")
        self._check_groups(splits)
        if self._request.fold:
            held = "validation" if "test" in splits else "test"
            if held in splits:
                raise ValueError(f"config.data.fold={self._request.fold!r}: both validation and test are given; leave it empty")
            out, never = held_out(*self._tied_names(splits["train"]), self._request.fold, seed)
            self._cut(splits, held, out)
            self.lines += fold_lines(self._request.fold, held, int(never.sum()))
        if "validation" not in splits:
            absent = [name for name in SPLITS[1:] if name not in splits]
            shares = [fractions[0], *(fractions[SPLITS.index(name)] for name in absent)]
            for name in absent:
                rest = [shares[0], *shares[1 + absent.index(name) :]]
                part = divide(*self._tied_names(splits["train"]), np.array(rest) / sum(rest), seed)
                if (part == 1).any():
                    self._cut(splits, name, part == 1)
            self.lines.append(f"cut from the training images (seed {seed}): {' and '.join(absent)}")
        if not splits["train"].paths:
            raise ValueError(f"{self._request.folder} has no training image that can be used")
        return splits

    def _tied_names(self, train: FolderSplit) -> tuple[list[str], np.ndarray, np.ndarray]:
        """(names, strata, groups) of the training images, as `divide` takes them."""
        _, group = np.unique(np.array([g or f"\0{i}" for i, g in enumerate(self._groups(train))]), return_inverse=True)
        return list(train.annotations.file_names), _strata(train.annotations), connected(group, self.digests["train"])

    def _cut(self, splits: dict[str, FolderSplit], name: str, part: np.ndarray) -> None:
        """Moves a part, bool [N], of the training images into the split `name`."""
        train, digests = splits["train"], self.digests["train"]
        splits[name], self.digests[name] = _taken(train, np.flatnonzero(part)), digests[part]
        splits["train"], self.digests["train"] = _taken(train, np.flatnonzero(~part)), digests[~part]

    def _groups(self, split: FolderSplit) -> list[str]:
        return [self._find_group(self._name(path)) for path in split.paths]

    def _name(self, path: Path) -> str:
        """From the user's folder, where the image lies in it."""
        return str(path.relative_to(self._request.folder) if path.is_relative_to(self._request.folder) else path)

    def _check_groups(self, splits: dict[str, FolderSplit]) -> None:
        where: dict[str, set[str]] = {}
        for name, split in splits.items():
            for group in self._groups(split):
                where.setdefault(group, set()).add(name)
        where.pop("", None)
        if torn := [f"{group} ({', '.join(sorted(names))})" for group, names in sorted(where.items()) if len(names) > 1]:
            raise ValueError(f"{self._request.folder}: {len(torn)} groups lie in more than one split: {'; '.join(torn)}")

    def _check_leaks(self) -> None:
        for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if first in self.splits and second in self.splits:
                same = np.flatnonzero(np.isin(self.digests[second], self.digests[first]))
                if len(same):
                    names = [self.splits[second].annotations.file_names[i] for i in same.tolist()]
                    self.lines.append(f"leakage: {len(same)} files of {second} are equal to ones of {first}: {shown(names)}")

    def open(self, split: str) -> DetectionSource:
        """The source of a split, boxes by the labels of training."""
        base, _, _ = parse_split(split)
        if base not in self.splits:
            raise ValueError(f"{self._request.folder} has no split {base!r}; it has {sorted(self.splits)}")
        folder = self.splits[base]
        request = self._request
        source = open_folder(f"{request.folder.name} {base}", folder, request.targets, request.max_pixels, self.depth)
        return source.subset(split)

    def _describe(self) -> None:
        counts = np.zeros(len(self.class_names), int)
        table = next(iter(self.splits.values())).annotations if "train" not in self.splits else self.splits["train"].annotations
        for name, count in zip(
            table.class_names, np.bincount(table.labels, minlength=len(table.class_names) + 1)[1:], strict=True
        ):
            if name in self.class_names:
                counts[self.class_names.index(name)] = count
        self.lines.append(
            f"{len(self.class_names)} classes; boxes for training: {counts_by_class(self.class_names, counts.tolist())}"
        )
        pairs = [f"{n} {len(self.splits[n].paths):,}" for n in SPLITS if n in self.splits]
        self.lines.append(f"splits: {', '.join(pairs)}")
        sizes = sorted({tuple(size) for split in self.splits.values() for size in split.annotations.sizes.tolist()})
        self.lines.append(
            f"(height, width) {sizes[0]}" if len(sizes) == 1 else f"{len(sizes)} sizes, {sizes[0]} to {sizes[-1]}"
        )

    def _found(self, train: Annotations) -> dict[str, Any]:
        sizes = np.concatenate([split.annotations.sizes for split in self.splits.values()])
        fit = fitting(train, sizes, self._request.min_size, self._request.max_size)
        at = sample(len(train), _SAMPLE)
        paths = self.splits["train"].paths
        mean, std = statistics(
            [decode_image(read_image_file(paths[i]), str(paths[i]), self._request.max_pixels, self.depth) for i in at.tolist()]
        )
        counts = [int(np.diff(split.annotations.offsets).max(initial=0)) for split in self.splits.values()]
        self.lines.append(
            f"images are brought to {' or '.join(map(str, fit.min_size))} x {fit.max_size} pixels; anchors of "
            f"{fit.anchor_sizes} pixels, "
            f"height / width {fit.aspect_ratios}"
        )
        if self.depth == 16:
            self.lines.append("16 bits a channel: images are floats of 0..1")
        masks = train.all_have_masks()
        self.lines.append("every object has a mask" if masks else "boxes without masks")
        return {
            "model.kind": "mask" if masks else "faster",
            "model.num_classes": len(self.class_names) + 1,
            "model.anchor_sizes": fit.anchor_sizes,
            "model.aspect_ratios": fit.aspect_ratios,
            "data.options.class_names": self.class_names,
            **({"data.options.depth": 16} if self.depth == 16 else {}),  # 8 is what None stands for
            "data.min_size": fit.min_size,
            "data.max_size": fit.max_size,
            "data.canvases": fit.canvases,
            "data.max_boxes": max(max(counts), 8),
            "data.mean": mean,
            "data.std": std,
            "data.validation_split": "validation" if "validation" in self.splits else "",
            "data.test_split": "test" if "test" in self.splits else "",
        }


def _strata(table: Annotations) -> np.ndarray:
    """The rarest class of each image; 0 without objects."""
    counts = np.bincount(table.labels, minlength=len(table.class_names) + 1)
    rarest = np.zeros(len(table), np.int64)
    for i in range(len(table)):
        labels = np.unique(table.labels[table.offsets[i] : table.offsets[i + 1]])
        rarest[i] = labels[counts[labels].argmin()] if len(labels) else 0
    return rarest


def _taken(split: FolderSplit, at: np.ndarray) -> FolderSplit:
    if len(at) == len(split.paths):
        return split
    return split._replace(annotations=split.annotations.subset(at), paths=tuple(split.paths[i] for i in at.tolist()))


class Fit(NamedTuple):
    """What a small detector needs: sides of images, the canvases they are padded to, anchors on three levels."""

    min_size: tuple[int, ...]
    max_size: int
    canvases: tuple[tuple[int, int], ...]
    anchor_sizes: tuple[tuple[float, ...], ...]
    aspect_ratios: tuple[float, ...]


def fitting(train: Annotations, sizes: np.ndarray, min_size: tuple[int, ...] = (), max_size: int | None = None) -> Fit:
    """Sizes and anchors by the boxes of the training split: two anchors a level, at quantiles of the square root of the area.

    Args:
      sizes: int [n, 2], of the images of all splits.
      min_size, max_size: those that are given.
    """
    image_of = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    sides = (train.boxes[:, 2:] - train.boxes[:, :2])[~train.crowd]
    good = (sides > 0).all(1)
    sides, longest = sides[good], float(np.median(sizes.max(1)))
    shortest = float(np.median(sizes.min(1)))
    roots = np.sqrt(sides.prod(1)) / train.sizes[image_of][~train.crowd][good].max(1)  # shares of the longest side
    if not len(roots):
        roots, sides = np.array([0.05, 0.5]), np.ones((1, 2))
    few = float(np.quantile(roots, 0.1))
    if max_size is None and min_size:
        max_size = round(max(min_size) * longest / shortest)
    elif max_size is None:
        max_size = next((side for side in _LONGEST if few * side >= _SMALLEST), _LONGEST[-1])
        max_size = int(min(max_size, max(round_up((int(longest), 32))[0], 64)))
    min_size = min_size or (int(max(round(max_size * shortest / longest), 32)),)
    marks = np.quantile(roots, [0.05, 0.25, 0.5, 0.75, 0.9, 0.98]) * max_size
    pairs = [sorted(max(round(v), 4) for v in pair) for pair in marks.reshape(3, 2).tolist()]
    anchors = tuple((float(low), float(high if high > low else round(1.25 * low))) for low, high in pairs)
    ratios = np.quantile(sides[:, 1] / sides[:, 0], [0.1, 0.5, 0.9])
    apart = [float(np.round(ratios[1], 2))]
    apart = [float(np.round(r, 2)) for r in ratios[[0]] if r < ratios[1] / 1.35] + apart
    apart += [float(np.round(r, 2)) for r in ratios[[2]] if r > ratios[1] * 1.35]
    unique = np.unique(sizes, axis=0).tolist()
    resized = {resized_size(tuple(size), short, max_size) for size in unique for short in min_size}
    if len(resized) == 1:
        canvases: tuple[tuple[int, int], ...] = (round_up(next(iter(resized))),)
    else:
        offered = default_canvases(max(min_size), max_size)
        taken = {canvas_of(tuple(size), short, max_size, offered) for size in unique for short in min_size}
        canvases = tuple(c for c in offered if c in taken)
    return Fit(min_size, max_size, canvases, anchors, tuple(apart))


__all__ = ["OwnBoxes", "find", "fitting", "survey_boxes"]
