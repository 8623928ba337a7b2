"""COCO's panoptic maps as semantic classes, from the TFDS set `coco/2017_panoptic`.

Shape letters: H W image, K classes of COCO, S segments of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imgrec_jax.data.ops.photometric import colour
from imgrec_jax.data.sets import tfds
from imgrec_jax.data.source import Request, Source

# The classes of Pascal VOC, as COCO names them (torchvision, references/segmentation/coco_utils.py, get_coco).
VOC_CLASSES = (
    "background", "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv",
)  # fmt: skip


def panoptic_example(record: dict[str, Any], *, lookup: np.ndarray) -> dict:
    """coco/2017_panoptic: an image whose colours are segment ids (R + 256 G + 65536 B) -> the classes of its segments.

    Args:
      record: with "panoptic_image" uint8 [H, W, 3] and "panoptic_objects": id, label, is_crowd [S].
      lookup: [K] class of each of COCO's labels.

    Pixels of no segment and of crowd regions are void.
    """
    segments, colours = record["panoptic_objects"], np.asarray(record["panoptic_image"]).astype(np.int64)
    ids = colours @ np.array([1, 256, 65536])
    known = np.asarray(segments["id"], np.int64).reshape(-1)
    order = np.argsort(known)
    classes = np.append(lookup[np.asarray(segments["label"], np.int64).reshape(-1)[order]], 0)
    counted = np.append(~np.asarray(segments["is_crowd"], np.bool_).reshape(-1)[order], False)
    at = np.searchsorted(known[order], ids)
    found = np.append(known[order], -1)[at] == ids
    at = np.where(found, at, len(known))  # the appended entry: no segment
    return {"image": colour(record["image"]), "segmentation": classes[at].astype(np.int32), "pixel_valid": counted[at]}


def panoptic_classes(names: Sequence[str], classes: str) -> tuple[tuple[str, ...], np.ndarray]:
    """(class names, class of each of COCO's labels `names`).

    classes: "panoptic", all of COCO's things and stuff after a background that no pixel has; or "voc", those of Pascal VOC, and
    whatever else is background, as torchvision trains its segmentation networks.
    """
    if classes == "panoptic":
        return ("background", *names), np.arange(1, len(names) + 1)
    missing = [name for name in VOC_CLASSES[1:] if name not in names]
    if missing:
        raise ValueError(f"the set has no classes {missing}, which classes='voc' needs; it has {list(names)}")
    return VOC_CLASSES, np.array([VOC_CLASSES.index(name) if name in VOC_CLASSES else 0 for name in names])


def open_panoptic(request: Request, *, classes: str = "voc") -> Source:
    """coco/2017_panoptic (splits train and validation) as semantic classes; see `panoptic_classes`.

    Raises:
      FileNotFoundError: when it is not prepared.
    """
    if classes not in ("voc", "panoptic"):
        raise ValueError(f"data.classes={classes!r}; expected 'voc' or 'panoptic'")

    def setup(features: Any) -> tuple[tuple[str, ...], Callable]:
        names, lookup = panoptic_classes(features["panoptic_objects"]["label"].names, classes)
        return names, lambda record: panoptic_example(record, lookup=lookup)

    return tfds.opened_or_prepared(lambda: tfds.open_converted(request, setup), request.name, request.data_dir)
