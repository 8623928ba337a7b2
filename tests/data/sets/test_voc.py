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


XML = "<annotation><filename>{}.png</filename><size><width>30</width><height>20</height></size></annotation>"


def listed(root, text: bytes | str, *stems, image_set="train"):
    """The names that are read from a list of this text, where these xml files are there."""
    for part in ("Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (root / "Annotations" / f"{stem}.xml").write_text(XML.format("old"))
    (root / f"ImageSets/Main/{image_set}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return [Path(name).stem for name in voc.read_folder(root, image_set).annotations.file_names]


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("img 1\n", ["img 1"]),
        ("img 1\nimg 2\n\nimg three\n", ["img 1", "img 2", "img three"]),
        ("a  1\nb -1\nc  0\n", ["a", "b", "c"]),
        ("img 1  1\nimg 2 -1\n", ["img 1", "img 2"]),
        ("a\t1\r\nb\t-1\r\n", ["a", "b"]),
        ("a 2\n", ["a 2"]),
        ("\ufeff000001\n000002\n", ["000001", "000002"]),
        ("000001.png\n000002.jpg\nthree.xml\n", ["000001", "000002", "three"]),
        ("000001.JPG 1\n000002.JPG -1\n", ["000001", "000002"]),
        ("a.v2\nb.jpg\n", ["a.v2", "b.jpg"]),
        ("\u732b 1\n", ["\u732b 1"]),
    ],
)  # fmt: skip
def test_names_of_a_list(tmp_path, text, stems):
    assert listed(tmp_path, text, *stems) == stems


def test_names_that_could_be_two_things(tmp_path):
    """Where both `img` and `img 1` are there, the second column counts where every line has one."""
    assert listed(tmp_path, "img\nimg 1\n", "img", "img 1") == ["img", "img 1"]
    assert listed(tmp_path, "img 1\n", "img", "img 1") == ["img"]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("a\nb\n", FileNotFoundError, r"train.txt, line 2: .*/Annotations has no xml file of 'b'; put it there"),
        ("\na\n b  -1\n", FileNotFoundError, r"train.txt, line 3: .*has no xml file of 'b'"),
        ("../a\n", FileNotFoundError, r"train.txt, line 1: .*has no xml file of '../a'"),
        ("\n \n", ValueError, r"train.txt is empty; expected a name a line"),
        (b"\xff\xfea\0\n\0", ValueError, r"train.txt is no UTF-8 text"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path, text, error, said):
    with pytest.raises(error, match=said):
        listed(tmp_path, text, "a")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<xmin>2</xmin>", "<xmin>two</xmin>", "object 1 has bndbox/xmin='two'; expected a number of pixels"),
        ("<xmin>2</xmin>", "<xmin>nan</xmin>", "object 1 has bndbox/xmin='nan'; expected a number of pixels"),
        ("<ymax>9</ymax>", "<ymax>1e400</ymax>", "object 1 has bndbox/ymax='1e400'; expected a number of pixels"),
        ("<ymax>9</ymax>", "", "object 1 has no <bndbox/ymax>"),
        ("<ymax>9</ymax>", "<ymax/>", "object 1 has bndbox/ymax=''; expected a number"),
        ("<name>dog</name>", "", "object 1 has no <name>"),
        ("<difficult>0<", "<difficult>maybe<", "object 1 has difficult='maybe'; expected 0 or 1"),
        ("<width>30</width>", "", r"not a Pascal VOC annotation \(has no <size/width>\)"),
        ("<width>30</width>", "<width>0</width>", r"not a Pascal VOC annotation \(has size/width=0; expected the image's"),
        ("<width>30</width>", "<width>30.5</width>", r"\(has size/width=30.5; expected the image's"),
        ("annotation>", "robots>", r"\(its root is <robots>; expected <annotation>\)"),
        ("</size>", "", r"\(mismatched tag"),
    ],
)
def test_values_of_an_xml(tmp_path, old, new, said):
    write(tmp_path, [("dog", 0, 2, 2, 10, 9)])
    path = tmp_path / "Annotations/a.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=f"{path}: .*{said}.*; correct the file$") as caught:
        voc.read_folder(tmp_path, "train", ("cat", "dog"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n", b"<annotation>", b"<?xml version='1.0' encoding='no-such'?><annotation/>"]
)
def test_what_is_no_xml_is_named(tmp_path, data):
    write(tmp_path, [])
    (tmp_path / "Annotations/a.xml").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.xml: not a Pascal VOC annotation \("):
        voc.read_folder(tmp_path, "train")


def test_entities_that_grow_are_refused(tmp_path):
    """Ten levels of ten: expat ends such a file long before its billion."""
    write(tmp_path, [])
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 100}">' for n in range(10))
    (tmp_path / "Annotations/a.xml").write_text(f"<!DOCTYPE a [{entities}]><annotation>&e9;</annotation>")
    with pytest.raises(ValueError, match="a.xml: not a Pascal VOC annotation"):
        voc.read_folder(tmp_path, "train")


def test_sizes_written_as_floats(tmp_path):
    write(tmp_path, [])
    path = tmp_path / "Annotations/a.xml"
    path.write_text(path.read_text().replace(">30<", "> 30.0 <"))
    assert voc.read_folder(tmp_path, "train").annotations.sizes.tolist() == [[20, 30], [20, 30]]
