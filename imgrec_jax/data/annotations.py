"""The annotations of one detection split as one table of arrays, whatever format they came from.

Evaluation, sanity report and bucket order read this table and never touch an image. Boxes are xyxy pixels of the original
image, in float64 so that evaluation is that of the file to the last digit (examples carry float32); labels are 1..K without
holes (0 is background); `category_ids` keeps the numbers of the data set itself (COCO uses 80 of 1..90) for writing results.

Shape letters: n images, M boxes of the split, N boxes of one image, K classes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax.data.ops import bits
from imgrec_jax.data.source import digest

Segmentation = list | dict  # COCO's polygons [[x1, y1, x2, y2, ...], ...] or run lengths {"size": [h, w], "counts": ...}


@dataclasses.dataclass(frozen=True)
class Annotations:
    class_names: tuple[str, ...]  # of labels 1..K
    category_ids: tuple[int, ...]  # of labels 1..K, as the data set numbers them
    image_ids: np.ndarray  # int64 [n]
    file_names: tuple[str, ...]  # n
    sizes: np.ndarray  # int32 [n, 2] (height, width)
    offsets: np.ndarray  # int64 [n + 1]: image i owns boxes offsets[i]:offsets[i + 1]
    boxes: np.ndarray  # float64 [M, 4]
    labels: np.ndarray  # int64 [M]
    crowd: np.ndarray  # bool [M]: a region, not one object; ignored in training and evaluation
    ids: np.ndarray  # int64 [M], as the data set numbers its annotations
    areas: np.ndarray  # float64 [M], of the mask where there is one: COCO's size classes go by it
    segmentations: tuple[Segmentation | None, ...] | None = None  # M

    def __len__(self) -> int:
        return len(self.image_ids)

    def identity(self, *, masks: bool = False) -> str:
        """Digest of everything but ids and areas; of boxes as examples carry them, in float32; of segmentations, as they are
        written, with `masks`."""
        boxes = self.boxes.astype(np.float32)
        names = ("\n".join(self.class_names), str(self.category_ids), "\n".join(self.file_names))
        drawn = map(_as_bytes, self.segmentations or ()) if masks else ()
        parts = (*names, self.image_ids, self.sizes, self.offsets, boxes, self.labels, self.crowd, *drawn)
        return digest("annotations", parts)

    def targets(self, index: int) -> dict:
        """boxes float32 [N, 4], box_label, box_crowd, box_id [N], image_id, file_name, original_size [2] of image `index`."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return {
            "boxes": self.boxes[span].astype(np.float32),
            "box_label": self.labels[span].copy(),
            "box_crowd": self.crowd[span].copy(),
            "box_id": self.ids[span].copy(),
            "image_id": int(self.image_ids[index]),
            "file_name": self.file_names[index],
            "original_size": self.sizes[index].copy(),
        }

    def masks(self, index: int) -> np.ndarray:
        """Bits of the masks [N, H, W] of image `index` (`ops.bits`); a box without a segmentation has an empty mask."""
        if self.segmentations is None:
            raise ValueError("these annotations hold no masks; open the source with targets=('boxes', 'masks')")
        height, width = (int(v) for v in self.sizes[index])
        span = range(self.offsets[index], self.offsets[index + 1])
        return bits.pack_each((mask_values(self.segmentations[j], height, width) for j in span), (height, width))

    def all_have_masks(self) -> bool:
        """Whether every object has a mask, crowds aside, and there is one."""
        drawn = [mask for mask, crowd in zip(self.segmentations or (), self.crowd, strict=False) if not crowd]
        return bool(drawn) and all(drawn)

    def subset(self, indices: np.ndarray) -> Annotations:
        """The table of these images, in this order."""
        indices = np.asarray(indices, np.int64)
        counts = np.diff(self.offsets)[indices]
        spans = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices]
        rows = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        segmentations = None if self.segmentations is None else tuple(self.segmentations[j] for j in rows)
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[indices],
            file_names=tuple(self.file_names[i] for i in indices),
            sizes=self.sizes[indices],
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            segmentations=segmentations,
            **{name: getattr(self, name)[rows] for name in _PER_BOX},
        )

    def to_coco(self) -> dict:
        """The table as a COCO ground-truth dict (images, categories, annotations), for pycocotools."""
        image_row = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        image_of = self.image_ids[image_row]
        bbox = to_xywh(self.boxes).tolist()
        annotations = [
            {
                # pycocotools takes annotation id 0 for "no match", and ids may repeat across merged files
                "id": row + 1,
                "image_id": int(image_of[row]),
                "category_id": int(self.category_ids[self.labels[row] - 1]),
                "bbox": bbox[row],
                "area": float(self.areas[row]),
                "iscrowd": int(self.crowd[row]),
            }
            for row in range(len(self.boxes))
        ]
        if self.segmentations is not None:
            for annotation, segmentation in zip(annotations, self.segmentations, strict=True):
                size = self.sizes[image_row[annotation["id"] - 1]].tolist()
                nothing = {"size": size, "counts": [size[0] * size[1]]}  # pycocotools draws no empty list of polygons
                annotation["segmentation"] = segmentation if segmentation is not None else nothing
        images = [
            {"id": int(i), "file_name": name, "height": int(h), "width": int(w)}
            for i, name, (h, w) in zip(self.image_ids, self.file_names, self.sizes, strict=True)
        ]
        categories = [{"id": int(i), "name": name} for i, name in zip(self.category_ids, self.class_names, strict=True)]
        return {"info": {}, "images": images, "categories": categories, "annotations": annotations}

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as npz, atomically; segmentations as run lengths."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "segmentations"]
        arrays = {name: np.asarray(getattr(self, name)) for name in names}
        if self.segmentations is not None:
            size_of = np.repeat(self.sizes, np.diff(self.offsets), axis=0).tolist()
            encoded = [to_run_lengths(s, *size) for s, size in zip(self.segmentations, size_of, strict=True)]
            counts = [run_lengths["counts"] if run_lengths else b"" for run_lengths in encoded]
            arrays["mask_bytes"] = np.frombuffer(b"".join(counts), np.uint8)
            arrays["mask_lengths"] = np.array([len(c) for c in counts], np.int64)
        partial = Path(f"{path}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike, *, masks: bool) -> Annotations:
        """Read what `save` wrote; `masks=False` leaves the segmentations on disk.

        Early versions wrote float32 boxes and areas, which become float64 as they are.
        """
        with np.load(path) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files if masks or not name.startswith("mask_")}
        segmentations = None
        if "mask_bytes" in arrays:
            data, lengths = arrays.pop("mask_bytes").tobytes(), arrays.pop("mask_lengths")
            ends = np.cumsum(lengths)
            size_of = np.repeat(arrays["sizes"], np.diff(arrays["offsets"]), axis=0)
            segmentations = tuple(
                {"size": size.tolist(), "counts": data[end - length : end]} if length else None
                for size, end, length in zip(size_of, ends, lengths, strict=True)
            )
        for name in ("class_names", "category_ids", "file_names"):
            arrays[name] = tuple(arrays[name].tolist())
        arrays |= {name: arrays[name].astype(_DTYPES[name]) for name in ("boxes", "areas")}
        return cls(**arrays, segmentations=segmentations)

    def relabelled(self, class_names: Sequence[str], category_ids: Sequence[int]) -> Annotations:
        """The same objects with labels 1..K of these class names (and their ids), found by name.

        `category_ids` of the result are this table's own numbers, under which its ground truth and results are written; a class
        that it does not list has the given one, or the next free number.

        Raises:
          ValueError: when it has a class that is not among `class_names`.
        """
        if self.class_names == tuple(class_names):
            return self
        unknown = [name for name in self.class_names if name not in class_names]
        if unknown:
            mine, theirs = list(self.class_names), list(class_names)
            raise ValueError(f"it has the classes {mine}; expected {unknown[0]!r} to be among {theirs}")
        own = dict(zip(self.class_names, self.category_ids, strict=True))
        taken = set(self.category_ids)
        for name, number in zip(class_names, category_ids, strict=True):
            if name not in own:
                own[name] = number if number not in taken else max(taken) + 1
                taken.add(own[name])
        label_of = {name: label for label, name in enumerate(class_names, start=1)}
        labels = np.array([0, *(label_of[name] for name in self.class_names)], np.int64)[self.labels]
        ids = tuple(own[name] for name in class_names)
        return dataclasses.replace(self, class_names=tuple(class_names), category_ids=ids, labels=labels)


_PER_BOX = ("boxes", "labels", "crowd", "ids", "areas")
_DTYPES = {"boxes": np.float64, "labels": np.int64, "crowd": np.bool_, "ids": np.int64, "areas": np.float64}


def from_images(images: list[dict], *, class_names: tuple, category_ids: tuple | None = None) -> Annotations:
    """One table from one dict per image: image_id, file_name, size (h, w) and, per box, boxes [N, 4], labels, crowd, ids,
    areas [N] and optionally segmentations (a list of N)."""
    counts = [len(image["labels"]) for image in images]

    def column(name: str) -> np.ndarray:
        parts: list[np.ndarray] = [np.asarray(image[name], _DTYPES[name]) for image in images]
        flat = np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0, _DTYPES[name])
        return flat.reshape(-1, 4) if name == "boxes" else flat

    with_masks = bool(images) and all("segmentations" in image for image in images)
    return Annotations(
        class_names=tuple(class_names),
        category_ids=tuple(category_ids or range(1, len(class_names) + 1)),
        image_ids=np.array([image["image_id"] for image in images], np.int64),
        file_names=tuple(image["file_name"] for image in images),
        sizes=np.array([image["size"] for image in images], np.int32).reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        segmentations=tuple(s for image in images for s in image["segmentations"]) if with_masks else None,
        **{name: column(name) for name in _PER_BOX},
    )


def _as_bytes(segmentation: Segmentation | None) -> bytes:
    if isinstance(segmentation, list):  # polygons, each preceded by its length
        return np.concatenate([np.array([len(p), *p], np.float64) for p in segmentation] or [np.zeros(0)]).tobytes()
    counts = segmentation["counts"] if segmentation else b""
    return np.array(counts, np.int64).tobytes() if isinstance(counts, list) else _encoded(counts)


def _encoded(counts: str | bytes) -> bytes:
    """Compressed run lengths as bytes; json has them as text."""
    return counts.encode() if isinstance(counts, str) else counts


def refuse_shares(boxes: Iterable[Sequence[float]], where: str) -> None:
    """Raises ValueError for boxes that are all within 0..1, in fractions: shares of the image, where pixels are expected."""
    within = []
    for box in boxes:
        if max(box) > 1:  # the first one, as a rule
            return
        within.append(box)
    if not all(float(value).is_integer() for box in within for value in box):
        raise ValueError(
            f"{where}: every box lies within 0..1, e.g. {list(within[0])}; expected pixels; multiply by the size of each image"
        )


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """xyxy [N, 4] -> COCO's x, y, width, height, float64 [N, 4].

    Widths and heights are rounded to 9 decimals: (x + w) - x is w but for some 1e-13, and files write w in few decimals, so it
    comes back to the last bit.
    """
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:, :2], np.round(boxes[:, 2:] - boxes[:, :2], 9)], axis=1)


def encode_mask(mask: np.ndarray) -> dict:
    """bool [H, W] -> COCO's compressed run lengths {"size": [H, W], "counts": bytes}."""
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def encode_numbered(numbers: np.ndarray) -> Iterator[tuple[int, dict]]:
    """int [H, W], 0 where there is nothing -> (number, its pixels as of `encode_mask`) of each; the map is read once."""
    from pycocotools import mask as coco_mask

    flat = numbers.ravel(order="F")
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    starts, of = np.append(0, ends[:-1]), flat[ends - 1]
    order = np.argsort(of, kind="stable")
    values, first = np.unique(of[order], return_index=True)
    for number, runs in zip(values.tolist(), np.split(order, first[1:]), strict=True):
        if number:
            edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
            counts = np.diff(edges, prepend=0, append=flat.size if edges[-1] < flat.size else edges[:0])
            yield number, coco_mask.frPyObjects({"size": list(numbers.shape), "counts": counts.tolist()}, *numbers.shape)


def to_run_lengths(segmentation: Segmentation | None, height: int, width: int) -> dict | None:
    """Any COCO segmentation (polygons, uncompressed or compressed run lengths) as compressed run lengths; None if empty."""
    from pycocotools import mask as coco_mask

    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return {"size": segmentation["size"], "counts": _encoded(segmentation["counts"])}


def mask_values(segmentation: Segmentation | None, height: int, width: int) -> np.ndarray:
    """COCO segmentation -> bool [height, width]."""
    from pycocotools import mask as coco_mask

    run_lengths = to_run_lengths(segmentation, height, width)
    if run_lengths is None:
        return np.zeros((height, width), np.bool_)
    return coco_mask.decode(run_lengths).astype(np.bool_)
