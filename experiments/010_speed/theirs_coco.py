"""pycocotools' side of the benchmark: see `ours.py`."""

import contextlib
import io
import sys
from functools import partial

import coco_case
from protocol import serve
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def work(images: int):
    """From results in memory to the twelve numbers; indexing the ground truth and the results is not timed."""
    truth, rows = coco_case.make(images)
    coco = COCO()
    coco.dataset = {"info": {}, **truth}
    results = [
        {"image_id": int(i), "category_id": int(k), "bbox": [x, y, round(x2 - x, 9), round(y2 - y, 9)], "score": score}
        for i, x, y, x2, y2, score, k in rows.tolist()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        found = coco.loadRes(results)

    def run(n: int) -> list[float]:
        for _ in range(n):
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator = COCOeval(coco, found, "bbox")
                evaluator.evaluate()
                evaluator.accumulate()
                evaluator.summarize()
        return evaluator.stats.tolist()

    return run


if __name__ == "__main__":
    serve(partial(work, int(sys.argv[1].rpartition("_")[2])), "pycocotools", warm=0)
