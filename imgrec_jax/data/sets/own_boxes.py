"""Own images with boxes: a folder with COCO json, Pascal VOC's three folders, YOLO's text files or a mask for each object.

Classes, splits and where the images lie are found; splits that are not given are cut, seeded, and with what must stay together
(groups, files of equal content) in one. Sizes, canvases and anchors that fit the objects are proposed for a small detector.

Shape letters: N boxes, K classes.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.data.annotated import DetectionSource, FolderSplit, open_folder
from imgrec_jax.data.annotations import Annotations
from imgrec_jax.data.files import stamp
from imgrec_jax.data.images import decode_image, read_image_file
from imgrec_jax.data.ops.canvases import canvas_of, default_canvases, resized_size, round_up
from imgrec_jax.data.own import index as indices
from imgrec_jax.data.own.division import FRACTIONS, SPLITS, connected, divide, group_finder, held_out
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
from imgrec_jax.data.own.stores import folder_store
from imgrec_jax.data.sets.find_boxes import TURNED, Ways, find
from imgrec_jax.data.source import Request, parse_split

_LONGEST = (320, 480, 640)  # of an image's side; the first at which most objects have _SMALLEST pixels
_SMALLEST = 12.0
_SAMPLE = 60  # images whose pixels give mean and standard deviation


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
            splits = {name: self._by_names(split, class_names, given.format == "YOLO") for name, split in splits.items()}
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
        names = self.class_names if _are_numbers(self.class_names) else ()
        made = OwnBoxes(self._request._replace(manual_dir=folder, fold=""), names, FRACTIONS, 0, ways, whole="test")
        made.lines += leak_lines(made._known_by("test"), self._known_by("train", "validation"))
        print("\n".join(f"found: {line}" for line in made.lines), file=sys.stderr, flush=True)
        return made.open("test")

    def _by_names(self, split: FolderSplit, class_names: tuple[str, ...], of_yolo: bool) -> FolderSplit:
        table, count = split.annotations, len(class_names)
        numbered = of_yolo and _are_numbers(class_names) and table.labels.max(initial=0) <= count
        if numbered and count <= len(table.class_names):  # a run that began when nothing named the classes
            table = dataclasses.replace(table, class_names=class_names, category_ids=table.category_ids[:count])
        try:
            table = table.relabelled(class_names, range(1, len(class_names) + 1))
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
        odd = np.flatnonzero(((index.table["notes"] & TURNED) > 0) & (boxes > 0)).tolist()
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


def _are_numbers(class_names: tuple[str, ...]) -> bool:
    """Whether nothing named the classes."""
    return class_names == tuple(map(str, range(len(class_names))))


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
