"""What is wrong with data is said by `assemble.build`, in one line, before the first step; and what is only odd is right."""

import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax import assemble, metrics
from imgrec_jax.data import annotated
from imgrec_jax.data.sets import coco
from imgrec_jax.detection import coco_eval
from imgrec_jax.run import loop, record
from imgrec_jax.run.evaluate import headline
from imgrec_jax.tasks import detect
from tests import small_runs
from tests.goldens import small_data


@pytest.fixture
def root(tmp_path):
    return small_data.coco(tmp_path / "data")


def edit(root, split, change):
    file = root / f"{split}.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def config_of(root, **changes):
    return small_runs.config_of("detection", root, **{"data__validation_split": "val", "data__test_split": "", **changes})


def refused(config, error=ValueError) -> str:
    with pytest.raises(error) as caught:
        assemble.build(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Classes


def renumber(data):
    """The same two classes under other ids in another order: blue is 3, red is 9."""
    data["categories"] = [{"id": 9, "name": "red"}, {"id": 3, "name": "blue"}]
    for entry in data["annotations"]:
        entry["category_id"] = {1: 9, 2: 3}[entry["category_id"]]


def test_labels_go_by_name(root):
    before = assemble.build(config_of(root)).data.evals["validation"].source
    edit(root, "val", renumber)
    experiment = assemble.build(config_of(root))
    after = experiment.data.evals["validation"].source
    assert after.info.class_names == before.info.class_names == ("red", "blue") == tuple(experiment.card["class_names"])
    for index in range(len(before)):
        np.testing.assert_array_equal(after[index]["box_label"], before[index]["box_label"])
    assert after.info.meta["annotations"].category_ids == (9, 3)  # its own numbers, for results


def test_evaluation_uses_the_numbers_of_the_evaluated_file(root):
    """Detections that are right in the labels of training are right in a file that numbers classes otherwise."""
    edit(root, "val", renumber)
    table = assemble.build(config_of(root)).data.evals["validation"].source.info.meta["annotations"]
    everything = {"boxes": table.boxes[:, None], "scores": np.ones((6, 1)), "valid": np.ones((6, 1), bool)}
    places = {"image_ids": table.image_ids, "image_size": table.sizes, "original_size": table.sizes}
    labels = table.labels[:, None].copy()
    labels[0] = 3 - labels[0]  # one mistake: of the first image, which is blue
    rows = coco_eval.to_rows(labels=labels, category_ids=table.category_ids, **everything, **places)
    matrix = coco_eval.confusion(table.to_coco(), rows)
    assert matrix.class_names == ("red", "blue")
    assert matrix.counts.tolist() == [[3, 0, 0], [1, 2, 0], [0, 0, 0]]
    rows = coco_eval.to_rows(labels=table.labels[:, None], category_ids=table.category_ids, **everything, **places)
    assert coco_eval.evaluate(table.to_coco(), rows).class_ap == {"red": 1.0, "blue": 1.0}


@pytest.mark.parametrize(("own", "given", "ids"), [(2, 1, (1, 2)), (1, 2, (2, 1)), (7, 1, (1, 7))])
def test_a_file_may_lack_classes(root, own, given, ids):
    """Only blue is listed, with any id; red has the training file's, or a free one."""

    def only_blue(data):
        data["categories"] = [{"id": own, "name": "blue"}]
        data["annotations"] = [{**a, "category_id": own} for a in data["annotations"] if a["category_id"] == 2]

    edit(root, "val", only_blue)
    source = assemble.build(config_of(root)).data.evals["validation"].source
    table = source.info.meta["annotations"]
    assert (table.class_names, table.category_ids) == (("red", "blue"), ids)
    assert set(table.labels.tolist()) == {2}
    assert {c["name"]: c["id"] for c in table.to_coco()["categories"]}["blue"] == own


def test_a_class_that_training_does_not_know(root):
    edit(root, "val", lambda d: d["categories"][1].update(name="green"))
    said = refused(config_of(root))
    assert "val.json): it has the classes ['red', 'green']; expected 'green' to be among ['red', 'blue']" in said
    assert "train.json" in said


# Sizes


def test_annotated_sizes_are_compared_at_the_start(root):
    edit(root, "val", lambda d: d["images"][2].update(height=128))
    said = refused(config_of(root))
    assert f"{root}/val/3.png has (height, width) (64, 64), annotated as (128, 64) in {root}/val.json" in said


def test_annotated_sizes_are_compared_when_an_image_is_read(tmp_path):
    root = small_data.coco(tmp_path / "data", count=1)
    edit(root, "train", lambda d: d["images"][0].update(width=32))
    source = annotated.open_folder("a", coco.read_folder(root / "train", root / "train.json"))
    with pytest.raises(ValueError, match=r"1.png has \(height, width\) \(64, 64\), annotated as \(64, 32\) in .*train.json"):
        source[0]


def test_the_orientation_tag_is_named(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(root / "train" / "2.png", format="JPEG", exif=exif)
    edit(root, "train", lambda d: d["images"][1].update(height=48, width=64))
    said = refused(config_of(root))
    assert "2.png has (height, width) (64, 48), annotated as (48, 64)" in said and "EXIF orientation tag is 6" in said


# Files


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_images_are_counted_at_the_start(root, split):
    for n in (1, 2, 4, 5):
        (root / split / f"{n}.png").unlink()
    said = refused(config_of(root), FileNotFoundError)
    assert f"{split}.json): 4 of 6 image files are missing: {root}/{split}/1.png, " in said
    assert f"{root}/{split}/4.png, ...; put them there" in said and "5.png" not in said


def test_a_folder_that_is_not_there(root):
    (root / "train").rename(root / "training")
    assert f"there is no folder {root}/train: correct config.data.manual_dir" in refused(config_of(root), FileNotFoundError)


def test_a_missing_image_beyond_a_subset_stops_nothing(root):
    (root / "train" / "6.png").unlink()
    assemble.build(config_of(root, data__train_split="train[:5]"))


def test_devices_and_pipes_are_refused(root):
    (root / "train" / "3.png").unlink()
    (root / "train" / "3.png").symlink_to("/dev/zero")
    (root / "train" / "4.png").unlink()
    os.mkfifo(root / "train" / "4.png")
    said = refused(config_of(root))
    assert f"2 of 6 image files cannot be read: {root}/train/3.png is no regular file, {root}/train/4.png is no" in said


def test_names_that_leave_their_folder(root):
    """Refused by their text; a link within the folder is the user's own."""
    (root / "train" / "1.png").rename(root / "one.png")
    edit(root, "train", lambda d: d["images"][0].update(file_name="../one.png"))
    assert "image 1 has file_name='../one.png'" in refused(config_of(root))
    config = config_of(root)
    with config.unlocked():
        config.data.options.allow_outside = True
    assert len(assemble.build(config).data.train.source) == 6
    edit(root, "train", lambda d: d["images"][0].update(file_name="1.png"))
    (root / "train" / "1.png").symlink_to(root / "one.png")
    assemble.build(config_of(root)).data.train.batch(0)


def test_too_many_pixels(root):
    assert "1.png: an image of 64 x 64 pixels, more than config.data.max_pixels=4095" in refused(
        config_of(root, data__max_pixels=4095)
    )
    assemble.build(config_of(root, data__max_pixels=4096))


# Objects


def crowded(data):
    """Image 3 gets nine more boxes and image 5 four; one has a crowd region too many."""
    for number, image in enumerate([3] * 9 + [5] * 4, start=100):
        box = {"bbox": [number - 100, 1, 9, 9], "area": 81, "iscrowd": 0}
        data["annotations"].append({"id": number, "image_id": image, "category_id": 1, **box})
    data["annotations"] += [{**data["annotations"][0], "id": 200 + n, "iscrowd": 1, "bbox": [n, n, 9, 9]} for n in range(5)]


def test_too_many_objects(root):
    edit(root, "train", crowded)
    said = refused(config_of(root))
    assert "train.json): 2 of 6 images have more than config.data.max_boxes=4 objects, 3.png the most, 10; raise" in said
    for change in ({"data__max_boxes": 10}, {"data__drop_extra_boxes": True}):
        pipeline = assemble.build(config_of(root, **change)).data.train
        for step in range(pipeline.steps_per_epoch):
            pipeline.batch(step)
    (root / "train.json").write_bytes((root / "val.json").read_bytes())
    edit(root, "val", crowded)
    assemble.build(config_of(root))  # evaluation counts objects from the table


def without_objects(root, crowd):
    edit(root, "val", lambda d: d.update(annotations=[{**a, "iscrowd": 1} for a in d["annotations"]] if crowd else []))


@pytest.mark.parametrize("crowd", [False, True])
def test_a_split_without_objects_is_told(root, capfd, crowd):
    without_objects(root, crowd)
    assemble.build(config_of(root, data__test_split="val[:4]", data__allow_overlap=True))
    said = capfd.readouterr().err
    for split in ("validation", "test"):
        assert f"warning: split {split!r} has no objects (coco_folder val" in said and "AP is undefined" in said


@pytest.mark.parametrize("crowd", [False, True])
def test_numbers_of_a_split_without_objects(root, crowd):
    """Undefined, shown as such, and never the best."""
    without_objects(root, crowd)
    experiment = assemble.build(config_of(root))
    sizes, one = np.full((6, 2), 64), np.ones((6, 1))
    found = detect.CollectedDetections(np.arange(6), sizes, sizes, one[..., None] * [1, 1, 9, 9], one, one.astype(int), one > 0)
    values = experiment.data.summarise["validation"]({"loss": metrics.Sum(np.float64(3), np.float64(6)), "detections": found})
    assert {values[name] for name in (*coco_eval.SUMMARY, "recall")} == {None} and values["precision"] == 0
    assert values["AP_per_class"] == {"red": None, "blue": None}
    assert values["confusion_matrix"] == [[0, 0, 0], [0, 0, 0], [6, 0, 0]]
    assert headline(values, ("loss", "AP", "APs", "f1")) == "average loss 0.5000, AP undefined, APs undefined, f1 0.0000"
    assert not record.EarlyStop("AP", "max", 5, None).update(3, values)


@pytest.mark.slow
@pytest.mark.parametrize("crowd", [False, True])
def test_a_run_goes_on_without_objects_to_find(root, tmp_path, capfd, crowd):
    without_objects(root, crowd)
    names = ("loss", "AP", "AP50", "APs", "APm", "APl", "AR100", "f1", "precision", "recall")
    changes = {"select__metric": "AP", "select__patience": 5, "log__show": names, "log__tensorboard": True}
    results = loop.train(assemble.build(config_of(root, train__total_steps=3, **changes)), tmp_path / "run", lambda line: None)
    values = results["validation"]
    assert values["AP"] is None and values["recall"] is None and values["examples"] == 6
    assert values["AP_per_class"] == {"red": None, "blue": None}
    assert "AP undefined" in capfd.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "3").exists() and not list((tmp_path / "run").glob("best/*"))


def test_training_without_objects_says_so(root, capfd):
    edit(root, "train", lambda d: d.update(annotations=[]))
    assemble.build(config_of(root)).data.train.batch(0)
    assert "train.json) has no objects" in capfd.readouterr().err


def test_boxes_without_area_in_validation_are_told(root, capfd):
    edit(root, "val", lambda d: d["annotations"][1].update(bbox=[3, 3, 0, 9]))
    assemble.build(config_of(root))
    assert "val.json) has 1 boxes without area, which count as objects that nothing finds: 2.png" in capfd.readouterr().err


def test_an_image_of_one_row(root):
    cv2.imwrite(str(root / "train" / "1.png"), np.zeros((1, 900, 3), np.uint8))

    def flat(data):
        data["images"][0].update(height=1, width=900)
        data["annotations"] = data["annotations"][1:]

    edit(root, "train", flat)
    pipeline = assemble.build(config_of(root)).data.train
    for step in range(pipeline.steps_per_epoch):
        pipeline.batch(step)
