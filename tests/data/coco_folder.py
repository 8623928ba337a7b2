"""A COCO-format folder written by hand: four images with everything that real ones have."""

import json

import cv2
import numpy as np

SQUARE = [[2, 3, 10, 3, 10, 9, 2, 9]]  # polygon of the box x 2..10, y 3..9


def write(root):
    """(images dir, annotation file): a polygon, run lengths, a crowd, an empty image, ids with holes, listed out of order."""
    images = root / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in (7, 3, 12):
        cv2.imwrite(str(images / f"{number}.jpg"), rng.integers(0, 256, (20, 30, 3), np.uint8))
    cv2.imwrite(str(images / "5.png"), rng.integers(0, 256, (20, 30), np.uint8))  # grey
    counts = [0, 20, 580]  # column-major: the first column of 20 rows
    annotations = [
        {
            "id": 91,
            "image_id": 7,
            "category_id": 18,
            "bbox": [2, 3, 8, 6],
            "area": 48.5,
            "iscrowd": 0,
            "segmentation": SQUARE,
        },
        {"id": 40, "image_id": 7, "category_id": 4, "bbox": [20.5, 10, 9.25, 5], "area": 40, "iscrowd": 0},
        {
            "id": 6,
            "image_id": 12,
            "category_id": 18,
            "bbox": [0, 0, 1, 20],
            "area": 20,
            "iscrowd": 1,
            "segmentation": {"size": [20, 30], "counts": counts},
        },
        {"id": 2, "image_id": 5, "category_id": 4, "bbox": [1, 1, 5, 5]},
    ]
    data = {
        "images": [
            {"id": i, "file_name": f"{i}.{'png' if i == 5 else 'jpg'}", "height": 20, "width": 30} for i in (12, 7, 3, 5)
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": annotations,
    }
    file = root / "instances.json"
    file.write_text(json.dumps(data))
    return images, file
