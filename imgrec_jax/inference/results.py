"""What a run says of one image: plain numpy fields in pixels of that image, JSON, and a picture.

Which kind of result an image has is told by its record (`Task.records`): the key that marks each is in `KINDS`.
Shape letters: H W image, K classes, n boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from imgrec_jax.inference import drawing

TOP = 5  # classes that JSON lists
DRAWN_FROM = 0.5  # score of the boxes that are drawn


@dataclasses.dataclass
class Result:
    """Attributes:
    file: name of the image: its path, or "image 3".
    size: (height, width) of the image.
    class_names: in label order, as the run's; () where the run does not name its classes.
    read: () -> the image.
    video: (path, frame number, frames per second) of a frame of a video.
    """

    file: str
    size: tuple[int, int]
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)
    video: tuple[str, int, float] | None = dataclasses.field(repr=False)

    @property
    def image(self) -> np.ndarray:
        """The image, read again: results hold no pixels."""
        return self.read()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        raise NotImplementedError

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Entries of a COCO result file; category_ids: the numbers of labels 1, 2, ..."""
        raise ValueError("a classification has no COCO results; it has JSON lines")

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """The image with the answer drawn, uint8 RGB; small images are enlarged."""
        raise NotImplementedError


@dataclasses.dataclass
class LabelResult(Result):
    """Attributes:
    label: class number; name: its name.
    probs: float32 [K].
    """

    label: int
    name: str
    probs: np.ndarray
    MARK: ClassVar[str] = "label"

    @classmethod
    def of(cls, record: dict[str, Any], common: dict[str, Any]) -> LabelResult:
        label = int(record["label"])
        return cls(**common, label=label, name=_name(common["class_names"], label), probs=record["probs"])

    @property
    def probability(self) -> float:
        return float(self.probs[self.label])

    def top(self, count: int = TOP) -> list[tuple[str, float]]:
        """(name, probability) of the likeliest classes, best first."""
        order = np.argsort(-self.probs, kind="stable")[:count]
        return [(_name(self.class_names, int(k)), float(self.probs[k])) for k in order]

    def to_json(self) -> dict[str, Any]:
        top = [{"label": name, "probability": value} for name, value in self.top()]
        return {"file": self.file, "label": self.name, "probability": self.probability, "top": top}

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        order = np.argsort(-self.probs, kind="stable")[:3]
        rows = [(_name(self.class_names, int(k)), float(self.probs[k]), drawing.colour_of(int(k))) for k in order]
        return drawing.bars(self.image if image is None else image, rows)


@dataclasses.dataclass
class LabelsResult(Result):
    """Several labels an image. Attributes:
    present: bool [K], whether each label is there; names: of those.
    probs: float32 [K], each of its own.
    """

    present: np.ndarray
    names: tuple[str, ...]
    probs: np.ndarray
    MARK: ClassVar[str] = "present"

    @classmethod
    def of(cls, record: dict[str, Any], common: dict[str, Any]) -> LabelsResult:
        present = np.asarray(record["present"], bool)
        names = tuple(_name(common["class_names"], int(k)) for k in np.flatnonzero(present))
        return cls(**common, present=present, names=names, probs=record["probs"])

    def to_json(self) -> dict[str, Any]:
        probabilities = {_name(self.class_names, k): float(value) for k, value in enumerate(self.probs)}
        return {"file": self.file, "labels": list(self.names), "probabilities": probabilities}

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        order = np.argsort(-self.probs, kind="stable")[:TOP]
        rows = [(_name(self.class_names, int(k)), float(self.probs[k]), drawing.colour_of(int(k))) for k in order]
        return drawing.bars(self.image if image is None else image, rows)


@dataclasses.dataclass
class BoxesResult(Result):
    """Attributes:
    boxes: float64 [n, 4] xyxy, best first, in pixels of the image.
    scores: float32 [n]; labels: int32 [n] from 1; names: of the labels.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    MARK: ClassVar[str] = "boxes"

    @classmethod
    def of(cls, record: dict[str, Any], common: dict[str, Any]) -> BoxesResult:
        names = common["class_names"]
        named = tuple(names[n - 1] if names else str(n) for n in record["labels"].tolist())
        return cls(**common, boxes=record["boxes"], scores=record["scores"], labels=record["labels"], names=named)

    def above(self, score: float) -> BoxesResult:
        """The boxes of at least this score."""
        keep = self.scores >= score
        names = tuple(name for name, kept in zip(self.names, keep, strict=True) if kept)
        arrays: dict[str, Any] = {key: getattr(self, key)[keep] for key in ("boxes", "scores", "labels")}
        return dataclasses.replace(self, names=names, **arrays)

    def to_json(self) -> dict[str, Any]:
        boxes = [
            {"box": [round(v, 3) for v in box], "label": name, "score": score}
            for box, name, score in zip(self.boxes.tolist(), self.names, self.scores.tolist(), strict=True)
        ]
        return {"file": self.file, "boxes": boxes}

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        from imgrec_jax.data.sets.coco import results

        ids = np.asarray(category_ids)[self.labels - 1]
        rows = np.column_stack([np.full(len(ids), image_id), self.boxes, self.scores, ids])
        return results(rows.astype(np.float64).reshape(-1, 7))

    def draw(self, image: np.ndarray | None = None, score: float = DRAWN_FROM) -> np.ndarray:
        """The image with its boxes of at least `score`."""
        shown = self.above(score)
        texts = [f"{name} {value:.2f}" for name, value in zip(shown.names, shown.scores, strict=True)]
        colours = [drawing.colour_of(label) for label in shown.labels.tolist()]
        return drawing.boxes(self.image if image is None else image, shown.boxes, colours, texts)


@dataclasses.dataclass
class InstancesResult(BoxesResult):
    """Boxes with a mask each. Attributes:
    masks: n COCO run lengths, {"size": [H, W], "counts": text}.
    """

    masks: list[dict[str, Any]]
    MARK: ClassVar[str] = "masks"

    @classmethod
    def of(cls, record: dict[str, Any], common: dict[str, Any]) -> InstancesResult:
        boxes = BoxesResult.of(record, common)
        fields = {field.name: getattr(boxes, field.name) for field in dataclasses.fields(boxes)}
        return cls(**fields, masks=list(record["masks"]))

    def mask(self, n: int) -> np.ndarray:
        """Where detection n is, bool [H, W]."""
        from imgrec_jax.data.annotations import mask_values

        return mask_values(self.masks[n], *self.size)

    def above(self, score: float) -> InstancesResult:
        kept = [mask for mask, value in zip(self.masks, self.scores, strict=True) if value >= score]
        fewer = BoxesResult.above(self, score)
        return dataclasses.replace(
            self, boxes=fewer.boxes, scores=fewer.scores, labels=fewer.labels, names=fewer.names, masks=kept
        )

    def to_json(self) -> dict[str, Any]:
        entries = super().to_json()
        for entry, mask in zip(entries["boxes"], self.masks, strict=True):
            entry["mask"] = mask
        return entries

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Entries with a bbox and a segmentation each; evaluation of masks goes by the latter, sizes included."""
        entries = super().to_coco(image_id, category_ids)
        return [{**entry, "segmentation": mask} for entry, mask in zip(entries, self.masks, strict=True)]

    def draw(self, image: np.ndarray | None = None, score: float = DRAWN_FROM) -> np.ndarray:
        """The image with its masks and boxes of at least `score`; each mask has a colour of its own."""
        shown = self.above(score)
        colours = [drawing.colour_of(n + 1) for n in range(len(shown.masks))]
        filmed = drawing.films(
            drawing.as_rgb(self.image if image is None else image), map(shown.mask, range(len(shown.masks))), colours
        )
        texts = [f"{name} {value:.2f}" for name, value in zip(shown.names, shown.scores, strict=True)]
        return drawing.boxes(filmed, shown.boxes, colours, texts)


@dataclasses.dataclass
class MapResult(Result):
    """Attributes:
    segmentation: the class of each pixel, uint8 [H, W] (uint16 beyond 256 classes).
    objects: the number of each pixel's object, int32 [H, W], 0 where there is none; None of a run that tells no objects apart
      (`eval.objects`).
    """

    segmentation: np.ndarray
    objects: np.ndarray | None = None
    MARK: ClassVar[str] = "segmentation"

    @classmethod
    def of(cls, record: dict[str, Any], common: dict[str, Any]) -> MapResult:
        classes, objects = record["segmentation"], record.get("objects")
        classes = _of_size(classes.astype(np.uint8 if classes.max(initial=0) < 256 else np.uint16), common["size"])
        return cls(**common, segmentation=classes, objects=None if objects is None else _of_size(objects, common["size"]))

    def areas(self) -> list[tuple[int, str, int]]:
        """(class, its name, pixels) of the classes that occur."""
        counts = np.bincount(self.segmentation.ravel())
        return [(int(c), _name(self.class_names, int(c)), int(counts[c])) for c in np.flatnonzero(counts)]

    def to_json(self) -> dict[str, Any]:
        whole = self.segmentation.size
        areas = [{"label": name, "pixels": pixels, "share": pixels / whole} for _, name, pixels in self.areas()]
        line = {"file": self.file, "height": self.size[0], "width": self.size[1], "areas": areas}
        return line if self.objects is None else line | {"objects": int(np.count_nonzero(np.unique(self.objects)))}

    def run_lengths(self) -> Iterator[tuple[int, int, dict]]:
        """(class, pixels, mask as COCO's compressed run lengths) of each object, whose class is that of most of its pixels; of
        a run that tells no objects apart, of each class but the background."""
        from imgrec_jax.data.annotations import encode_mask, encode_numbered

        if self.objects is None:
            yield from ((label, pixels, encode_mask(self.segmentation == label)) for label, _, pixels in self.areas() if label)
            return
        classes = int(self.segmentation.max(initial=0)) + 1
        found = self.objects.astype(np.int64) * classes + self.segmentation
        table = np.bincount(found.ravel(), minlength=(int(self.objects.max(initial=0)) + 1) * classes).reshape(-1, classes)
        for number, coded in encode_numbered(self.objects):
            yield int(table[number, 1:].argmax()) + 1, int(table[number].sum()), coded

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """One entry for each of `run_lengths`."""
        entries = []
        for label, area, coded in self.run_lengths():
            mask = {"size": [int(v) for v in coded["size"]], "counts": coded["counts"].decode()}
            category = int(category_ids[label - 1])
            entries.append({"image_id": image_id, "category_id": category, "segmentation": mask, "score": 1.0, "area": area})
        return entries

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """The image with the areas of its classes, and the objects outlined, where there are any."""
        shown = self.image if image is None else image
        return drawing.areas(shown, self.segmentation, self.class_names, objects=self.objects)


# In the order in which a record is asked for them: one with masks has boxes, too.
KINDS: dict[str, type[Any]] = {kind.MARK: kind for kind in (LabelResult, LabelsResult, InstancesResult, BoxesResult, MapResult)}


def result_of(record: dict[str, Any], **common: Any) -> Result:
    """A record of `Task.records` as a result; common: the fields of `Result`."""
    return next(kind for mark, kind in KINDS.items() if mark in record).of(record, common)


def _of_size(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    return numbers if numbers.shape == size else cv2.resize(numbers, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)
