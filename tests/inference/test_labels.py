"""Truth beside images: read as training reads it, found by whatever path the lists give."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from imgrec_jax.data.sets.mask_folder import open_mask_folder
from imgrec_jax.inference.labels import BoxLabels, ClassLabels, Table, open_labels

BLACK_IS_1 = [255, 255, 255, 0, 0, 0]


def save(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette is not None:
        image = image.convert("L")
        image.putpalette(palette)
    image.save(path)


COLOURED = [[[0, 0, 0], [0, 0, 0], [255, 255, 255], [255, 0, 0]]]
MASKS = {
    "index": ("index", [[0, 1, 255, 2]], None),
    "grey": ("grey", [[0, 90, 200, 255]], None),
    "instance_map": ("instance_map", [[0, 1, 7, 7]], None),
    "binary": ("binary", [[0, 0, 3, 255]], None),
    "binary RGB": ("binary", COLOURED, None),
    "binary, black is index 1": ("binary", [[0, 0, 1, 1]], BLACK_IS_1),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_are_those_of_training(tmp_path, case):
    kind, values, palette = MASKS[case]
    save(tmp_path / "images/a.png", np.zeros((1, 4, 3)))
    save(tmp_path / "masks/a.png", values, palette)
    trained_on = open_mask_folder(tmp_path, "all", kind=kind, class_names=("x", "y", "z"), fractions=(("all", 1.0),))[0]
    found = open_labels(tmp_path / "masks", config_of(kind), ("x", "y", "z")).targets(str(tmp_path / "images/a.png"), (1, 4))
    assert set(found) == set(trained_on) - {"image"}
    for key, value in found.items():
        np.testing.assert_array_equal(value, trained_on[key])


@pytest.mark.parametrize("at", [".", "one", "one/masks"])
def test_objects_of_a_file_each_are_those_of_training(tmp_path, at):
    save(tmp_path / "one/images/any.png", np.zeros((1, 4, 3)))
    for number in range(2):
        save(tmp_path / f"one/masks/{number}.png", [[255 * (number == n) for n in range(4)]])
    trained_on = open_mask_folder(tmp_path, "all", kind="instances", fractions=(("all", 1.0),))[0]
    labels = open_labels(tmp_path / at, config_of("instances"), ())
    for image in ("one/images/any.png", "one.png"):
        found = labels.targets(str(tmp_path / image), (1, 4))
        np.testing.assert_array_equal(found["instances"], trained_on["instances"])
        np.testing.assert_array_equal(found["segmentation"], [[1, 1, 0, 0]])


def test_a_mask_that_training_refuses_is_refused(tmp_path):
    save(tmp_path / "a.jpg", np.zeros((4, 4)))
    save(tmp_path / "b_mask.png", np.zeros((4, 5)))
    labels = open_labels(tmp_path, config_of("index"), ())
    with pytest.raises(ValueError, match="lossy JPEG"):
        labels.targets("a.png", (4, 4))
    with pytest.raises(ValueError, match=r"b_mask\.png has \(height, width\) \(4, 5\)"):
        labels.targets("b.png", (4, 4))


PATHS = ["imgs/a.png", "./imgs/a.png", "a.png", "{}/imgs/a.png", "../{}/imgs/a.png", "imgs//a.png", "imgs\\a.png"]


@pytest.mark.parametrize("given", PATHS)
@pytest.mark.parametrize("asked", ["imgs/a.png", "./imgs/a.png", "{}/imgs/a.png"])
def test_a_list_finds_a_file_by_any_path_of_it(tmp_path, monkeypatch, given, asked):
    monkeypatch.chdir(tmp_path)
    given = given.format(tmp_path.name if given.startswith("..") else tmp_path)
    (tmp_path / "list.csv").write_text(f"\ufeff{given},dog\n", encoding="utf-8")
    image = {"id": 7, "file_name": given, "height": 4, "width": 6}
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0}
    text = json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 3, "name": "dog"}]})
    (tmp_path / "list.json").write_text(f"\ufeff{text}", encoding="utf-8")
    file = asked.format(tmp_path)
    assert ClassLabels(tmp_path / "list.csv", ("cat", "dog")).targets(file, (4, 6)) == {"label": 1}
    assert BoxLabels(tmp_path / "list.json", ("dog",), lambda *_: {}).targets(file, (4, 6))["boxes"].tolist() == [[1, 1, 3, 3]]
    with pytest.raises(ValueError, match="has no line for it"):
        ClassLabels(tmp_path / "list.csv", ("cat", "dog")).targets("imgs/b.png", (4, 6))


def test_a_line_is_of_one_file(tmp_path):
    for name in ("1.jpg", "sub/1.jpg", "sub/2.jpg", "more/2.jpg", "again/../more/2.jpg"):
        save(tmp_path / name, np.zeros((4, 4)))
    (tmp_path / "link.jpg").symlink_to("more/2.jpg")
    rows = Table([("1.jpg", "cat"), ("2.jpg", "dog")], tmp_path)
    assert rows.of(str(tmp_path / "1.jpg")) == "cat" and rows.of(str(tmp_path / "3.jpg")) is None
    with pytest.raises(ValueError, match=r"sub/1.jpg: the labels name 1.jpg, which .*/1.jpg is, too"):
        rows.of(str(tmp_path / "sub" / "1.jpg"))
    copies = Table([("1.jpg", "cat"), ("2.jpg", "dog")], tmp_path)  # are labelled as what they are copies of
    assert copies.of(str(tmp_path / "sub" / "1.jpg")) == "cat"
    for same in ("more/2.jpg", "again/../more/2.jpg", "link.jpg"):
        assert rows.of(str(tmp_path / same)) == "dog"
    with pytest.raises(ValueError, match=r"sub/2.jpg: the labels name 2.jpg, which .*more/2.jpg is, too"):
        rows.of(str(tmp_path / "sub" / "2.jpg"))


def test_a_file_of_two_labels_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("file,label\n1.jpg,cat\n1.jpg, cat\n", encoding="utf-16")
    assert ClassLabels(tmp_path / "list.csv", ("cat", "dog")).targets("1.jpg", (4, 4)) == {"label": 0}
    (tmp_path / "list.csv").write_text("1.jpg,cat\n2.jpg,dog\n./1.jpg,dog\n")
    with pytest.raises(ValueError, match="./1.jpg is listed twice, as 'cat' and as 'dog'; keep one"):
        ClassLabels(tmp_path / "list.csv", ("cat", "dog"))


def config_of(kind):
    data = {"multi_label": False, "options": {"kind": kind}, "max_pixels": 1000}
    return ConfigDict({"task": "segmentation", "data": data, "model": {"num_classes": 3}})


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("21_training", "22_training", "30_training"), ("21_manual1", "22_manual1", "30_manual1")),
        (("img_1", "img_10", "img_2"), ("mask_1", "mask_10", "mask_2", "mask_3")),  # a mask of an image that is not there
    ],
)
def test_masks_whose_names_differ_as_all_do(tmp_path, images, masks):
    for number, (image, mask) in enumerate(zip(images, masks, strict=False)):
        save(tmp_path / f"images/{image}.png", [[0] * 4])
        save(tmp_path / f"masks/{mask}.png", [[number] * 4])
    for mask in masks[len(images) :]:
        save(tmp_path / f"masks/{mask}.png", [[2] * 4])
    labels = open_labels(tmp_path / "masks", config_of("index"), ("x", "y", "z"))
    for number, image in enumerate(images):
        assert labels.targets(str(tmp_path / f"images/{image}.png"), (1, 4))["segmentation"].tolist() == [[number] * 4]
    with pytest.raises(ValueError, match="no mask other.png in"):
        labels.targets(str(tmp_path / "images/other.png"), (1, 4))


def test_a_mask_of_another_image_is_none_of_this_one(tmp_path):
    for name in ("video1_3", "video1_4"):
        save(tmp_path / f"images/{name}.png", [[0] * 4])
        save(tmp_path / f"masks/{name.replace('video1', 'video2')}.png", [[0] * 4])
    labels = open_labels(tmp_path / "masks", config_of("index"), ("x", "y", "z"))
    with pytest.raises(ValueError, match=r"video1_3.png: no mask video1_3.png in"):
        labels.targets(str(tmp_path / "images/video1_3.png"), (1, 4))
