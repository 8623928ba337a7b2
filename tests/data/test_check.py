"""The sanity report finds each kind of error and names file and annotation."""

import json

import cv2
import numpy as np
import pytest

from imgrec_jax.data import annotated as detection_source
from imgrec_jax.data import check
from imgrec_jax.data.sets import coco
from tests.data import coco_folder


def read(tmp_path, change):
    images, file = coco_folder.write(tmp_path)
    data = json.loads(file.read_text())
    change(data, images)
    file.write_text(json.dumps(data))
    return coco.read_folder(images, file)


def damage(data, images):
    boxes = {40: [20, 10, 0, 5], 91: [25, 3, 8, 6], 2: [1, 1, 5, 5]}
    for entry in data["annotations"]:
        entry["bbox"] = boxes.get(entry["id"], entry["bbox"])
    data["annotations"].append({**data["annotations"][3], "id": 77})
    data["images"].append({"id": 20, "file_name": "gone.jpg", "height": 8, "width": 8})
    data["images"][2]["height"] = 21  # 3.jpg
    (images / "12.jpg").write_bytes(b"not an image")


def test_every_kind_is_found(tmp_path):
    source = detection_source.open_folder("bees", read(tmp_path, damage))
    report = check.check_source(source)
    found = {(finding.kind, finding.file, finding.annotation) for finding in report.findings}
    assert found == {
        ("degenerate", "7.jpg", 40),
        ("outside", "7.jpg", 91),
        ("duplicate", "5.png", 77),
        ("missing file", "gone.jpg", None),
        ("corrupt file", "12.jpg", None),
        ("wrong size", "3.jpg", None),
    }
    assert (report.images, report.empty_images, report.boxes, report.crowd) == (5, 2, 5, 1)
    assert report.class_counts == {"cat": 3, "dog": 2}
    table = report.table()
    assert "7.jpg: annotation 91: outside, xyxy [25.0, 3.0, 33.0, 9.0] in an image of (height, width) (20, 30)" in table
    assert "same box and class as annotation 2" in table
    assert {finding.kind for finding in report.bad()} == set(check.FATAL)


def test_training_stops_on_a_bad_box_but_not_on_a_repeated_one(tmp_path):
    folder = read(tmp_path, damage)
    with pytest.raises(ValueError, match=r"bees has 2 errors.*annotation 40: degenerate.*drop_degenerate_boxes=True"):
        check.check_annotations("bees", folder.annotations).raise_if_bad()
    with pytest.raises(ValueError, match="gone.jpg: missing file"):
        check.check_annotations("bees", folder.annotations, folder.paths).raise_if_bad()


def test_preparing_stops_on_a_bad_box(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    folder = read(tmp_path, damage)
    with pytest.raises(ValueError, match="bees train has"):
        coco.prepare("bees", {"train": folder}, tmp_path)


def test_a_good_set_has_no_findings(tmp_path):
    source = detection_source.open_folder("bees", read(tmp_path, lambda data, images: None))
    report = check.check_source(source)
    assert report.findings == ()
    report.raise_if_bad()
    assert "degenerate: 0" in report.table()


def test_long_lists_are_cut(tmp_path):
    def spoil(data, images):
        data["annotations"] = [{**data["annotations"][3], "id": n, "bbox": [n, 1, 0, 5]} for n in range(1, 26)]

    report = check.check_annotations("bees", read(tmp_path, spoil).annotations)
    assert report.table(limit=3).count("annotation") == 3 and "... and 22 more of kind 'degenerate'" in report.table(limit=3)


def test_a_damaged_jpeg_is_named(tmp_path, capfd):
    """libjpeg decodes it and only says on stderr, without a name, that it is damaged."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (640, 480))

    def spoil(data, images):
        for n, number in enumerate((3, 7)):
            path = images / f"{number}.jpg"
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
            content = bytearray(path.read_bytes())
            if n:
                content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
            path.write_bytes(content)
            next(image for image in data["images"] if image["id"] == number).update(height=480, width=640)

    report = check.check_source(detection_source.open_folder("bees", read(tmp_path, spoil)))
    (finding,) = report.findings
    assert str(finding).startswith("7.jpg: corrupt file, the decoder says: Corrupt JPEG data")
    assert "Corrupt" not in capfd.readouterr().err
