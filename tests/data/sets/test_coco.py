"""COCO-format folders: what is read, by hand; and that a prepared set gives the very same examples."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from imgrec_jax.data import annotated as detection_source
from imgrec_jax.data.annotations import Annotations, from_images, mask_values
from imgrec_jax.data.ops import bits
from imgrec_jax.data.sets import coco
from tests.data import coco_folder

SHARED = Path(__file__).parents[3] / "shared" / "data"
ALL = ("boxes", "masks", "segmentation")


@pytest.fixture
def folder(tmp_path):
    return coco.read_folder(*coco_folder.write(tmp_path))


def test_order_labels_and_boxes(folder):
    """Images by id, annotations by id within them, labels by category id; xywh becomes xyxy."""
    table = folder.annotations
    assert table.file_names == ("3.jpg", "5.png", "7.jpg", "12.jpg")
    assert table.class_names == ("cat", "dog") and table.category_ids == (4, 18)
    np.testing.assert_array_equal(np.diff(table.offsets), [0, 1, 2, 1])
    example = table.targets(2)
    np.testing.assert_array_equal(example["boxes"], np.float32([[20.5, 10, 29.75, 15], [2, 3, 10, 9]]))
    np.testing.assert_array_equal(example["box_label"], [1, 2])
    np.testing.assert_array_equal(example["box_id"], [40, 91])
    np.testing.assert_array_equal(example["original_size"], [20, 30])
    assert table.targets(0)["boxes"].shape == (0, 4)
    assert table.targets(3)["box_crowd"].all()
    np.testing.assert_allclose(table.areas, [25, 40, 48.5, 20])  # without an area, the box's


def test_masks_of_polygons_and_run_lengths(folder):
    expected = np.zeros((20, 30), np.bool_)
    expected[3:9, 2:10] = True
    masks = bits.unpack(folder.annotations.masks(2), 30)
    assert not masks[0].any()  # has no segmentation
    np.testing.assert_array_equal(masks[1], expected)
    column = np.zeros((20, 30), np.bool_)
    column[:, 0] = True
    np.testing.assert_array_equal(bits.unpack(folder.annotations.masks(3), 30), [column])
    assert folder.annotations.masks(0).shape == (0, 20, 4)


def test_examples(folder):
    source = detection_source.open_folder("bees", folder, ALL)
    example = source[3]
    assert example["image"].shape == (20, 30, 3) and example["image"].dtype == np.uint8
    assert not example["pixel_valid"][:, 0].any() and example["pixel_valid"][:, 1:].all()  # the crowd is void
    grey = source[1]["image"]
    assert grey.shape == (20, 30, 3) and (grey[..., 0] == grey[..., 2]).all()
    assert len(source.subset("train[1:3]")) == 2 and source.subset("train[1:3]")[1]["file_name"] == "7.jpg"
    with pytest.raises(IndexError):
        source[4]


def test_prepared_set_equals_the_folder(folder, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    name = coco.prepare("bees", {"train": folder, "validation": folder}, tmp_path)
    assert coco.prepare("bees", {"train": folder, "validation": folder}, tmp_path) == name == "coco_folder/bees"
    for again in range(2):  # the second time from the table beside the set
        prepared = detection_source.open_prepared(name, "train", tmp_path, targets=ALL)
        compare(prepared, detection_source.open_folder("bees", folder, ALL))
        assert any((tmp_path / "coco_folder/bees/1.0.0").glob("annotations-train-*.npz")) or again == 0
    assert "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'validation'\]"):
        detection_source.open_prepared(name, "test", tmp_path)
    with pytest.raises(FileNotFoundError, match="coco/2017 is not prepared.*dataset_info.json"):
        detection_source.open_prepared("coco/2017", "train", tmp_path)


def compare(prepared, direct):
    assert len(prepared) == len(direct)
    for one, two in zip(
        map(prepared.__getitem__, range(len(direct))), map(direct.__getitem__, range(len(direct))), strict=True
    ):
        assert one.keys() == two.keys()
        np.testing.assert_allclose(one.pop("boxes"), two.pop("boxes"), atol=1e-3)
        for key, value in one.items():
            np.testing.assert_array_equal(value, two[key], err_msg=key)
    one, two = prepared.info.meta["annotations"], direct.info.meta["annotations"]
    assert (one.class_names, one.category_ids) == (two.class_names, two.category_ids)
    np.testing.assert_array_equal(one.areas, two.areas)


def test_ground_truth_survives(folder):
    """The table as COCO json has the file's content again, with ids counted from 1."""
    data = folder.annotations.to_coco()
    assert data["categories"] == [{"id": 4, "name": "cat"}, {"id": 18, "name": "dog"}]
    assert [image["id"] for image in data["images"]] == [3, 5, 7, 12]
    crowd = data["annotations"][3]
    assert (crowd["image_id"], crowd["category_id"], crowd["iscrowd"], crowd["bbox"]) == (12, 18, 1, [0, 0, 1, 20])
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4]


def test_table_survives_the_disk(tmp_path):
    mask = np.zeros((4, 6), np.bool_)
    mask[1:3, 2:5] = True
    row = {"image_id": 3, "file_name": "ä.png", "size": (4, 6), "boxes": [[2, 1, 5, 3]] * 2, "labels": [1, 2]}
    row |= {"crowd": [False, True], "ids": [5, 6], "areas": [6, 6], "segmentations": [[[2, 1, 5, 1, 5, 3, 2, 3]], None]}
    table = from_images([row], class_names=("a", "b"), category_ids=(2, 9))
    table.save(tmp_path / "t.npz")
    loaded = Annotations.load(tmp_path / "t.npz", masks=True)
    assert loaded.segmentations[1] is None and loaded.file_names == ("ä.png",) and loaded.category_ids == (2, 9)
    np.testing.assert_array_equal(mask_values(loaded.segmentations[0], 4, 6), mask)
    np.testing.assert_array_equal(bits.unpack(loaded.masks(0), 6), [mask, np.zeros_like(mask)])
    bare = Annotations.load(tmp_path / "t.npz", masks=False)
    assert loaded.boxes.dtype == loaded.areas.dtype == np.float64 and loaded.targets(0)["boxes"].dtype == np.float32
    with pytest.raises(ValueError, match="hold no masks"):
        bare.masks(0)
    assert list(tmp_path.iterdir()) == [tmp_path / "t.npz"]


def test_a_table_of_float32_is_read_and_has_the_same_identity(tmp_path):
    """As early versions wrote it, and the digest that they gave this table."""
    row = {"image_id": 3, "file_name": "a.png", "size": (400, 600), "boxes": [[2.1, 1, 5.37, 3], [0.1, 0.2, 0.3, 0.7]]}
    row |= {"labels": [1, 2], "crowd": [False, True], "ids": [5, 6], "areas": [6.54, 0.1]}
    table = from_images([row], class_names=("a", "b"), category_ids=(2, 9))
    early = dataclasses.replace(table, boxes=table.boxes.astype(np.float32), areas=table.areas.astype(np.float32))
    early.save(tmp_path / "t.npz")
    loaded = Annotations.load(tmp_path / "t.npz", masks=True)
    assert loaded.boxes.dtype == loaded.areas.dtype == np.float64
    np.testing.assert_array_equal(loaded.boxes, np.float32(row["boxes"]))
    np.testing.assert_array_equal(loaded.targets(0)["boxes"], table.targets(0)["boxes"])
    assert (
        table.identity() == loaded.identity() == "annotations:adbff038154a04b3adad6fadb9d42538513127b68d5c808df528a6b0653587d2"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("categories"), "no 'categories'"),
        (lambda d: d["images"].append(d["images"][0]), "image id 12 occurs twice"),
        (lambda d: d["annotations"][0].update(category_id=5), "annotation 91 refers to image 7 and category 5"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotation 91 refers to image 99"),
    ],
)
def test_broken_files_are_named(tmp_path, change, message):
    images, file = coco_folder.write(tmp_path)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        coco.read_folder(images, file)


def test_absent_and_cut_files_are_named(tmp_path):
    images, file = coco_folder.write(tmp_path)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{file.name} is not valid JSON"):
        coco.read_folder(images, file)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name} is not there; expected the COCO instances json"):
        coco.read_folder(images, file)


def test_results():
    rows = np.array([[7, 1.0, 2.0, 4.5, 6.0, 0.87654321, 18]])
    assert coco.results(rows) == [{"image_id": 7, "category_id": 18, "bbox": [1.0, 2.0, 3.5, 4.0], "score": 0.87654321}]


def test_real_coco_images():
    if not (SHARED / "coco_open").exists():
        pytest.skip("needs ../shared/data/coco_open")
    root = SHARED / "coco_open"
    folder = coco.read_folder(root / "train2017", root / "annotations/instances_train2017.json")
    table = folder.annotations
    assert table.category_ids == coco.CATEGORY_IDS and len(coco.CATEGORY_IDS) == 80
    assert (len(table), len(table.boxes), int(table.crowd.sum())) == (78, 744, 9)
    source = detection_source.open_folder("coco", folder, ALL)
    for index in range(0, 78, 13):
        example = source[index]
        np.testing.assert_array_equal(example["image"].shape[:2], example["original_size"])
        inside = [m[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1].sum() for m, (x1, y1, x2, y2) in masked(example)]
        np.testing.assert_allclose(inside, bits.areas(example["box_mask"]), atol=10)  # masks lie in their boxes


def masked(example):
    return zip(bits.unpack(example["box_mask"], example["image"].shape[1]), example["boxes"], strict=True)
