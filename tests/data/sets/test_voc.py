"""Pascal VOC folders: the 1-based convention, difficult objects, errors, and the blood cells."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from imgrec_jax.data import annotated as detection_source
from imgrec_jax.data import check
from imgrec_jax.data.sets import voc

SHARED = Path(__file__).parents[3] / "shared" / "data"
OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write(root, objects, stems=("b", "a")):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for stem in stems:
        body = "".join(OBJECT.format(*entry) for entry in objects) if stem == "a" else ""
        size = "<size><width>30</width><height>20</height><depth>3</depth></size>"
        xml = f"<annotation><filename>old_name.png</filename>{size}{body}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(xml)
        cv2.imwrite(str(root / "JPEGImages" / f"{stem}.png"), np.zeros((20, 30, 3), np.uint8))
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{stem}  1\n" for stem in stems))


def test_pixels_are_counted_from_one(tmp_path):
    """1, 1, 30, 20 is the whole of a 30 x 20 image; 5, 5, 5, 5 is one pixel."""
    write(tmp_path, [("dog", 0, 1, 1, 30, 20), ("cat", 1, 5, 5, 5, 5)])
    folder = voc.read_folder(tmp_path, "train", ("cat", "dog"))
    example = folder.annotations.targets(1)
    np.testing.assert_array_equal(example["boxes"], [[0, 0, 30, 20], [4, 4, 5, 5]])
    np.testing.assert_array_equal(example["box_label"], [2, 1])
    np.testing.assert_array_equal(example["box_crowd"], [False, True])  # difficult
    np.testing.assert_array_equal(example["box_id"], [1, 2])
    assert example["file_name"] == "a.png" and folder.annotations.image_ids.tolist() == [1, 2]
    assert len(folder.annotations.targets(0)["boxes"]) == 0
    assert detection_source.open_folder("voc", folder)[1]["image"].shape == (20, 30, 3)
    zero = voc.read_folder(tmp_path, "train", ("cat", "dog"), one_based=False)
    np.testing.assert_array_equal(zero.annotations.boxes, [[1, 1, 30, 20], [5, 5, 5, 5]])


def test_errors_name_the_file(tmp_path):
    write(tmp_path, [("dog", 0, 1, 1, 30, 20), ("yak", 0, 1, 1, 3, 3)])
    with pytest.raises(ValueError, match=r"a.xml: object 2 is a 'yak'; expected one of \['cat', 'dog'\]"):
        voc.read_folder(tmp_path, "train", ("cat", "dog"))
    with pytest.raises(FileNotFoundError, match=r"val.txt does not exist; there are \['train'\]"):
        voc.read_folder(tmp_path, "val")
    (tmp_path / "Annotations/a.xml").write_text("<annotation></annotation>")
    with pytest.raises(ValueError, match="a.xml: not a Pascal VOC annotation"):
        voc.read_folder(tmp_path, "train")


def test_prepared_voc_folder(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    write(tmp_path / "voc", [("dog", 0, 2, 2, 10, 9), ("cat", 1, 5, 5, 8, 8)])
    folder = voc.read_folder(tmp_path / "voc", "train", ("cat", "dog"))
    name = voc.prepare("pets", {"train": folder}, tmp_path)
    source = detection_source.open_prepared(name, "train", tmp_path)
    np.testing.assert_allclose(source[1]["boxes"], [[1, 1, 10, 9], [4, 4, 8, 8]], atol=1e-5)
    np.testing.assert_array_equal(source[1]["box_crowd"], [False, True])


def test_records_of_the_stock_set():
    """TFDS's voc writes xmin / width of the 1-based corner; there are no ids, areas or crowds."""
    record = {
        "image": cv2.imencode(".png", np.zeros((20, 40, 3), np.uint8))[1].tobytes(),
        "image/filename": b"000012.jpg",
        "objects": {
            "bbox": np.float32([[1 / 20, 1 / 40, 20 / 20, 40 / 40], [5 / 20, 3 / 40, 6 / 20, 8 / 40]]),
            "label": np.array([11, 0]),
            "is_difficult": np.array([False, True]),
        },
    }
    described = detection_source._describe(record, 4)
    np.testing.assert_allclose(described["boxes"], [[0, 0, 40, 20], [2, 4, 8, 6]], atol=1e-5)
    assert (described["image_id"], described["file_name"], described["size"]) == (5, "000012.jpg", (20, 40))
    assert voc.CLASS_NAMES[described["labels"][0] - 1] == "dog"
    np.testing.assert_array_equal(described["crowd"], [False, True])
    np.testing.assert_allclose(described["areas"], [800, 12], atol=1e-3)


@pytest.mark.parametrize(("image_set", "images", "boxes"), [("train", 205, 2805), ("val", 87, 1138), ("test", 72, 945)])
def test_blood_cells(image_set, images, boxes):
    if not (SHARED / "bccd").exists():
        pytest.skip("needs ../shared/data/bccd")
    folder = voc.read_folder(SHARED / "bccd", image_set, ("RBC", "WBC", "Platelets"))
    report = check.check_annotations("bccd", folder.annotations, folder.paths)
    assert (report.images, report.boxes, report.bad()) == (images, boxes, ())
