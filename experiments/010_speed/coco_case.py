"""A made-up ground truth of COCO's kind, and detections, for both sides of the benchmark."""

import numpy as np

CLASSES, HEIGHT, WIDTH = 80, 480, 640


def make(images: int, detections: int = 100, seed: int = 0) -> tuple[dict, np.ndarray]:
    """(COCO-format dict of some 7 objects an image, rows [N, 7]: image, x1, y1, x2, y2, score, class).

    Two detections of five lie about an object, four of five of these with its class; others lie anywhere.
    """
    rng = np.random.default_rng(seed)
    image = np.sort(rng.integers(1, images + 1, round(7.3 * images)))
    boxes, labels = _boxes(rng, len(image)), rng.integers(1, CLASSES + 1, len(image))
    crowd, area = rng.random(len(image)) < 0.02, boxes[:, 2] * boxes[:, 3] * rng.uniform(0.5, 1, len(image))
    columns = (image.tolist(), labels.tolist(), boxes.tolist(), area.tolist(), crowd.tolist())
    objects = [
        {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": a, "iscrowd": int(c)}
        for n, (i, k, box, a, c) in enumerate(zip(*columns, strict=True), start=1)
    ]
    of = np.repeat(np.arange(1, images + 1), detections)
    found, category = _boxes(rng, len(of)), rng.integers(1, CLASSES + 1, len(of))
    start, stop = np.searchsorted(image, of), np.searchsorted(image, of, side="right")
    near = (rng.random(len(of)) < 0.4) & (stop > start)
    one = (start + rng.random(len(of)) * (stop - start)).astype(int)[near]
    found[near] = boxes[one] * rng.uniform(0.85, 1.15, (len(one), 4))
    category[near] = np.where(rng.random(len(one)) < 0.8, labels[one], category[near])
    score = np.round(np.clip(rng.normal(0.3 + 0.3 * near, 0.2), 0, 1), 3)
    rows = np.column_stack([of, found[:, :2], found[:, :2] + found[:, 2:], score, category])
    truth = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, CLASSES + 1)],
        "annotations": objects,
    }
    return truth, rows


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """x, y, width, height [count, 4]."""
    size = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    return np.round(np.concatenate([rng.random((count, 2)) * ((WIDTH, HEIGHT) - size), size], axis=1), 2)
