"""`eval.window` of detectors: small objects on seams of a large picture, in evaluation and in prediction alike."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from imgrec_jax import assemble, metrics
from imgrec_jax.assemble import preprocess
from imgrec_jax.assemble.task import summary_of_detections
from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.canvases import collate_boxes
from imgrec_jax.data.pieces import Pieces, cut
from imgrec_jax.data.pipeline import Pipeline
from imgrec_jax.data.source import ArraySource, SourceInfo
from imgrec_jax.detection import windows
from imgrec_jax.detection.detections import Detections
from imgrec_jax.inference import predictor
from imgrec_jax.parallel import make_layout
from imgrec_jax.run import evaluate
from imgrec_jax.tasks import detect
from tests import small_runs

SIDE = 8  # of an object, in a picture that is looked at in windows of 64 pixels


def draw(folder, count=3, size=(150, 200)):
    """Dark pictures with bright squares, some of them on every seam of windows of 64 pixels; val.json in COCO's format."""
    (folder / "val").mkdir(parents=True)
    rng = np.random.default_rng(0)
    found = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]}
    starts = [one.start for one in windows.windows_of(size, (64, 64), 0.25)[1:]]
    for n in range(1, count + 1):
        image = np.zeros((*size, 3), np.uint8)
        corners = [(top + 60, left + 30) for top, left in starts[n::3]] + [(5, 5 + n)]
        for top, left in corners:
            if (
                top + SIDE > size[0]
                or left + SIDE > size[1]
                or image[top - 2 : top + SIDE + 2, left - 2 : left + SIDE + 2].any()
            ):
                continue
            image[top : top + SIDE, left : left + SIDE, 0] = 200 + rng.integers(0, 50)
            box = {"bbox": [left, top, SIDE, SIDE], "area": SIDE**2, "iscrowd": 0}
            found["annotations"].append({"id": len(found["annotations"]) + 1, "image_id": n, "category_id": 1, **box})
        Image.fromarray(image).save(folder / "val" / f"{n}.png")
        found["images"].append({"id": n, "file_name": f"{n}.png", "height": size[0], "width": size[1]})
    (folder / "val.json").write_text(json.dumps(found))
    return folder


class Bright(nn.Module):
    """Nothing to learn: the image itself, in which `find` looks for bright squares."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return images


def find(model, images, batch, *, train):
    """Of each row up to 8 boxes, of whole bright squares that are at least 7 pixels wide there, in reading order."""
    bright = images[..., 0] > 0.5
    before = jnp.pad(bright, ((0, 0), (1, 0), (1, 0)))
    begins = bright & ~before[:, :-1, 1:] & ~before[:, 1:, :-1]
    width = jnp.sum(jnp.cumprod(jnp.stack([jnp.roll(bright, -i, 2) for i in range(SIDE)]), 0), 0)
    height = jnp.sum(jnp.cumprod(jnp.stack([jnp.roll(bright, -i, 1) for i in range(SIDE)]), 0), 0)
    fits = begins & (width >= 7)
    order = jnp.argsort(~fits.reshape(len(images), -1), axis=1, stable=True)[:, :8]
    take = lambda x: jnp.take_along_axis(x.reshape(len(images), -1), order, axis=1)  # noqa: E731
    top, left = jnp.divmod(order, images.shape[2])
    boxes = jnp.stack([left, top, left + take(width), top + take(height)], -1).astype(jnp.float32)
    found = take(fits) & batch["example_valid"][:, None]
    scores = jnp.where(found, 0.9 - 0.01 * order / images[0, ..., 0].size, 0.0)
    return Detections(jnp.where(found[..., None], boxes, 0), scores, jnp.where(found, 1, 0), found)


@pytest.fixture
def config(tmp_path):
    made = small_runs.config_of("detection", draw(tmp_path / "data"))
    with made.unlocked():
        made.eval.window = (64, 64)
        made.data.max_boxes = 32
        made.data.train_split = "val"
        made.data.allow_overlap = True
    return made


@pytest.fixture
def task(monkeypatch):
    """A detector that needs no training, in place of the one of the config."""
    bright = detect.Detector(Bright(), lambda rng, images: {"params": {}}, None, find)
    made = detect.make_task(detector=bright, mean=(0.0,), std=(1.0,))
    monkeypatch.setattr(assemble.task, "make_task", lambda *args, **options: made)
    return made


def evaluated(config, task):
    """COCO's numbers of the test split, by the loop's own evaluation, and the merged states."""
    source = assemble.data.open_sources(config)[1]["test"]
    seen = assemble.data.in_windows(config, source)
    evaluation = preprocess.evaluation(config)
    pipeline = Pipeline(
        source=seen, order=preprocess.eval_order(config, seen, 4), seed=0, ops=evaluation.ops, collate=evaluation.collate
    )

    @jax.jit
    def compiled(variables, batch):
        states = task.metrics(task.predict(variables, batch), batch)
        counted = metrics.Accuracy(jnp.zeros((), jnp.int32), jnp.sum(batch["example_valid"], dtype=jnp.int32))
        return {**states, "examples": counted}

    def step(variables, batch):
        return compiled(variables, batch)

    step.prepare = lambda *args: None
    summarise = summary_of_detections(config, source.info.meta["annotations"])
    return evaluate.evaluate(step, {"params": {}}, pipeline, make_layout("jit", 1), summarise=summarise)


def opened(config, task, tmp_path):
    """The same detector as a run."""
    run = object.__new__(predictor.Predictor)
    run.workdir, run.config, run.checkpoint, run.step = tmp_path, config, "last", 0
    run.task, run.preprocess = task, assemble.inference(config).preprocess
    run.class_names, run.variables, run.lacks = ("red", "blue"), {"params": {}}, ()
    run.compiled, run.resized, run._batch_size, run._shapes = set(), 0, 4, predictor.Shapes()
    run._card = {"image_shape": [64, 64, 3]}
    return run


def test_evaluation_and_prediction_find_what_lies_on_seams(config, task, tmp_path):
    values = evaluated(config, task)
    assert values["AP"] == pytest.approx(1.0) and values["AR100"] == pytest.approx(1.0)
    run = opened(config, task, tmp_path)
    labels = run.labels_at(tmp_path / "data" / "val.json")
    results = list(run.stream(sorted((tmp_path / "data" / "val").iterdir()), labels=labels))
    score = labels.score()
    for name in ("AP", "AP50", "APs", "AR1", "AR100"):
        assert score[name] == pytest.approx(values[name], abs=1e-9)
    truth = json.loads((tmp_path / "data" / "val.json").read_text())["annotations"]
    assert sum(len(result.boxes) for result in results) == len(truth) and values["examples"] == len(results)
    alone = run.predict(sorted((tmp_path / "data" / "val").iterdir()), window=())
    assert sum(len(result.boxes) for result in alone) < len(truth) / 4
    with config.unlocked():
        config.eval.window = ()
    whole = evaluated(config, task)
    assert whole["AP"] < 0.1  # in the picture alone, reduced to 64 pixels, the squares are too small


def test_a_piece_has_the_boxes_that_are_mostly_in_it():
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    boxes = np.array([[0, 0, 6, 6], [8, 4, 16, 12], [25, 15, 30, 20]], np.float32)
    example = {"image": image, "boxes": boxes, "box_label": np.array([1, 2, 3]), "box_crowd": np.zeros(3, bool)}
    example["proposals"] = boxes
    piece = cut(example, (2, 10, 10, 12))
    np.testing.assert_array_equal(piece["image"], image[2:12, 10:22])
    np.testing.assert_array_equal(piece["boxes"], [[0, 2, 6, 10]])
    assert piece["box_label"].tolist() == [2] and "proposals" not in piece
    whole = cut(example, (0, 0, 20, 30))
    assert len(whole["boxes"]) == 3 and "proposals" in whole and whole["window"].tolist() == [0, 0, 20, 30]


def test_a_piece_has_the_masks_of_its_boxes_and_shares_a_batch_with_the_whole():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 20, 30)) < 0.5
    boxes = np.array([[0, 0, 6, 6], [8, 4, 16, 12], [11, 2, 21, 12]], np.float32)
    example = {"image": np.zeros((20, 30, 3), np.uint8), "boxes": boxes, "box_label": np.array([1, 2, 3])}
    example |= {"box_crowd": np.zeros(3, bool), "box_mask": bits.pack(masks)}
    places = [(0, 0, 20, 30), (2, 10, 10, 13), (2, 0, 10, 13)]
    batch = collate_boxes(max_boxes=4)([cut(example, place) for place in places])
    for row, (top, left, height, width), kept in zip(batch["box_mask"], places, ([0, 1, 2], [1, 2], [0, 1]), strict=True):
        expected = np.zeros((4, *batch["image"].shape[1:3]), bool)
        expected[: len(kept), :height, :width] = masks[kept, top : top + height, left : left + width]
        np.testing.assert_array_equal(bits.unpack(row, expected.shape[2]), expected)


def test_pieces_of_a_source_know_their_picture():
    two = ArraySource({"image": np.zeros((2, 4, 6, 3), np.uint8)}, SourceInfo("two"))
    pieces = Pieces(two, [[(0, 0, 4, 6)], [(0, 0, 4, 6), (0, 2, 4, 4)]])
    assert len(pieces) == 3 and pieces.info.meta["sizes"].tolist() == [[4, 6], [4, 6], [4, 4]]
    assert [int(pieces[n]["image_index"]) for n in range(3)] == [0, 1, 1] and pieces[2]["image"].shape == (4, 4, 3)


def test_a_padded_row_counts_once_and_one_piece_is_left_as_it_is():
    def record(*rows):
        rows = np.array(rows, np.float64).reshape(-1, 6)
        return {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].astype(int)}

    whole = record([0, 0, 4, 4, 0.5, 1], [0, 0, 4, 3.9, 0.4, 1])
    image, merged = windows.merge_pieces(
        [record(), whole, record(), record([3, 1, 5, 3, 0.9, 2])],
        np.array([[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 20], [0, 8, 9, 9]]),
        np.array([0, 0, 2, 2]),
        np.array([[9, 9], [1, 1], [9, 20]]),
        nms_thresh=0.5,
        most=10,
    )
    assert image.tolist() == [0, 0, 2]
    np.testing.assert_array_equal(merged["boxes"], [[0, 0, 4, 4], [0, 0, 4, 3.9], [11, 1, 13, 3]])
