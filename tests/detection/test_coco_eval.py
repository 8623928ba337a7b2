"""COCO evaluation: published numbers, a golden, cases by hand, and the confusion matrix."""

import contextlib
import copy
import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from imgrec_jax.data.annotations import Annotations, encode_mask, from_images
from imgrec_jax.data.ops.geometry import boxes_of_masks
from imgrec_jax.data.sets import coco
from imgrec_jax.detection import coco_eval, coco_numbers

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "coco_eval.json").read_text())
REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "cocoeval_ref"
RESULTS = "instances_val2014_fake{}100_results.json"
# cocoapi results/val2014_fake_eval_res.txt
PUBLISHED = {
    "bbox": (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564),
    "segm": (0.320, 0.562, 0.299, 0.387, 0.310, 0.327, 0.268, 0.415, 0.417, 0.469, 0.377, 0.381),
}


@pytest.fixture(params=["numpy", "pycocotools", "faster_coco_eval"])
def engine(request):
    pytest.importorskip(request.param)
    return request.param


def truth(objects, images=(1, 2), categories=(3, 7)):
    """Ground truth from (image_id, category_id, xyxy, crowd)."""
    annotations = [
        {
            "id": n,
            "image_id": image,
            "category_id": category,
            "iscrowd": int(crowd),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
        }
        for n, (image, category, (x1, y1, x2, y2), crowd) in enumerate(objects, start=1)
    ]
    return {
        "images": [{"id": i, "height": 100, "width": 100} for i in images],
        "categories": [{"id": i, "name": f"class {i}"} for i in categories],
        "annotations": annotations,
    }


def rows(*detections):
    """Rows from (image_id, category_id, xyxy, score)."""
    return np.array([(i, *box, score, category) for i, category, box, score in detections], np.float64).reshape(-1, 7)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_numbers(iou_type, engine):
    if not REFERENCE.exists():
        pytest.skip("needs ../shared/data/cocoeval_ref")
    ground_truth = json.loads((REFERENCE / "instances_val2014_100.json").read_text())
    detections = json.loads((REFERENCE / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    result = coco_eval.evaluate(ground_truth, detections, iou_type=iou_type, engine=engine)
    assert tuple(result.summary) == coco_eval.SUMMARY and result.images == 100
    np.testing.assert_array_equal(np.round(list(result.summary.values()), 3), PUBLISHED[iou_type])


def same(one, two):
    """Equal to the last bit; NaN equals NaN."""
    np.testing.assert_equal(dataclasses.asdict(one), dataclasses.asdict(two))


def raw_pycocotools(iou_type):
    """The twelve numbers and AP by class name that pycocotools gives for the files themselves."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(REFERENCE / "instances_val2014_100.json")
        evaluator = COCOeval(truth, truth.loadRes(str(REFERENCE / RESULTS.format(iou_type))), iou_type)
        evaluator.params.imgIds = sorted(truth.imgs)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    names = [truth.cats[category]["name"] for category in evaluator.params.catIds]
    known = {name: precision[:, :, k][precision[:, :, k] > -1] for k, name in enumerate(names)}
    return evaluator.stats, {name: float(values.mean()) for name, values in known.items() if values.size}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("through", ["memory", "disk"])
def test_a_table_read_from_the_file_gives_pycocotools_numbers_to_the_last_bit(iou_type, through, tmp_path):
    if not REFERENCE.exists():
        pytest.skip("needs ../shared/data/cocoeval_ref")
    table = coco.read_folder(REFERENCE, REFERENCE / "instances_val2014_100.json").annotations
    if through == "disk":
        table.save(tmp_path / "table.npz")
        table = Annotations.load(tmp_path / "table.npz", masks=True)
    detections = json.loads((REFERENCE / RESULTS.format(iou_type)).read_text())
    result = coco_eval.evaluate(table.to_coco(), detections, iou_type=iou_type)
    stats, by_class = raw_pycocotools(iou_type)
    assert list(result.summary.values()) == stats.tolist()
    assert {name: value for name, value in result.class_ap.items() if not math.isnan(value)} == by_class
    if iou_type == "bbox":
        assert result.summary["AP"] == pytest.approx(0.504581, abs=5e-7)  # float32 boxes gave .504420
        assert result.class_ap["baseball bat"] == pytest.approx(0.3533, abs=5e-5)  # and .3421
        given = [(r["image_id"], r["category_id"], r["score"], *r["bbox"]) for r in detections]
        as_rows = rows(*((i, category, (x, y, x + w, y + h), score) for i, category, score, x, y, w, h in given))
        same(coco_eval.evaluate(table.to_coco(), as_rows), result)
        assert coco.results(as_rows) == [
            {key: r[key] for key in ("image_id", "category_id", "bbox", "score")} for r in detections
        ]


def test_what_a_model_finds_is_scored_as_the_file_that_is_written_of_it():
    """Float32 predictions, rescaled; the file's json is read again."""
    rng, shape = np.random.default_rng(0), (20, 15)
    corner, size = rng.uniform(0, 60, (*shape, 2)), rng.uniform(5, 40, (*shape, 2))
    boxes = np.concatenate([corner, corner + size], axis=-1).astype(np.float32)
    found = coco_eval.to_rows(
        boxes, rng.random(shape, np.float32), rng.integers(1, 3, shape), rng.random(shape) < 0.8, image_ids=np.arange(1, 21),
        image_size=np.full((20, 2), 113), original_size=np.full((20, 2), 97), category_ids=(3, 7),
    )  # fmt: skip
    objects = [(int(i), int(c), (x1 + 1, y1, x2, y2 + 2), False) for i, x1, y1, x2, y2, _, c in found[::3].tolist()]
    ground_truth = truth(objects, images=range(1, 21))
    written = json.loads(json.dumps(coco.results(found)))
    same(coco_eval.evaluate(ground_truth, written), coco_eval.evaluate(ground_truth, found))


def test_golden(engine, capsys):
    result = coco_eval.evaluate(GOLDEN["ground_truth"], GOLDEN["results"], engine=engine)
    np.testing.assert_allclose(list(result.summary.values()), GOLDEN["stats"], atol=1e-12)
    as_rows = rows(
        *(
            (r["image_id"], r["category_id"], (x, y, x + w, y + h), r["score"])
            for r in GOLDEN["results"]
            for x, y, w, h in [r["bbox"]]
        )
    )
    again = coco_eval.evaluate(coco_eval.load_ground_truth(GOLDEN["ground_truth"]), as_rows, engine=engine)
    np.testing.assert_allclose(list(again.summary.values()), GOLDEN["stats"], atol=1e-12)
    np.testing.assert_allclose(np.mean(list(again.class_ap.values())), again.summary["AP"])
    assert capsys.readouterr().out == ""


def test_perfect_detections_and_a_missed_image(engine):
    """One of two objects found: recall 1/2, precision 1 up to recall .5, so AP is 51 of 101 recall points."""
    ground_truth = truth([(1, 3, (10, 10, 50, 50), False), (2, 3, (10, 10, 50, 50), False)])
    both = rows((1, 3, (10, 10, 50, 50), 0.9), (2, 3, (10, 10, 50, 50), 0.8))
    assert coco_eval.evaluate(ground_truth, both, engine=engine).summary["AP"] == pytest.approx(1)
    half = coco_eval.evaluate(ground_truth, both[:1], engine=engine)
    assert half.summary["AP"] == pytest.approx(51 / 101) and half.summary["AR100"] == pytest.approx(0.5)
    assert half.class_ap["class 3"] == pytest.approx(51 / 101) and math.isnan(half.class_ap["class 7"])
    assert math.isnan(half.summary["APs"]) and half.summary["APm"] == pytest.approx(51 / 101)  # 40 x 40 is medium


def test_nothing_detected_is_zero(engine):
    result = coco_eval.evaluate(truth([(1, 3, (10, 10, 50, 50), False)]), rows(), engine=engine)
    assert result.summary["AP"] == 0 and result.summary["AR100"] == 0


@pytest.mark.parametrize("detected", [[], [(1, 7)], [(2, 3)], [(1, 7), (2, 3)], [(1, 3)]])
def test_masks_that_meet_no_object(engine, detected):
    """Nothing found, or in the other image or of the other class alone; the last one meets."""
    from pycocotools import mask as coco_mask

    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    ground_truth = truth([(1, 3, (10, 10, 30, 30), False)])
    ground_truth["annotations"][0]["segmentation"] = coco_mask.encode(mask)
    detections = [
        {"image_id": image, "category_id": category, "score": 0.9, "segmentation": coco_mask.encode(mask)}
        for image, category in detected
    ]
    result = coco_eval.evaluate(ground_truth, detections, iou_type="segm", engine=engine)
    assert result.summary["AP"] == pytest.approx(float((1, 3) in detected))


def test_crowds_and_empty_images(engine):
    """Detections inside a crowd count for nothing; one on an image without objects is a false alarm."""
    ground_truth = truth([(1, 3, (10, 10, 50, 50), False), (1, 3, (60, 0, 100, 100), True)], images=(1, 2))
    found = (1, 3, (10, 10, 50, 50), 0.5)
    in_crowd = [(1, 3, (65, 10 * n, 75, 10 * n + 10), 0.9) for n in range(5)]
    assert coco_eval.evaluate(ground_truth, rows(found, *in_crowd), engine=engine).summary["AP"] == pytest.approx(1)
    alarm = (2, 3, (0, 0, 20, 20), 0.9)
    assert coco_eval.evaluate(ground_truth, rows(found, alarm), engine=engine).summary["AP"] == pytest.approx(0.5)


def test_masks_from_run_lengths(engine):
    from pycocotools import mask as coco_mask

    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[10:50, 10:50] = 1
    ground_truth = truth([(1, 3, (10, 10, 50, 50), False)])
    ground_truth["annotations"][0]["segmentation"] = coco_mask.encode(mask)
    mask[30:50] = 0  # half of it: IoU .5, a match at the first of ten thresholds
    detection = {"image_id": 1, "category_id": 3, "score": 0.9, "segmentation": coco_mask.encode(mask)}
    result = coco_eval.evaluate(ground_truth, [detection], iou_type="segm", engine=engine)
    assert result.summary["AP50"] == pytest.approx(1) and result.summary["AP"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="'segmentation' each"):
        coco_eval.evaluate(ground_truth, rows(), iou_type="segm")


def test_a_table_of_annotations_agrees_with_itself(engine):
    """The ground truth of a source, given as detections, is found completely, by box and by mask."""
    masks = np.zeros((3, 40, 60), np.bool_)
    masks[0, 5:20, 5:20] = masks[1, 10:35, 30:55] = masks[2, 2:12, 40:58] = True
    boxes = boxes_of_masks(masks)
    row = {
        "image_id": 5,
        "file_name": "a.png",
        "size": (40, 60),
        "boxes": boxes,
        "labels": [1, 2, 1],
        "crowd": [False] * 3,
    }
    row |= {"ids": [1, 2, 3], "areas": masks.sum((1, 2)), "segmentations": [encode_mask(mask) for mask in masks]}
    table = from_images([row], class_names=("ant", "bee"), category_ids=(2, 9))
    perfect = rows(*((5, (2, 9, 2)[n], tuple(boxes[n]), 0.9) for n in range(3)))
    results = [
        {"image_id": 5, "category_id": a["category_id"], "score": 0.9, "segmentation": a["segmentation"]}
        for a in table.to_coco()["annotations"]
    ]
    assert coco_eval.evaluate(table.to_coco(), perfect, engine=engine).summary["AP"] == pytest.approx(1)
    by_mask = coco_eval.evaluate(table.to_coco(), results, iou_type="segm", engine=engine)
    assert by_mask.summary["AP"] == pytest.approx(1) and set(by_mask.class_ap) == {"ant", "bee"}


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="detections of image 9"):
        coco_eval.evaluate(truth([(1, 3, (0, 0, 9, 9), False)]), rows((9, 3, (0, 0, 9, 9), 1)))
    with pytest.raises(ValueError, match="iou_type='keypoints'"):
        coco_eval.evaluate(truth([]), rows(), iou_type="keypoints")
    with pytest.raises(ValueError, match="engine='detectron'"):
        coco_eval.evaluate(truth([]), rows(), engine="detectron")


def test_rows_are_rescaled_and_renumbered():
    got = coco_eval.to_rows(
        boxes=np.array([[[10, 20, 30, 40], [0, 0, 1, 1]], [[1, 2, 3, 4], [5, 6, 7, 8]]], np.float32),
        scores=np.array([[0.5, 0.4], [0.25, 0.75]], np.float32),
        labels=np.array([[2, 1], [1, 2]]),
        valid=np.array([[True, False], [False, True]]),
        image_ids=np.array([11, 12]),
        image_size=np.array([[100, 200], [10, 10]]),
        original_size=np.array([[50, 400], [10, 10]]),
        category_ids=(4, 90),
    )
    np.testing.assert_array_equal(got, [[11, 20, 10, 60, 20, 0.5, 90], [12, 5, 6, 7, 8, 0.75, 90]])


def test_confusion_by_hand():
    ground_truth = truth(
        [
            (1, 3, (0, 0, 20, 20), False),  # found twice: once right, once as 7
            (1, 7, (40, 0, 60, 20), False),  # taken for 3
            (1, 7, (0, 40, 20, 60), False),  # missed
            (2, 3, (50, 50, 100, 100), True),
        ]
    )
    detections = rows(
        (1, 7, (0, 0, 20, 20), 0.95),
        (1, 3, (0, 0, 20, 18), 0.9),  # lower score, but of the right class
        (1, 3, (40, 0, 60, 20), 0.8),
        (1, 7, (0, 40, 20, 60), 0.3),  # below the threshold
        (2, 3, (60, 60, 70, 70), 0.9),  # inside the crowd
        (2, 7, (60, 60, 70, 70), 0.9),  # of another class than the crowd
    )
    matrix = coco_eval.confusion(ground_truth, detections, score_threshold=0.5)
    np.testing.assert_array_equal(matrix.counts, [[1, 0, 0], [1, 0, 1], [0, 2, 0]])
    assert matrix.class_names == ("class 3", "class 7")
    assert matrix.scores() == {
        "precision": pytest.approx(1 / 4),
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(2 / 7),
    }


def test_confusion_takes_the_best_overlap_and_one_object_each():
    ground_truth = truth([(1, 3, (0, 0, 20, 20), False), (1, 3, (4, 0, 24, 20), False)])
    detections = rows((1, 3, (4, 0, 24, 20), 0.9), (1, 3, (0, 0, 20, 20), 0.8), (1, 3, (0, 0, 20, 20), 0.7))
    np.testing.assert_array_equal(coco_eval.confusion(ground_truth, detections).counts, [[2, 0, 0], [0, 0, 0], [1, 0, 0]])


def test_confusion_of_nothing():
    matrix = coco_eval.confusion(truth([]), rows())
    assert not matrix.counts.any() and all(math.isnan(value) for value in matrix.scores().values())
    missed = coco_eval.confusion(truth([(1, 3, (0, 0, 9, 9), False)]), rows()).scores()
    assert math.isnan(missed["precision"]) and missed["recall"] == 0 and missed["f1"] == 0


def crowded(rng, iou_type):
    """(ground truth, results): equal scores and IoUs, crowds, areas at the edge of a range, an object of id 0, more detections
    than count, classes without objects or detections, and detections of a class that is none."""
    from pycocotools import mask as coco_mask

    annotations, results = [], []

    def entry(image, category, box):
        x, y, w, h = map(int, box)
        found = {"image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h}
        if iou_type == "segm":
            mask = np.zeros((120, 120), np.uint8, order="F")
            mask[y : y + h, x : x + w] = 1
            found["segmentation"] = coco_mask.encode(mask)
        return found

    for image in (7, 3, 12, 5, 9):
        boxes = [*rng.integers([0, 0, 4, 4], [30, 30, 97, 90], (8, 4)), (0, 0, 32, 32), (10, 10, 96, 96)]
        for box in boxes[: 0 if image == 9 else None]:
            crowd = int(rng.random() < 0.2)
            annotations.append(entry(image, int(rng.integers(1, 4)), box) | {"id": len(annotations), "iscrowd": crowd})
        for box in boxes:
            for _ in range(14 if image == 12 else 3):
                shifted = np.clip(box + rng.integers(-2, 3, 4), [0, 0, 1, 1], 96)
                category = int(rng.choice([1, 1, 1, 2, 3, 4, 77]))
                results.append(entry(image, category, shifted) | {"score": round(float(rng.random()), 1)})
    truth_of = {"images": [{"id": i, "height": 120, "width": 120} for i in (3, 5, 7, 9, 12)], "annotations": annotations}
    return truth_of | {"categories": [{"id": i, "name": str(i)} for i in (5, 4, 3, 2, 1)]}, results


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_all_images_at_once_give_pycocotools_numbers_to_the_last_bit(seed, iou_type):
    ground_truth, results = crowded(np.random.default_rng(seed), iou_type)
    made = [coco_eval.evaluate(copy.deepcopy(ground_truth), results, iou_type=iou_type, engine=engine)
            for engine in ("numpy", "pycocotools")]  # fmt: skip
    same(*made)
    assert 0 < made[0].summary["APs"] < 1 and math.isnan(made[0].class_ap["5"])


@pytest.mark.parametrize("kind", ["precision", "recall"])
def test_every_entry_of_the_tables_is_pycocotools(kind):
    from pycocotools.cocoeval import COCOeval

    ground_truth, results = crowded(np.random.default_rng(9), "bbox")
    loaded = coco_eval.load_ground_truth(ground_truth)
    tables = dict(zip(("precision", "recall"), coco_numbers.tables(coco_eval._matched(loaded, results, "bbox")), strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(loaded, loaded.loadRes([dict(r) for r in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    np.testing.assert_array_equal(tables[kind], evaluator.eval[kind])
