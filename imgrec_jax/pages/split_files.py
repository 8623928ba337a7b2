"""A split as ordinary files, so that it can be looked at, predicted on and given away.

  classification   NAME/CLASS/00000.png and NAME.csv with lines of file,label; with several labels an image NAME/00000.png and
                   NAME.csv with a column of 0 and 1 a label, empty where it is not known
  detection        NAME/00000.png (or the images' own names) and NAME.json in COCO's format
  segmentation     NAME/images/00000.png, NAME/masks/00000.png of class numbers (255: void), NAME.classes.json

PNG keeps every pixel, of 16 bits where the images have more than 8; what is read back is what was trained on.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from imgrec_jax.data.annotations import Annotations
from imgrec_jax.data.files import write_whole
from imgrec_jax.data.progress import progress
from imgrec_jax.data.source import Source

VOID = 255
_ORDERS = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}  # {channels: their order in OpenCV}


def write(source: Source, folder: Path, name: str, limit: int | None = None) -> list[Path]:
    """Writes the first `limit` examples of a source (None: all); returns the folder of images and the file of labels.

    Raises:
      ValueError: for more classes than a PNG of 8 bits can number; where the folder of that name holds something already.
    """
    if (folder / name).exists() and any((folder / name).iterdir()):
        raise ValueError(f"{folder / name} is not empty, and old and new files would mix; give another --out, or empty it")
    count = len(source) if limit is None else min(limit, len(source))
    examples = ((n, source[n]) for n in progress(range(count), f"writing {name} to {folder}"))
    (folder / name).mkdir(parents=True, exist_ok=True)
    first = source[0]
    if "box_label" in first:
        return _boxes(examples, source.info.meta["annotations"].subset(np.arange(count)), folder, name)
    if "segmentation" in first:
        return _maps(examples, source.info.class_names, folder, name)
    if "labels" in first:
        return _several_labels(examples, source.info.class_names, folder, name)
    return _labels(examples, source.info.class_names, folder, name)


def _png(path: Path, image: np.ndarray) -> None:
    """[H, W] or [H, W, C], uint8, or of 16 bits where it is uint16 or float 0..1, as PNG."""
    pixels = image if image.dtype in (np.uint8, np.uint16) else np.rint(np.clip(image, 0, 1) * 65535).astype(np.uint16)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in _ORDERS:
        raise ValueError(
            f"{path}: an image of {channels} channels, and a PNG has 1, 3 or 4; leave --out out, and look at the page"
        )
    pixels = pixels[..., _ORDERS[channels]] if channels > 1 else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes())


def _labels(examples: Iterator[tuple[int, Any]], names: tuple[str, ...], folder: Path, name: str) -> list[Path]:
    lines, places = [("file", "label")], dict[str, str]()
    for number, example in examples:
        label = int(example["label"])
        text = names[label] if label < len(names) else str(label)
        if text not in places:  # names of classes are not always names of folders
            plain = re.sub(r'[\\/:*?"<>|\0]', "_", text).strip(". ") or "_"
            places[text] = plain if plain not in places.values() else f"{plain}_{label}"
        place = PurePosixPath(name, places[text], f"{number:05}.png")
        _png(folder / place, np.asarray(example["image"]))
        lines.append((place.as_posix(), text))
    return [folder / name, _csv(folder / f"{name}.csv", lines)]


def _several_labels(examples: Iterator[tuple[int, Any]], names: tuple[str, ...], folder: Path, name: str) -> list[Path]:
    lines: list[tuple[str, ...]] = [("file", *names)]
    for number, example in examples:
        place = PurePosixPath(name, f"{number:05}.png")
        _png(folder / place, np.asarray(example["image"]))
        pairs = zip(np.asarray(example["labels"]), np.asarray(example["label_known"]), strict=True)
        lines.append((place.as_posix(), *(str(int(value > 0)) if known else "" for value, known in pairs)))
    return [folder / name, _csv(folder / f"{name}.csv", lines)]


def _csv(path: Path, lines: Sequence[Sequence[str]]) -> Path:
    def write_lines(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # a folder's name, by its bytes
            csv.writer(file).writerows(lines)

    write_whole(path, write_lines)
    return path


def _boxes(examples: Iterator[tuple[int, Any]], table: Annotations, folder: Path, name: str) -> list[Path]:
    data = table.to_coco()
    stems = [Path(image["file_name"]).stem for image in data["images"]]
    if len(set(filter(None, stems))) < len(list(filter(None, stems))):
        raise ValueError(f"{name}: several images have one name in different folders; they cannot be written to one")
    for (number, example), image in zip(examples, data["images"], strict=True):
        image["file_name"] = f"{Path(image['file_name']).stem or f'{number:05}'}.png"
        _png(folder / name / image["file_name"], np.asarray(example["image"]))
    for entry in data["annotations"]:
        mask = entry.get("segmentation")
        if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
            entry["segmentation"] = {"size": [int(v) for v in mask["size"]], "counts": mask["counts"].decode()}
    path = folder / f"{name}.json"
    write_whole(path, lambda partial: partial.write_text(json.dumps(data)))
    return [folder / name, path]


def _maps(examples: Iterator[tuple[int, Any]], names: tuple[str, ...], folder: Path, name: str) -> list[Path]:
    if len(names) > VOID:
        raise ValueError(f"{name} has {len(names)} classes; a mask of 8 bits numbers at most {VOID}, beside void")
    for number, example in examples:
        _png(folder / name / "images" / f"{number:05}.png", np.asarray(example["image"]))
        classes = np.asarray(example["segmentation"])
        if "pixel_valid" in example:
            classes = np.where(example["pixel_valid"], classes, VOID)
        _png(folder / name / "masks" / f"{number:05}.png", classes.astype(np.uint8))
    path = folder / f"{name}.classes.json"
    write_whole(path, lambda partial: partial.write_text(json.dumps(list(names)) + "\n"))
    return [folder / name / "images", folder / name / "masks", path]
