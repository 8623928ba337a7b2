"""COCO-format folders: an images directory and an instances json (boxes, polygon and run-length masks, crowds).

Images without objects stay, category ids may have holes, unknown keys are ignored. Format: https://cocodataset.org/#format-data.
COCO's bbox is [x, y, width, height] with the origin at the image's corner; it becomes xyxy here and nowhere else.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imgrec_jax.data.annotated import DetectionSource, FolderSplit, open_folder, open_prepared
from imgrec_jax.data.annotations import from_images, to_xywh
from imgrec_jax.data.sets.tfds import download_and_prepare
from imgrec_jax.data.source import Request, parse_split

# The 80 categories that carry boxes among COCO's 1..90, in the order of labels 1..80 (of `coco/2017` in TFDS, too).
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


def open_coco_folder(
    request: Request, *, images: str = "{split}2017", annotations: str = "annotations/instances_{split}2017.json"
) -> DetectionSource:
    """A folder of images and an instances json per split, read as it is; `{split}` stands for the split's name."""
    base = parse_split(request.split)[0]
    folder = read_folder(request.folder / images.format(split=base), request.folder / annotations.format(split=base))
    return open_folder(f"{request.name} {base}", folder, request.targets).subset(request.split)


def open_coco(request: Request) -> DetectionSource:
    """A prepared TFDS set of COCO: "coco/2017", "coco/2014"."""
    return open_prepared(request.name, request.split, request.data_dir, targets=request.targets, category_ids=CATEGORY_IDS)


def read_folder(images_dir: str | Path, annotation_file: str | Path) -> FolderSplit:
    """Read a COCO-format split; images in the order of their ids, labels 1..K in the order of the category ids.

    Raises:
      ValueError: on a json that is not of this format, a repeated image or category id, or a box of an unknown image or
        category; names the annotation.
      FileNotFoundError: without the json.
    """
    annotation_file, images_dir = Path(annotation_file), Path(images_dir)
    if not annotation_file.is_file():
        raise FileNotFoundError(f"{annotation_file} is not there; expected the COCO instances json of this split")
    try:
        data = json.loads(annotation_file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{annotation_file} is not valid JSON ({error}); was it copied as a whole?") from error
    missing = [key for key in ("images", "annotations", "categories") if key not in (data if isinstance(data, dict) else {})]
    if missing:
        raise ValueError(
            f"{annotation_file}: no {missing[0]!r}; expected a COCO instances file with images, annotations and categories"
        )
    images = sorted(data["images"], key=lambda image: image["id"])
    categories = sorted(data["categories"], key=lambda category: category["id"])
    for kind, entries in (("image", images), ("category", categories)):
        ids = [entry["id"] for entry in entries]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"{annotation_file}: {kind} id {twice} occurs twice; ids must be unique")
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    objects = defaultdict(list)
    known = {image["id"] for image in images}
    for entry in data["annotations"]:
        if entry["image_id"] not in known or entry["category_id"] not in label_of:
            raise ValueError(
                f"{annotation_file}: annotation {entry['id']} refers to image {entry['image_id']} and category "
                f"{entry['category_id']}; one of them is not listed in the file"
            )
        objects[entry["image_id"]].append(entry)
    rows = [_image_row(image, objects[image["id"]], label_of) for image in images]
    annotations = from_images(
        rows,
        class_names=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
    )
    return FolderSplit(annotations, tuple(images_dir / image["file_name"] for image in images))


def _image_row(image: dict, objects: list[dict], label_of: Mapping[int, int]) -> dict:
    objects = sorted(objects, key=lambda entry: entry["id"])
    boxes = np.array([entry["bbox"] for entry in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "image_id": image["id"],
        "file_name": image["file_name"],
        "size": (image["height"], image["width"]),
        "boxes": boxes,
        "labels": [label_of[entry["category_id"]] for entry in objects],
        "crowd": [bool(entry.get("iscrowd", 0)) for entry in objects],
        "ids": [entry["id"] for entry in objects],
        "areas": [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in objects],
        "segmentations": [entry.get("segmentation") or None for entry in objects],
    }


def prepare(dataset: str, splits: Mapping[str, FolderSplit], data_dir: str | Path) -> str:
    """Prepare annotated folders (COCO or VOC) as the TFDS set `coco_folder/<dataset>` in ArrayRecord; no TensorFlow.

    Returns the name that `annotated.open_prepared` takes. A set that is prepared already is left alone.

    Raises:
      ValueError: when a split has degenerate or out-of-image boxes, or missing files; names the first of them.
    """
    from imgrec_jax.data import check
    from imgrec_jax.data.builders.coco_folder import CocoFolder

    for name, folder in splits.items():
        check.check_annotations(f"{dataset} {name}", folder.annotations, folder.paths).raise_if_bad()
    builder = CocoFolder(dataset=dataset, splits=splits, data_dir=data_dir, file_format="array_record")
    download_and_prepare(builder)
    return f"coco_folder/{dataset}"


def results(detections: np.ndarray) -> list[dict]:
    """Rows (image_id, x1, y1, x2, y2, score, category_id) float64 [D, 7] -> COCO's results list, for json.

    Coordinates and scores are written whole: rounded, they would tie or cross thresholds, and pycocotools would give the file
    other numbers than `coco_eval` gave the rows.
    """
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category),
            "bbox": box,
            "score": score,
        }
        for (image_id, *_, score, category), box in zip(detections.tolist(), to_xywh(detections[:, 1:5]).tolist(), strict=True)
    ]
