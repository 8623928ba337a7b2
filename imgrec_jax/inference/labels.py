"""The truth of images to be predicted, from files beside them, and the score of the prediction: evaluation's own sums.

  classification   a folder with a folder of images a class, or a CSV of "file,label" lines
  detection        a COCO json
  segmentation     a folder of masks, each with the name of its image (or one that differs as those of all do), of the kind
                   that the run was trained on (a run on other data: PNG of class numbers, 255 is void)

Shape letters: H W image.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from imgrec_jax import metrics
from imgrec_jax.assemble.task import summary_of_detections
from imgrec_jax.data.annotations import Annotations
from imgrec_jax.data.files import IMAGES, is_hidden, list_files
from imgrec_jax.data.images import MAX_PIXELS
from imgrec_jax.data.own.rows import text_of_table
from imgrec_jax.data.sets import coco
from imgrec_jax.data.sets.mask_folder import check_mask, targets_of
from imgrec_jax.data.sets.mask_pairs import by_difference
from imgrec_jax.data.sets.own_masks import IMAGE_FOLDERS, MASK_FOLDERS, SUFFIXES

Targets = dict[str, Any]
VOID = 255


class Labels(Protocol):
    """The truth of a stream of images, and what is counted of it.

    Attributes:
      states: the merged metric states so far, {name: state}; None before the first batch.
    """

    states: dict[str, Any] | None

    def targets(self, name: str, size: tuple[int, int]) -> Targets:
        """What the example of an image has beside the image; ValueError for one that has no label."""
        ...

    def index(self, name: str) -> int:
        """The image's position among the labels."""
        ...

    def score(self) -> dict[str, Any]:
        """The metrics over all images so far, as an evaluation has them."""
        ...


class ClassLabels:
    """The class of each image, by the folder that it lies in or by a CSV."""

    def __init__(self, place: Path, class_names: Sequence[str]):
        self.states: dict[str, Any] | None = None
        self._place, self._names = place, {name: label for label, name in enumerate(class_names)}
        self._rows = None if place.is_dir() else Table(_read_csv(place), place.parent)

    def targets(self, name: str, size: tuple[int, int]) -> Targets:
        return {"label": self._label(name)}

    def index(self, name: str) -> int:
        return 0

    def score(self) -> dict[str, Any]:
        return metrics.compute(self.states or {})

    def _label(self, name: str) -> int:
        if self._rows is None:
            try:
                folders = Path(os.path.abspath(name)).relative_to(os.path.abspath(self._place)).parts[:-1]
            except ValueError:
                raise ValueError(f"{name}: it does not lie in --labels={self._place}, whose folders name the classes") from None
            found = next((part for part in folders if part in self._names), None)
            if found is None:
                raise ValueError(f"{name}: none of its folders {list(folders)} is a class; the run has {list(self._names)}")
            return self._names[found]
        text = self._rows.of(name)
        if text is None:
            raise ValueError(f"{name}: {self._place} has no line for it")
        if text not in self._names:
            raise ValueError(f"{name}: {self._place} gives it the class {text!r}; the run has {list(self._names)}")
        return self._names[text]


def _read_csv(path: Path) -> list[tuple[str, str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text_of_table(path.read_bytes(), str(path)))) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"--labels={path} cannot be read as CSV ({error}); expected lines of file,label") from error
    short = next((number for number, row in enumerate(rows, start=1) if len(row) < 2), None)
    if short is not None or not rows:
        raise ValueError(f"--labels={path}, line {short or 1}: expected lines of file,label")
    return [(row[0], row[1].strip()) for row in rows if row[:2] != ["file", "label"]]


class Table:
    """What files have, by their paths as a list beside them gives these: from any folder above, "./" or absolute."""

    def __init__(self, rows: Iterable[tuple[str, Any]], folder: Path):
        """rows: (file, what it has); folder: of the list, from which "../" leads.

        Raises:
          ValueError: for a file that has two things.
        """
        self._rows: dict[tuple[str, ...], Any] = {}
        for file, value in rows:
            if (before := self._rows.setdefault(_parts(file, folder), value)) != value:
                raise ValueError(f"--labels: {file} is listed twice, as {before!r} and as {value!r}; keep one")
        self._meant: dict[tuple[str, ...], str] = {}  # the file that an end of a path was taken for

    def of(self, name: str) -> Any:
        """The entry of a file: of its whole path, else of the longest end that the table has, "b/c.png" or "c.png"; or None.

        Raises:
          ValueError: for an end that another file had before.
        """
        file = os.path.realpath(name)
        for parts in (_parts(os.path.abspath(name)), _parts(file)):
            for tail in (parts[n:] for n in range(len(parts))):
                if tail not in self._rows:
                    continue
                if (other := self._meant.setdefault(tail, file)) != file:
                    raise ValueError(
                        f"{name}: the labels name {'/'.join(tail)}, which {other} is, too; give paths with folders"
                    )
                return self._rows[tail]
        return None


def _parts(path: str, folder: Path | None = None) -> tuple[str, ...]:
    plain = os.path.normpath(path.strip().replace("\\", "/"))
    if folder is not None and plain.startswith("../"):
        plain = os.path.abspath(folder / plain)
    return PurePosixPath(plain).parts


class BoxLabels:
    """The boxes of each image, of a COCO json; its classes are the run's by name."""

    def __init__(self, place: Path, class_names: Sequence[str], summarise: Callable[[Annotations, dict], dict]):
        """summarise: (annotations, merged states) -> values."""
        self.states: dict[str, Any] | None = None
        found = coco.read_folder(place.parent, place, allow_outside=True).annotations  # names alone
        try:
            self.annotations = found.relabelled(class_names, range(1, len(class_names) + 1)) if class_names else found
        except ValueError as error:
            raise ValueError(f"--labels={place}: {error}, as in the run; rename the class or leave it out") from error
        self._place, self._summarise = place, summarise
        self._rows = Table(((file, row) for row, file in enumerate(self.annotations.file_names)), place.parent)

    def targets(self, name: str, size: tuple[int, int]) -> Targets:
        row = self.index(name)
        targets = self.annotations.targets(row)
        if tuple(targets["original_size"].tolist()) != size:
            annotated = tuple(targets["original_size"].tolist())
            raise ValueError(f"{name}: (height, width) {size}, annotated as {annotated} in {self._place}")
        return targets

    def index(self, name: str) -> int:
        row = self._rows.of(name)
        if row is None:
            raise ValueError(f"{name}: {self._place} lists no such file")
        return row

    def score(self) -> dict[str, Any]:
        """Over the images that were predicted; others of the json do not count."""
        if self.states is None:
            return {}
        found = self.states["detections"]
        seen, places = np.unique(np.asarray(found.index), return_inverse=True)
        states = {**self.states, "detections": found.replace(index=places)}
        return self._summarise(self.annotations.subset(seen), states)


class MapLabels:
    """The mask of each image, read as training reads those of this kind."""

    def __init__(
        self,
        place: Path,
        classes: int,
        kind: str = "index",
        void: int | None = VOID,
        suffix: str = "",
        max_pixels: int = MAX_PIXELS,
    ):
        """kind, void: as `mask_folder.targets_of`; suffix: after the image's name in a mask's, where it is none of SUFFIXES."""
        self.states: dict[str, Any] | None = None
        self._place, self._classes, self._kind, self._void, self._max_pixels = place, classes, kind, void, max_pixels
        self._suffixes = dict.fromkeys((suffix, *SUFFIXES))
        self._files = list_files(place, max_pixels)
        self._masks: dict[str, list[PurePosixPath]] = {}
        in_folders = [path for path in self._files.names if path.parent.name in MASK_FOLDERS]
        for path in in_folders if kind == "instances" and in_folders else self._files.names:
            self._masks.setdefault(self._image_of(path), []).append(path)
        twice = [] if kind == "instances" else [paths for paths in self._masks.values() if len(paths) > 1]
        if twice:
            first, second = twice[0][:2]
            raise ValueError(f"--labels={place}: {first} and {second} are masks of one name; give one folder")
        if not self._masks:
            raise ValueError(f"--labels={place} holds no mask; expected NAME.png for an image NAME.*, as of kind={kind!r}")

    def _image_of(self, mask: PurePosixPath) -> str:
        """The name of a mask's image: the mask's own; of kind "instances" the folder's, NAME/masks/*.png or NAME/*.png."""
        if self._kind != "instances":
            return mask.stem
        above = [part for part in (Path(os.path.abspath(self._place)) / mask).parts[:-1] if part not in MASK_FOLDERS]
        return above[-1] if mask.parts[:-1] or self._place.name in MASK_FOLDERS else mask.stem

    def _masks_of(self, name: str) -> list[PurePosixPath] | None:
        path = Path(os.path.abspath(name))
        if self._kind == "instances" and path.parent.name in IMAGE_FOLDERS and path.parent.parent.name in self._masks:
            return self._masks[path.parent.parent.name]  # NAME/images/any.png
        found = next((n for end in self._suffixes if (n := f"{path.stem}{end}") in self._masks), None)
        return self._masks.get(self._partners(path.parent).get(path.stem, "") if found is None else found)

    @functools.lru_cache(maxsize=8)  # noqa: B019  there is one of this class, and folders of images are few
    def _partners(self, folder: Path) -> dict[str, str]:
        """{name of an image in `folder`: name of its mask} where all names differ by what all have in common."""
        if self._kind == "instances" or not folder.is_dir():
            return {}
        found = [Path(name) for name in os.listdir(folder) if not is_hidden(name)]
        return by_difference({path.stem for path in found if path.suffix.lower() in IMAGES}, self._masks) or {}

    def targets(self, name: str, size: tuple[int, int]) -> Targets:
        paths = self._masks_of(name)
        if paths is None:
            raise ValueError(f"{name}: no mask {Path(name).stem}{next(iter(self._suffixes))}.png in {self._place}")
        for path in paths:
            check_mask(self._files, path, size, name, self._kind, self._max_pixels)
        return targets_of(self._files, paths, size, self._kind, self._classes, self._void)

    def index(self, name: str) -> int:
        return 0

    def score(self) -> dict[str, Any]:
        return metrics.compute(self.states or {})


def open_labels(place: str | os.PathLike, config: ConfigDict, class_names: Sequence[str]) -> Labels:
    """The labels that lie at `place`, of the kind that the task of `config` needs.

    Raises:
      ValueError: for a place that is none of what the task expects.
    """
    if config.data.multi_label:
        raise ValueError("--labels: a score of several labels an image is that of --mode=eval; leave it out")
    path = Path(place).expanduser()
    what, fits = EXPECTED[config.task]
    if not fits(path):
        there = "" if path.exists() else "; it is not there"
        raise ValueError(f"--labels={place}: expected {what} for {config.task}{there}")
    if config.task == "classification":
        return ClassLabels(path, class_names or [str(n) for n in range(config.model.num_classes)])
    if config.task == "detection":
        return BoxLabels(path, class_names, lambda table, states: summary_of_detections(config, table)(states))
    options = config.data.options
    kind, void, suffix = options.get("kind") or "index", options.get("void", VOID), options.get("mask_suffix", "")
    return MapLabels(path, config.model.num_classes, kind, void, suffix, config.data.max_pixels)


# What each task takes as labels, in words, and whether a path is one.
EXPECTED: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "classification": ("a folder with a folder of images a class, or a CSV of file,label lines", Path.exists),
    "detection": ("a COCO json", Path.is_file),
    "segmentation": ("a folder of masks", Path.is_dir),
}
