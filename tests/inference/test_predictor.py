"""A run opened without its data predicts what its own evaluation counted."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from pycocotools import mask as coco_mask

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.assemble.data import open_sources
from imgrec_jax.data.annotations import from_images
from imgrec_jax.detection import coco_eval
from imgrec_jax.inference import inputs, outputs, predictor
from imgrec_jax.run import loop
from imgrec_jax.run.checkpoint import CheckpointError
from imgrec_jax.run.workdir import WorkdirError
from tests import small_runs

OPEN = """
import json, sys, time
began = time.perf_counter()
import numpy as np
import imgrec_jax
run = imgrec_jax.load(sys.argv[1], "last")
images = list(np.load(sys.argv[2], allow_pickle=False)["images"])
run.predict(images[:1])
seconds = time.perf_counter() - began
keys = ("label", "name", "probs", "boxes", "scores", "labels", "names", "segmentation")
answers = [{k: np.asarray(getattr(a, k)).tolist() for k in keys if hasattr(a, k)} for a in run.predict(images)]
print(json.dumps({"seconds": seconds, "names": run.class_names, "answers": answers}))
"""


def examples(task, data):
    _, evals = open_sources(small_runs.config_of(task, data))
    return evals["test"], [evals["test"][i] for i in range(len(evals["test"]))]


def last_evaluation(workdir):
    return [r for r in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()) if r["split"] == "test"][-1]


def elsewhere(workdir, images, tmp_path):
    """What a process without HOME and data says of the images."""
    np.savez(tmp_path / "images.npz", images=np.stack(images))
    copy = shutil.copytree(workdir, tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    home = {"HOME": str(tmp_path / "empty"), "TFDS_DATA_DIR": str(tmp_path / "empty"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", OPEN, str(copy), str(tmp_path / "images.npz")]
    environment = {**os.environ, **home, "PYTHONPATH": str(small_runs.ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path / "empty", timeout=200)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert not [p for p in (tmp_path / "empty").iterdir() if p.name != ".cache"]
    return json.loads(done.stdout)


def test_classification_without_the_data_equals_the_evaluation(finished, small_data, tmp_path):
    source, rows = examples("classification", small_data["classification"])
    said = elsewhere(finished["classification"], [row["image"] for row in rows], tmp_path)
    want = last_evaluation(finished["classification"])
    answers, labels = said["answers"], [int(row["label"]) for row in rows]
    assert tuple(said["names"]) == source.info.class_names
    assert sum(a["label"] == label for a, label in zip(answers, labels, strict=True)) == want["accuracy_correct"]
    loss = -np.mean(np.log([a["probs"][label] for a, label in zip(answers, labels, strict=True)]))
    assert loss == pytest.approx(want["loss"], rel=1e-6)
    assert all(a["name"] == str(a["label"]) and sum(a["probs"]) == pytest.approx(1) for a in answers)


def test_segmentation_without_the_data_equals_the_evaluation(finished, small_data, tmp_path):
    source, rows = examples("segmentation", small_data["segmentation"])
    said = elsewhere(finished["segmentation"], [row["image"] for row in rows], tmp_path)
    want = last_evaluation(finished["segmentation"])
    assert tuple(said["names"]) == source.info.class_names
    predicted = np.array([answer["segmentation"] for answer in said["answers"]])
    truth = np.array([row["segmentation"] for row in rows])
    both, either = ((predicted == 1) & (truth == 1)).sum(), ((predicted == 1) | (truth == 1)).sum()
    assert both / either == pytest.approx(want["iou"], abs=1e-6)
    assert (predicted == truth).mean() == pytest.approx(want["pixel_accuracy"], abs=1e-6)


def test_detection_without_the_data_equals_the_evaluation(finished, small_data, tmp_path):
    source, rows = examples("detection", small_data["detection"])
    said = elsewhere(finished["detection"], [row["image"] for row in rows], tmp_path)
    want = last_evaluation(finished["detection"])
    table = source.info.meta["annotations"]
    found = np.concatenate([
        np.column_stack([np.full(len(a["scores"]), image_id), np.reshape(a["boxes"], (-1, 4)), a["scores"],
                         np.asarray(table.category_ids)[np.asarray(a["labels"], int) - 1]])
        for image_id, a in zip(table.image_ids, said["answers"], strict=True)
    ])  # fmt: skip
    result = coco_eval.evaluate(coco_eval.load_ground_truth(table.to_coco()), found)
    for name in ("AP", "AP50", "AR100"):
        assert result.summary[name] == pytest.approx(want[name], abs=1e-6)
    assert said["names"] == ["red", "blue"]
    assert {name for a in said["answers"] for name in a["names"]} <= {"red", "blue"}


def test_the_best_is_the_default_and_any_step_can_be_asked_for(finished):
    best = imgrec_jax.load(finished["classification"])
    assert (best.checkpoint, best.step) == ("best", 6) and best.lacks == ()
    earlier, plain = imgrec_jax.load(finished["classification"], 4), imgrec_jax.load(finished["classification"], averaged=False)
    for other in (earlier, plain):
        assert not np.array_equal(other.variables["params"]["logits"]["kernel"], best.variables["params"]["logits"]["kernel"])
    assert (imgrec_jax.load(finished["detection"]).checkpoint, earlier.step) == ("last", 4)
    with pytest.raises(CheckpointError, match="no checkpoint 5 in .*; there are: checkpoint 4, checkpoint 6"):
        imgrec_jax.load(finished["classification"], 5)
    with pytest.raises(CheckpointError, match="choose 'last', 'best' or a step"):
        imgrec_jax.load(finished["classification"], "worst")
    with pytest.raises(WorkdirError, match="there is no run in"):
        imgrec_jax.load(finished["classification"] / "checkpoints")


def test_images_of_any_kind_and_errors_that_name_them(finished):
    run = imgrec_jax.load(finished["classification"])
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    kinds = [image, image[..., None], np.repeat(image[..., None], 3, 2), (image / 255).astype(np.float32)]
    answers = [run.predict([kind])[0] for kind in kinds]
    for answer in answers:
        np.testing.assert_allclose(answer.probs, answers[0].probs, atol=1e-6)
    assert run.predict([]) == [] and len(run.predict(np.stack([image] * 3))) == 3
    bad = {
        "image 1 has shape .2, 2, 4.": np.zeros((2, 2, 4), np.uint8),
        "values outside 0..1": image.astype(np.float32),
        "type int64": image.astype(np.int64),
    }
    for message, value in bad.items():
        with pytest.raises(ValueError, match=message):
            run.predict([image, value])


def test_images_of_another_size_are_stretched_to_a_classifier_and_counted(finished):
    run = imgrec_jax.load(finished["classification"])
    image = np.zeros((28, 28), np.uint8)
    image[2:8, 8:14] = 200
    large = image.repeat(10, 0).repeat(10, 1)
    small, stretched, dot = run.predict([image, large, image[:1, :1]])
    np.testing.assert_allclose(stretched.probs, small.probs, atol=1e-6)
    assert run.resized == 2 and stretched.size == (280, 280) and dot.size == (1, 1)


OPS = """
def red():
    return lambda example, rng: {**example, "image": example["image"][..., :1]}
def bright():
    return lambda example, rng: {**example, "image": example["image"].max(-1, keepdims=True).repeat(3, -1)}
def half():
    return lambda example, rng: {**example, "image": example["image"][::2, ::2]}
"""
SIZE = (24, 30)
STRETCHES = {
    "nothing": {},
    "channels": {"to_channels": {"channels": 1}},
    "another op that changes channels": {"own": {"op": "red"}},
    "one before all others": {"own": {"op": "bright", "before": "to_channels"}, "to_channels": {"channels": 1}},
    "one that does not say that it changes sizes": {"own": {"op": "half"}},
    "by the shorter side": {"resize_shorter": {"length": 20}},
}
FIXES = {
    "a size": {"resize": {"size": (16, 16)}},
    "a crop": {"resize_and_center_crop": {"shorter": 18, "size": (16, 16)}, "own": {"op": "red"}},
}


@pytest.mark.parametrize("ops", [*STRETCHES, *FIXES])
@pytest.mark.parametrize("grey", [False, True])
def test_pictures_come_to_the_ops_as_in_evaluation_and_to_the_network_at_its_size(tmp_path, monkeypatch, ops, grey):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for n in range(2):
                image = rng.integers(0, 256, SIZE if grey else (*SIZE, 3), np.uint8)
                cv2.imwrite(str(tmp_path / "data" / split / name / f"{split}{name}{n}.png"), image)
    (tmp_path / "ops.py").write_text(OPS)
    config = imgrec_jax.load_config("image_folder")
    config.data.manual_dir = str(tmp_path / "data")
    given = {
        name: {**one, "op": f"{tmp_path}/ops.py:{one['op']}"} if "op" in one else one
        for name, one in (STRETCHES | FIXES)[ops].items()
    }
    with config.unlocked(), config.ignore_type():
        config.data.options.size, config.data.data_dir, config.model.convs = (), str(tmp_path / "d"), ((8, 3, 2, 1),)
        config.data.train_ops, config.data.eval_ops = (
            ConfigDict({**given, "random_resized_crop": {"size": (12, 12)}}),
            ConfigDict(given),
        )
        config.data.mean, config.data.std = (0.0,), (1.0,)
    experiment = assemble.build(config)
    monkeypatch.setattr(predictor.checkpoint, "read_variables", lambda *_: {})
    with monkeypatch.context() as patch:
        patch.setattr(predictor.own, "of_workdir", lambda *_: {})
        run = predictor.Predictor(tmp_path, experiment.config, experiment.card, SimpleNamespace(step=1, kind="last"), None)
    batch = experiment.data.evals["test"].batch(0)
    assert run.image_shape == batch["image"].shape[1:] == run.example_batch()["image"].shape[1:]
    prepare = lambda images: [  # noqa: E731
        run._prepare(one, labels=None, window=None, overlap=0) for one in inputs.pictures(images, **run.reading())
    ]
    for made, row in zip(prepare(str(tmp_path / "data" / "test")), batch["image"], strict=False):
        np.testing.assert_array_equal(made.examples[0]["image"], row)
        assert not made.stretched
    others = prepare([rng.integers(0, 256, shape, np.uint8) for shape in ((30, 24, 3), (60, 70), (5, 40, 1), (24, 60, 3))])
    assert {made.examples[0]["image"].shape for made in others} == {run.image_shape}
    assert {made.stretched for made in others} == {ops in STRETCHES}


def test_a_stream_keeps_the_order_compiles_few_shapes_and_leaves_out_what_it_cannot_read(finished):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (rng.integers(20, 90), rng.integers(20, 90), 3), np.uint8) for _ in range(40)]
    images[7] = np.zeros((2, 2, 4), np.uint8)
    faults = []
    run = imgrec_jax.load(finished["segmentation"])
    results = list(run.stream(iter(images), on_fault=lambda picture, error: faults.append((picture.name, str(error)))))
    assert [r.file for r in results] == [f"image {n}" for n in range(40) if n != 7]
    assert all(r.segmentation.shape == r.size == images[int(r.file.split()[1])].shape[:2] for r in results)
    assert faults == [("image 7", faults[0][1])] and "shape (2, 2, 4)" in faults[0][1]
    assert len(run.compiled) <= 4 + 2  # four sizes as they are, squares of 64 and 128


@pytest.mark.parametrize("where", ["padding", "the batch", "the network"])
def test_what_the_memory_is_not_there_for_is_that_picture_s_fault(finished, monkeypatch, where):
    run, faults, rng = imgrec_jax.load(finished["segmentation"]), list[str](), np.random.default_rng(0)
    large, plain, answer = (4, 5000), run.preprocess, run.run_batch

    def out_of_memory(image):
        if max(image.shape) >= max(large):
            raise MemoryError if where != "the network" else jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    class Poor:
        def __getattr__(self, name):
            return getattr(plain, name)

        def __call__(self, *given):
            return plain(*given)

        def pad(self, example, size):
            out_of_memory(example["image"]) if where == "padding" else None
            return plain.pad(example, size)

        def batch(self, examples, indices, rows):
            out_of_memory(examples[0]["image"]) if where == "the batch" else None
            return plain.batch(examples, indices, rows)

    def run_batch(batch, labels):
        out_of_memory(batch["image"]) if where == "the network" else None
        return answer(batch, labels)

    run.preprocess = Poor()
    monkeypatch.setattr(run, "run_batch", run_batch)
    images = [rng.integers(0, 256, (16, 16 + n, 3), np.uint8) for n in range(6)] + [np.zeros((*large, 3), np.uint8)]
    results = list(run.stream(images, on_fault=lambda picture, error: faults.append(str(error))))
    assert [result.file for result in results] == [f"image {n}" for n in range(6)]
    assert len(faults) == 1 and faults[0].startswith("image 6: out of memory with its ")
    with pytest.raises(ValueError, match="image 6: out of memory"):
        run.predict(images)
    if where != "the network":
        found = list(run.batches(images, on_fault=lambda picture, error: faults.append(picture.name)))
        assert sum(len(pictures) for pictures, _ in found) == 6 and faults[1:] == ["image 6"]


def test_answers_do_not_depend_on_their_company(finished):
    images = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8))
    for task in ("detection", "segmentation"):
        run = imgrec_jax.load(finished[task])
        together = run.predict(images)
        for image, answer in zip(images, together, strict=True):
            alone = run.predict([image])[0]
            for key in ("boxes", "scores", "labels", "segmentation"):
                if hasattr(answer, key):
                    np.testing.assert_allclose(getattr(alone, key), getattr(answer, key), atol=1e-4)


def test_boxes_and_maps_are_in_pixels_of_the_image_given(finished):
    image = np.zeros((48, 100, 3), np.uint8)
    boxes = imgrec_jax.load(finished["detection"]).predict([image])[0].boxes
    assert (boxes[:, [0, 2]] <= 100).all() and (boxes[:, [1, 3]] <= 48).all()
    assert imgrec_jax.load(finished["segmentation"]).predict([image])[0].segmentation.shape == (48, 100)


def test_apply_is_pure_and_logits_can_be_differentiated(finished):
    run = imgrec_jax.load(finished["classification"])
    batch = {"image": jnp.full((1, 28, 28, 1), 0.5)}
    assert run.apply(run.variables, batch)["probs"].shape == (1, 10)
    gradient = jax.grad(lambda image: run.task.logits(run.variables, {"image": image})[0, 3])(batch["image"])
    assert gradient.shape == (1, 28, 28, 1) and np.any(gradient)
    segmentation = imgrec_jax.load(finished["segmentation"])
    maps = segmentation.task.logits(segmentation.variables, {"image": jnp.zeros((1, 16, 16, 3))})
    assert maps.shape == (1, 16, 16, 2)


def test_a_detector_without_an_rpn_searches_the_image_itself(small_data, tmp_path):
    model = {"name": "small_detector", "kind": "fast", "num_classes": 3, "widths": (4, 4, 4), "fpn_width": 4, "head_width": 8}
    config = small_runs.config_of(
        "detection", small_data["detection"], data__max_proposals=8, data__data_dir=str(tmp_path / "d"),
        model={**model, "anchor_sizes": ((16,), (24,))}, train__total_steps=1, detection={"box_score_thresh": 0.0},
    )  # fmt: skip
    loop.train(assemble.build(config), tmp_path / "w", lambda line: None)
    _, rows = examples("detection", small_data["detection"])
    run = imgrec_jax.load(tmp_path / "w")
    assert all(len(answer.boxes) for answer in run.predict([row["image"] for row in rows]))


def test_a_table_of_annotations_is_not_needed_anywhere():
    assert from_images([], class_names=("a",)).identity().startswith("annotations:")


def test_images_have_the_channels_of_the_runs_data(finished):
    run = imgrec_jax.load(finished["classification"])
    run._card = {**run._card, "stored_shape": [8, 8, 5], "image_shape": [8, 8, 5]}
    five = np.full((8, 8, 5), 7, np.uint8)
    np.testing.assert_array_equal(run.as_image(five, "a"), five)
    for other in (five[..., :3], five[..., 0], five[..., :4]):
        with pytest.raises(ValueError, match=r"a has shape .*; expected \[H, W, 5\], as the data of the run are"):
            run.as_image(other, "a")
    run._card = {**run._card, "stored_shape": [8, 8, 4], "image_shape": [8, 8, 3]}  # an op drops the alpha channel
    for image in (five[..., :4], five[..., :3], five[..., 0]):
        assert run.as_image(image, "a").shape[2] == max(image.shape[2:] or (3,))
    run._card = {**run._card, "stored_shape": [None, None, None], "image_shape": [8, 8, 4]}  # an op makes more of three
    assert run.as_image(five[..., :3], "a").shape == (8, 8, 3)
    run._card = {**run._card, "stored_shape": [8, 8, 3], "image_shape": [8, 8, 3]}
    assert run.as_image(five[..., 0], "a").shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"expected \[H, W\], \[H, W, 1\] or \[H, W, 3\]"):
        run.as_image(five, "a")


def test_a_run_with_objects_numbers_and_counts_them_and_writes_each(finished, tmp_path):
    run = imgrec_jax.load(finished["segmentation"])
    assert run.predict([np.zeros((48, 100, 3), np.uint8)])[0].objects is None
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.objects = {"name": "components"}
    counting = run.changed(config)
    counting.task = counting.task._replace(predict=_squares)
    image = np.zeros((16, 16, 3), np.uint8)
    image[1:5, 1:5] = image[8:12, 6:14] = 255
    (answer,) = counting.predict([image.repeat(2, 0).repeat(2, 1)])
    assert answer.objects.shape == (32, 32) and sorted(np.unique(answer.objects)) == [0, 1, 2]
    np.testing.assert_array_equal(answer.objects > 0, answer.segmentation > 0)
    assert answer.to_json()["objects"] == 2
    entries = answer.to_coco(3, (7,))
    assert [(entry["category_id"], entry["area"]) for entry in entries] == [(7, 64), (7, 128)]
    for number, entry in enumerate(entries, start=1):
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), answer.objects == number)
    with outputs.Writer(counting, out=str(tmp_path / "a.jsonl"), masks=str(tmp_path / "masks")) as writer:
        writer.write(answer)
    saved = list((tmp_path / "masks" / "objects").glob("*.png"))
    assert len(saved) == 1
    with Image.open(saved[0]) as stored:
        np.testing.assert_array_equal(np.asarray(stored), answer.objects)


def _squares(variables, batch):
    """A network that finds what is light."""
    light = batch["image"].mean(-1)
    return {"segmentation": (light > 0.5 * light.max()).astype(jnp.int32), "probs": jnp.stack([1 - light, light], -1)}
