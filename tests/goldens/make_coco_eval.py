"""Write coco_eval.json: a small made-up ground truth, detections, and the numbers pycocotools gave for them.

python -m tests.goldens.make_coco_eval
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def make(rng: np.random.Generator) -> tuple[dict, list[dict]]:
    """12 images with 0 to 5 objects of 3 classes of all sizes, some of them crowds; shifted, missed and invented detections."""
    images = [{"id": 10 * n + 3, "file_name": f"{n}.jpg", "height": 200, "width": 300} for n in range(12)]
    categories = [{"id": i, "name": name} for i, name in ((2, "ant"), (5, "bee"), (9, "fly"))]
    annotations, results = [], []
    for image in images:
        for _ in range(rng.integers(0, 6)):
            w, h = np.exp(rng.uniform(np.log(8), np.log(150), 2)).round(1)
            x, y = (rng.uniform(0, 1, 2) * [300 - w, 200 - h]).round(1)
            category = int(rng.choice([2, 5, 9]))
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            crowd = int(rng.random() < 0.1)
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "area": w * h}
            annotations.append({**annotation, "bbox": [x, y, w, h], "iscrowd": crowd, "segmentation": polygon})
            for _ in range(rng.integers(0, 3)):
                box = (np.array([x, y, w, h]) * rng.uniform(0.9, 1.1, 4)).round(2).tolist()
                guess = category if rng.random() < 0.8 else int(rng.choice([2, 5, 9]))
                results.append({"image_id": image["id"], "category_id": guess, "bbox": box, "score": round(rng.random(), 3)})
        if rng.random() < 0.5:
            results.append({"image_id": image["id"], "category_id": 5, "bbox": [1, 1, 40, 30], "score": round(rng.random(), 3)})
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, results


def main() -> None:
    truth, results = json.loads(json.dumps(make(np.random.default_rng(0)), default=float))
    coco = COCO()
    coco.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    golden = {"ground_truth": truth, "results": results, "stats": evaluator.stats.tolist()}
    Path(__file__).with_name("coco_eval.json").write_text(json.dumps(golden))


if __name__ == "__main__":
    main()
