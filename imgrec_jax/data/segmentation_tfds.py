"""Stock TFDS sets for segmentation, opened without TensorFlow, and the one function that opens any segmentation set.

Shape letters: H W image, K classes of COCO, S segments of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax.data import mnist, scenes
from imgrec_jax.data.detection_source import prepared_folder
from imgrec_jax.data.mask_folder import open_mask_folder
from imgrec_jax.data.prepare import opened_or_prepared
from imgrec_jax.data.source import Source, SourceInfo, default_data_dir, parse_split, part

PET_CLASSES = ("background", "pet", "border")

# The classes of Pascal VOC, as COCO names them (torchvision, references/segmentation/coco_utils.py, get_coco).
VOC_CLASSES = (
    "background", "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
    "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv",
)  # fmt: skip


class RecordSource:
    """Prepared records, each turned into an example on access."""

    def __init__(self, records: Sequence[dict[str, Any]], info: SourceInfo, convert: Callable[[dict[str, Any]], dict]):
        self._records, self.info, self._convert = records, info, convert

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return self._convert(self._records[index])


def pet_example(record: dict[str, Any], *, border: str) -> dict:
    """oxford_iiit_pet: trimap 1 pet, 2 background, 3 border -> classes as PET_CLASSES, or the border void."""
    trimap = np.asarray(record["segmentation_mask"])[..., 0]
    segmentation = np.array([0, 1, 0, 2 if border == "class" else 0], np.int32)[trimap]
    valid = trimap > 0 if border == "class" else np.isin(trimap, (1, 2))
    return {"image": _colour(record["image"]), "segmentation": segmentation, "pixel_valid": valid}


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
    return {"image": _colour(record["image"]), "segmentation": classes[at].astype(np.int32), "pixel_valid": counted[at]}


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


def open_pets(split: str, data_dir: Path, *, border: str = "class") -> Source:
    """oxford_iiit_pet (TFDS 4, splits train and test). border: "class" (the third) or "void".

    Raises:
      FileNotFoundError: when it is not prepared.
    """
    if border not in ("class", "void"):
        raise ValueError(f"data.border={border!r}; expected 'class' or 'void'")
    names = PET_CLASSES if border == "class" else PET_CLASSES[:2]
    return _open("oxford_iiit_pet", split, data_dir, lambda _: (names, lambda record: pet_example(record, border=border)))


def open_panoptic(split: str, data_dir: Path, *, classes: str = "voc") -> Source:
    """coco/2017_panoptic (splits train and validation) as semantic classes; see `panoptic_classes`.

    Raises:
      FileNotFoundError: when it is not prepared.
    """
    if classes not in ("voc", "panoptic"):
        raise ValueError(f"data.classes={classes!r}; expected 'voc' or 'panoptic'")

    def setup(features: Any) -> tuple[tuple[str, ...], Callable]:
        names, lookup = panoptic_classes(features["panoptic_objects"]["label"].names, classes)
        return names, lambda record: panoptic_example(record, lookup=lookup)

    return _open("coco/2017_panoptic", split, data_dir, setup)


def _open(name: str, split: str, data_dir: Path, setup: Callable[[Any], tuple[tuple[str, ...], Callable]]) -> Source:
    """setup: features -> (class names, record -> example)."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepared_folder(name, data_dir))
    base, _, _ = parse_split(split)
    if base not in builder.info.splits:
        raise ValueError(f"{name} has no split {base!r}; it has {sorted(builder.info.splits)}")
    class_names, convert = setup(builder.info.features)
    return part(RecordSource(builder.as_data_source(base), SourceInfo(f"{name} {base}", class_names), convert), split)


def _colour(image: np.ndarray) -> np.ndarray:
    """Grey [H, W, 1] as RGB [H, W, 3]."""
    image = np.asarray(image)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def open_segmentation(
    name: str, split: str, *, data_dir: str = "", manual_dir: str = "", in_memory: bool | None = None, **options: Any
) -> Source:
    """Opens a split of any segmentation set.

    Args:
      name: "digit_scenes/default" (or another preset), "mask_folder", "oxford_iiit_pet" or "coco/2017_panoptic".
      split: "train", "validation[:100]", ...
      data_dir: of prepared sets; "" is TFDS's own.
      manual_dir: of a mask folder: the folder or zip file; of digit scenes: MNIST's files, placed by hand.
      in_memory: of a mask folder, see there.
      **options: of `open_mask_folder`, `open_pets` or `open_panoptic`.

    Raises:
      ValueError: unknown name, split or option value.
      FileNotFoundError: when the set is not prepared and cannot be.
    """
    folder = Path(data_dir).expanduser() if data_dir else default_data_dir()
    if name.startswith("digit_scenes"):
        manual = Path(manual_dir).expanduser() if manual_dir else None
        preset = name.partition("/")[2] or "default"
        return scenes.open_source(
            split,
            folder,
            lambda: mnist.load_arrays(folder, manual),
            preset=preset,
            targets=("segmentation",),
            **options,
        )
    if name == "mask_folder":
        if not manual_dir:
            raise ValueError("data.name='mask_folder' needs data.manual_dir, the folder or zip file with images and masks")
        return open_mask_folder(manual_dir, split, in_memory=in_memory, **options)
    openers = {"oxford_iiit_pet": open_pets, "coco/2017_panoptic": open_panoptic}
    if name not in openers:
        known = ("digit_scenes/default", "mask_folder", *openers)
        raise ValueError(f"data.name={name!r} is no segmentation set; choose one of {known}")
    return opened_or_prepared(lambda: openers[name](split, folder, **options), name, folder)
