"""COCO detection evaluation: the twelve numbers for boxes and masks, AP per class, and errors at one score threshold.

All numbers are those of pycocotools, to the last bit, over the images of the ground truth, so an image without detections
counts as missed and one without objects as a chance for false alarms; crowd regions are ignored as COCO prescribes. Detections
travel as rows (image_id, x1, y1, x2, y2, score, category_id) float64 in pixels of the original image.

Shape letters: B batch, D detections, K classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from imgrec_jax.detection import coco_numbers

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
ROW = ("image_id", "x1", "y1", "x2", "y2", "score", "category_id")


def to_rows(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    valid: np.ndarray,
    *,
    image_ids: np.ndarray,
    image_size: np.ndarray,
    original_size: np.ndarray,
    category_ids: Sequence[int],
) -> np.ndarray:
    """A batch of predictions as rows [D, 7], rescaled from the resized to the original images.

    Args:
      boxes [B, D, 4], scores [B, D], labels [B, D] (1..K) and valid [B, D] as predicted on resized images.
      image_ids [B]; image_size, original_size [B, 2] (h, w).
      category_ids: the data set's own numbers of labels 1..K.
    """
    # torchvision rescales by float32 ratios (transform.py:306-319); float64 here moves a corner by less than 1e-4 px.
    ratio = np.asarray(original_size, np.float64) / np.maximum(image_size, 1)
    scaled = np.asarray(boxes, np.float64) * ratio[:, None, [1, 0, 1, 0]]
    b, d = np.nonzero(valid)
    categories = np.asarray(category_ids)[np.asarray(labels)[b, d] - 1]
    columns = [np.asarray(image_ids)[b], *scaled[b, d].T, np.asarray(scores, np.float64)[b, d], categories]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


@dataclasses.dataclass(frozen=True)
class CocoResult:
    summary: dict[str, float]  # SUMMARY; nan where no object is of that kind
    class_ap: dict[str, float]  # AP over IoU .50:.95 by class name
    images: int  # evaluated

    def table(self) -> str:
        """The twelve numbers and AP per class, to print."""
        head = "  ".join(f"{name} {value:.3f}" for name, value in self.summary.items())
        return "\n".join([head, *(f"  {name:<20} AP {value:.3f}" for name, value in self.class_ap.items())])


def load_ground_truth(ground_truth: dict):
    """A COCO-format dict as pycocotools' indexed `COCO`, built once for many evaluations."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {"info": {}, **ground_truth}
    with _quiet():
        coco.createIndex()
    return coco


def evaluate(ground_truth, detections: np.ndarray | list[dict], *, iou_type: str = "bbox", engine: str = "numpy") -> CocoResult:
    """COCO's numbers.

    Args:
      ground_truth: from `load_ground_truth`, or the COCO-format dict itself.
      detections: rows [D, 7], or COCO's list of results (with "segmentation" for masks); may be empty.
      iou_type: "bbox" or "segm".
      engine: "numpy", all images at once; "pycocotools", the program of COCO's authors; "faster_coco_eval" where that package
        is installed. All give the same numbers.

    Raises:
      ValueError: on an unknown iou_type or engine, or detections of an image that the ground truth does not list.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type={iou_type!r}: expected 'bbox' or 'segm'")
    truth = load_ground_truth(ground_truth) if isinstance(ground_truth, dict) else ground_truth
    if engine == "numpy":
        precision, recall = coco_numbers.tables(_matched(truth, detections, iou_type))
        stats = _stats(precision, recall)
    else:
        with _quiet():
            evaluator = _evaluator(engine)(truth, _detected(truth, detections, iou_type), iouType=iou_type)
            evaluator.params.imgIds = sorted(truth.imgs)  # of the ground truth: no detection is a miss, not an absence
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        stats = np.asarray(evaluator.stats[: len(SUMMARY)], np.float64)  # faster_coco_eval appends numbers of its own
        stats, precision = np.where(stats < 0, np.nan, stats), evaluator.eval["precision"]  # -1 is "no such object"
    # precision [IoU, recall, class, area, max detections]: all areas, 100 detections
    precision = precision[:, :, :, 0, -1]
    names = [truth.cats[category]["name"] for category in sorted(truth.cats)]
    per_class = [_mean(precision[:, :, k]) for k in range(len(names))]
    return CocoResult(
        dict(zip(SUMMARY, stats.tolist(), strict=True)), dict(zip(names, per_class, strict=True)), len(truth.imgs)
    )


def by_images(ground_truth, detections: np.ndarray) -> Callable[[np.ndarray], float | None]:
    """AP as a function of how often each image counts, in the order of the ground truth's sorted ids; see `errors`."""
    from imgrec_jax.detection.errors import ap_of_weighted_images

    truth = load_ground_truth(ground_truth) if isinstance(ground_truth, dict) else ground_truth
    return ap_of_weighted_images(_matched(truth, detections, "bbox", coco_numbers.AREAS[:1]))


def _stats(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """The numbers of SUMMARY [12]; nan where no object is of that kind."""
    at = {round(iou, 2): [n] for n, iou in enumerate(coco_numbers.IOUS.tolist())}
    ap = [_mean(precision[t, :, :, a, -1]) for t, a in ((slice(None), 0), (at[0.5], 0), (at[0.75], 0))]
    ap += [_mean(precision[:, :, :, a, -1]) for a in (1, 2, 3)]
    ar = [_mean(recall[:, :, a, m]) for a, m in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (3, 2))]
    return np.array(ap + ar)


def _matched(
    truth, detections: np.ndarray | list[dict], iou_type: str, areas: tuple[tuple[float, float], ...] = coco_numbers.AREAS
) -> coco_numbers.Matched:
    """The detections matched with the objects of the ground truth, images and classes by rising ids."""
    images = {image: n for n, image in enumerate(sorted(truth.imgs))}
    labels = {category: n for n, category in enumerate(sorted(truth.cats))}
    objects, there = _objects(truth, iou_type, images, labels)
    found, regions = _found(truth, detections, iou_type, images, labels)
    compare = _box_overlaps(regions, there, objects.crowd)
    if iou_type == "segm":
        compare = _mask_overlaps(regions, there, objects)
    return coco_numbers.match(found, objects, len(images), len(labels), compare, areas)


def _objects(truth, iou_type: str, images: dict, labels: dict) -> tuple[coco_numbers.Regions, Any]:
    """(objects, boxes [G, 4] or the run lengths of each)."""
    kept = [a for a in truth.anns.values() if a["image_id"] in images and a["category_id"] in labels]
    if iou_type == "segm":
        for annotation in kept:  # kept for the next evaluation, as pycocotools does
            annotation["segmentation"] = truth.annToRLE(annotation)
    regions = coco_numbers.Regions(
        np.array([images[a["image_id"]] for a in kept], np.int64),
        np.array([labels[a["category_id"]] for a in kept], np.int64),
        np.array([a["area"] for a in kept], np.float64),
        np.array([bool(a["iscrowd"]) for a in kept], np.bool_),
        np.array([a["id"] != 0 for a in kept], np.bool_),
        np.zeros(len(kept)),
    )
    return regions, [a["segmentation"] for a in kept] if iou_type == "segm" else _boxes([a["bbox"] for a in kept])


def _found(
    truth, detections: np.ndarray | list[dict], iou_type: str, images: dict, labels: dict
) -> tuple[coco_numbers.Regions, Any]:
    """(detections of the classes of the ground truth, boxes (x, y, width, height) [N, 4] or the run lengths of each)."""
    from pycocotools import mask as coco_mask

    regions: Any
    if isinstance(detections, np.ndarray):
        _no_masks(iou_type)
        image_ids, categories, scores = detections[:, 0], detections[:, 6], detections[:, 5]
        regions = _xywh(detections)
    else:
        image_ids, categories, scores = (
            np.array([d[key] for d in detections], np.float64) for key in ("image_id", "category_id", "score")
        )
        if iou_type == "segm" or (detections and not detections[0].get("bbox")):
            regions = [truth.annToRLE(d) for d in detections if d["image_id"] in images]
        else:
            regions = _boxes([d["bbox"] for d in detections])
    image, known_image = _positions(image_ids, list(images))
    label, known = _positions(categories, list(labels))
    _no_other_images(image_ids[~known_image].tolist())
    if not isinstance(regions, np.ndarray):
        area = np.array([coco_mask.area(mask) for mask in regions], np.float64)  # of a list it takes them for bytes
        regions = regions if iou_type == "segm" else np.asarray(coco_mask.toBbox(regions)).reshape(-1, 4)
    else:
        area = regions[:, 2] * regions[:, 3]
    nothing = np.zeros(int(known.sum()), np.bool_)
    chosen = coco_numbers.Regions(image[known], label[known], area[known], nothing, ~nothing, scores[known])
    if isinstance(regions, np.ndarray):
        return chosen, regions[known]
    return chosen, [regions[n] for n in np.flatnonzero(known).tolist()]


def _positions(values: np.ndarray, ids: list) -> tuple[np.ndarray, np.ndarray]:
    """(position of each value among rising ids, whether it is one of them)."""
    known = np.array(ids, np.float64)
    at = np.minimum(np.searchsorted(known, values), max(len(known) - 1, 0))
    return at, (known[at] == values if len(known) else np.zeros(len(values), np.bool_))


def _boxes(boxes: list) -> np.ndarray:
    return np.array(boxes, np.float64).reshape(-1, 4)


def _box_overlaps(found: Any, there: Any, crowd: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """See `coco_numbers.match`: the operations of cocoapi's maskApi.c, bbIou, in their order."""

    def overlaps(d: np.ndarray, g: np.ndarray) -> np.ndarray:
        one, two = found[d].T, there[g].T
        width = np.minimum(one[2] + one[0], two[2] + two[0]) - np.maximum(one[0], two[0])
        height = np.minimum(one[3] + one[1], two[3] + two[1]) - np.maximum(one[1], two[1])
        both, area = width * height, one[2] * one[3]
        union = np.where(crowd[g], area, area + two[2] * two[3] - both)
        return np.divide(both, union, out=np.zeros(len(d)), where=(width > 0) & (height > 0))

    return overlaps


def _mask_overlaps(found: list, there: list, objects: coco_numbers.Regions) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """See `coco_numbers.match`; one call for the detections and objects of an image and class."""
    from pycocotools import mask as coco_mask

    def overlaps(d: np.ndarray, g: np.ndarray) -> np.ndarray:
        other = np.diff(objects.image[g], prepend=-1) | np.diff(objects.label[g], prepend=-1)
        borders = [*np.flatnonzero(other).tolist(), len(d)]  # one alone where nothing meets anything
        parts = [np.zeros(0)]
        for start, stop in itertools.pairwise(borders):
            ds = d[start:stop]
            ours = ds[np.flatnonzero(np.diff(ds, prepend=-1))].tolist()
            theirs = g[start : start + (stop - start) // len(ours)].tolist()
            crowds = objects.crowd[theirs].astype(int).tolist()
            parts.append(coco_mask.iou([found[n] for n in ours], [there[n] for n in theirs], crowds).ravel())
        return np.concatenate(parts)

    return overlaps


def _evaluator(engine: str) -> type:
    if engine == "pycocotools":
        from pycocotools.cocoeval import COCOeval

        return COCOeval
    if engine == "faster_coco_eval":
        from faster_coco_eval import COCOeval_faster

        return COCOeval_faster
    raise ValueError(f"engine={engine!r}: expected 'numpy', 'pycocotools' or 'faster_coco_eval'")


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")


def _detected(truth, detections: np.ndarray | list[dict], iou_type: str):
    """Detections as pycocotools' `COCO`, also where there is none."""
    from pycocotools.coco import COCO

    if isinstance(detections, np.ndarray):
        _no_masks(iou_type)
        detections = _as_results(detections)
    if iou_type == "segm":  # pycocotools would take the size of an object from its box
        detections = [{key: value for key, value in entry.items() if key != "bbox"} for entry in detections]
    _no_other_images({d["image_id"] for d in detections} - set(truth.imgs))
    if len(detections):
        return truth.loadRes([dict(d) for d in detections])  # loadRes writes ids and areas into the dicts
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _no_masks(iou_type: str) -> None:
    if iou_type == "segm":
        raise ValueError("iou_type='segm' needs results with a 'segmentation' each, not rows of boxes")


def _no_other_images(unknown: Collection[float]) -> None:
    if unknown:
        raise ValueError(f"detections of image {min(unknown):g}, which the ground truth does not list; do their ids agree?")


def with_masks(rows: np.ndarray, masks: Sequence[dict]) -> list[dict]:
    """Rows [D, 7] and the mask of each, as run lengths -> COCO's list of results."""
    return [{**result, "segmentation": mask} for result, mask in zip(_as_results(rows), masks, strict=True)]


def _as_results(rows: np.ndarray) -> list[dict]:
    return [
        {"image_id": int(image_id), "category_id": int(category), "bbox": box, "score": score}
        for (image_id, *_, score, category), box in zip(rows.tolist(), _xywh(rows).tolist(), strict=True)
    ]


def _xywh(rows: np.ndarray) -> np.ndarray:
    """x, y, width, height [D, 4] of rows; as in the files that rows were read from, or are written to.

    (x + w) - x is w but for some 1e-13, and files write w in few decimals: rounded to 9 of them it comes back to the last bit.
    """
    return np.concatenate([rows[:, 1:3], np.round(rows[:, 3:5] - rows[:, 1:3], 9)], axis=1)


@dataclasses.dataclass(frozen=True)
class Confusion:
    """counts int64 [K + 1, K + 1]: true class by detected class; the last row and column are the background.

    counts[k, K] are missed objects of class k, counts[K, k] false alarms as class k; sums of such matrices are meaningful.
    """

    counts: np.ndarray
    class_names: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        """precision, recall and F1 over all classes (micro); nan where nothing was detected, or nothing was there."""
        true = float(np.trace(self.counts[:-1, :-1]))
        detected, present = float(self.counts[:, :-1].sum()), float(self.counts[:-1].sum())
        return {
            "precision": true / detected if detected else float("nan"),
            "recall": true / present if present else float("nan"),
            "f1": 2 * true / (detected + present) if detected + present else float("nan"),
        }


def confusion(
    ground_truth,
    detections: np.ndarray,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    masks: Sequence[dict] | None = None,
) -> Confusion:
    """Which class was taken for which among detections of at least `score_threshold`.

    In each image, first detections and objects of the same class are matched greedily by falling score, each to the object of
    highest IoU >= `iou_threshold` still free; what is left is matched alike between different classes. A detection that
    remains and lies by more than `iou_threshold` of its own area in a crowd region of its class is ignored.
    With `masks`, the run lengths of each detection, the IoU is that of masks.
    """
    truth = load_ground_truth(ground_truth) if isinstance(ground_truth, dict) else ground_truth
    categories = list(truth.cats)  # in the order of the ground truth's list: that of the labels, whatever their ids
    position = {category: k for k, category in enumerate(categories)}
    counts = np.zeros((len(categories) + 1,) * 2, np.int64)
    order = np.argsort(-detections[:, 5], kind="stable")
    order = order[detections[order, 5] >= score_threshold]
    rows = detections[order]
    for image_id in truth.imgs:
        mine = rows[:, 0] == image_id
        annotations = [truth.anns[i] for i in truth.getAnnIds(imgIds=[image_id])]
        regions: Any = _xywh(rows[mine])
        there = [a["bbox"] for a in annotations]
        if masks is not None:
            regions, there = [masks[n] for n in order[mine]], [truth.annToRLE(a) for a in annotations]
        _count_image(counts, rows[mine], regions, annotations, there, position, iou_threshold)
    return Confusion(counts, tuple(truth.cats[category]["name"] for category in categories))


def _count_image(
    counts: np.ndarray,
    found: np.ndarray,
    found_regions: Any,
    annotations: list[dict],
    regions: list,
    position: dict,
    threshold: float,
) -> None:
    """found_regions, regions: boxes (x, y, width, height) or run lengths of the detections and of the annotations."""
    crowd = np.array([bool(a["iscrowd"]) for a in annotations], bool)
    detected = np.array([position[int(category)] for category in found[:, 6]], np.int64)
    labels = np.array([position[a["category_id"]] for a in annotations], np.int64)
    true = labels[~crowd]
    iou = overlaps(found_regions, [r for r, c in zip(regions, crowd, strict=True) if not c], crowds=False)
    free_detection, free_object = np.ones(len(found), bool), np.ones(len(true), bool)
    same = detected[:, None] == true
    for allowed in (same, ~same):
        for d in np.flatnonzero(free_detection):
            candidates = np.where(free_object & allowed[d], iou[d], -1.0)
            if candidates.size and candidates.max() >= threshold:
                best = int(candidates.argmax())
                free_detection[d] = free_object[best] = False
                counts[true[best], detected[d]] += 1
    np.add.at(counts[:, -1], true[free_object], 1)
    covered = overlaps(found_regions, [r for r, c in zip(regions, crowd, strict=True) if c], crowds=True)
    covered = np.where(detected[:, None] == labels[crowd], covered, 0.0).max(axis=1, initial=0.0)
    for d in np.flatnonzero(free_detection):
        if covered[d] < threshold:
            counts[-1, detected[d]] += 1


def overlaps(found: Any, regions: list, *, crowds: bool = False) -> np.ndarray:
    """IoU, or of crowds the share of a detection inside, [D, G]; of boxes or of run lengths."""
    from pycocotools import mask as coco_mask

    if not len(found) or not regions:
        return np.zeros((len(found), len(regions)))
    there = regions if isinstance(regions[0], dict) else np.array(regions, np.float64)
    return np.asarray(coco_mask.iou(found, there, [int(crowds)] * len(regions)))


def _quiet():
    """pycocotools prints its progress; the numbers are returned, so nothing is lost."""
    return contextlib.redirect_stdout(io.StringIO())
