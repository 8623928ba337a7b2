"""COCO-format folders: an images directory and an instances json (boxes, polygon and run-length masks, crowds).

Images without objects stay, category ids may have holes, unknown keys are ignored. Format: https://cocodataset.org/#format-data.
COCO's bbox is [x, y, width, height] with the origin at the image's corner; it becomes xyxy here and nowhere else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imgrec_jax.data.annotated import DetectionSource, FolderSplit, open_folder, open_prepared
from imgrec_jax.data.annotations import from_images, to_xywh
from imgrec_jax.data.records import record_format
from imgrec_jax.data.sets import coco_json
from imgrec_jax.data.sets.tfds import download_and_prepare
from imgrec_jax.data.source import Request, parse_split

# The 80 categories that carry boxes among COCO's 1..90, in the order of labels 1..80 (of `coco/2017` in TFDS, too).
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


def open_coco_folder(
    request: Request,
    *,
    images: str = "{split}2017",
    annotations: str = "annotations/instances_{split}2017.json",
    allow_outside: bool = False,
) -> DetectionSource:
    """A folder of images and an instances json per split, read as it is; `{split}` stands for the split's name.

    allow_outside: image names of the json may be absolute or lead out of the folder; links in the folder are always followed.
    """
    base = parse_split(request.split)[0]
    images_dir, file = (request.folder / path.format(split=base) for path in (images, annotations))
    folder = read_folder(images_dir, file, allow_outside=allow_outside)
    return open_folder(f"{request.name} {base}", folder, request.targets, request.max_pixels).subset(request.split)


def open_coco(request: Request) -> DetectionSource:
    """A prepared TFDS set of COCO: "coco/2017", "coco/2014"."""
    return open_prepared(
        request.name,
        request.split,
        request.data_dir,
        targets=request.targets,
        category_ids=CATEGORY_IDS,
        max_pixels=request.max_pixels,
    )


def read_folder(images_dir: str | Path, annotation_file: str | Path, *, allow_outside: bool = False) -> FolderSplit:
    """Read a COCO-format split; images in the order of their ids, labels 1..K in the order of the category ids.

    Raises:
      ValueError, FileNotFoundError: as `coco_json.read`.
    """
    annotation_file, images_dir = Path(annotation_file), Path(images_dir)
    found = coco_json.read(annotation_file, allow_outside=allow_outside)
    label_of = {category.id: label for label, category in enumerate(found.categories, start=1)}
    objects = defaultdict(list)
    for entry in found.objects:
        objects[entry.image_id].append(entry)
    annotations = from_images(
        [_image_row(image, objects[image.id], label_of) for image in found.images],
        class_names=tuple(category.name for category in found.categories),
        category_ids=tuple(category.id for category in found.categories),
    )
    paths = tuple(coco_json.place_of(images_dir, image.file_name) for image in found.images)
    return FolderSplit(annotations, paths, str(annotation_file))


def _image_row(image: coco_json.Image, objects: list[coco_json.Object], label_of: Mapping[int, int]) -> dict:
    objects = sorted(objects, key=lambda entry: entry.id)
    boxes = np.array([entry.bbox for entry in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "image_id": image.id,
        "file_name": image.file_name,
        "size": (image.height, image.width),
        "boxes": boxes,
        "labels": [label_of[entry.category_id] for entry in objects],
        "crowd": [entry.crowd for entry in objects],
        "ids": [entry.id for entry in objects],
        "areas": [entry.area for entry in objects],
        "segmentations": [entry.segmentation for entry in objects],
    }


def prepare(dataset: str, splits: Mapping[str, FolderSplit], data_dir: str | Path) -> str:
    """Prepare annotated folders (COCO or VOC) as the TFDS set `coco_folder/<dataset>`; no TensorFlow.

    Returns the name that `annotated.open_prepared` takes. A set that is prepared already is left alone.

    Raises:
      ValueError: when a split has degenerate or out-of-image boxes, or missing files; names the first of them.
    """
    from imgrec_jax.data import check
    from imgrec_jax.data.builders.coco_folder import CocoFolder

    for name, folder in splits.items():
        check.check_annotations(f"{dataset} {name}", folder.annotations, folder.paths).raise_if_bad()
    builder = CocoFolder(dataset=dataset, splits=splits, data_dir=data_dir, file_format=record_format())
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
