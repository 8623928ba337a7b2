"""Every value of a COCO json that is used is checked, and named with its file and entry."""

import json

import pytest
from pycocotools import mask as coco_mask

from imgrec_jax.data.sets import coco_json
from tests.data import coco_folder

NAN = float("nan")


def change(tmp_path, edit, encoding="utf-8"):
    _, file = coco_folder.write(tmp_path)
    data = json.loads(file.read_text())
    data = edit(data) or data
    file.write_text(json.dumps(data), encoding=encoding)
    return file


ENTRIES = [
    # list, position, key, value (or DROP), what the message says after the file
    ("annotations", 0, "bbox", "DROP", "annotation 91 has no 'bbox'; expected four finite numbers [x, y, width, height]"),
    ("annotations", 0, "bbox", [], "annotation 91 has bbox=[]; expected four finite numbers"),
    ("annotations", 0, "bbox", [1, 2, 3, 4, 5, 6, 7, 8], "annotation 91 has bbox=[1, 2, 3, 4, 5, 6, ...]; expected four"),
    ("annotations", 1, "bbox", ["4", "6", "22", "20"], "annotation 40 has bbox=['4', '6', '22', '20']; expected four"),
    ("annotations", 1, "bbox", [4, 6, NAN, 20], "annotation 40 has bbox=[4, 6, nan, 20]; expected four finite"),
    ("annotations", 1, "bbox", [4, 6, 1e300, 20], "annotation 40 has bbox=[4, 6, 1e+300, 20]; expected four finite"),
    ("annotations", 1, "bbox", [4, 6, True, 20], "annotation 40 has bbox=[4, 6, True, 20]; expected four finite"),
    ("annotations", 1, "bbox", {"x": 1}, "annotation 40 has bbox={'x': 1}; expected four"),
    ("annotations", 1, "iscrowd", "no", "annotation 40 has iscrowd='no'; expected 0 or 1"),
    ("annotations", 1, "iscrowd", None, "annotation 40 has iscrowd=None; expected 0 or 1"),
    ("annotations", 1, "iscrowd", 2, "annotation 40 has iscrowd=2; expected 0 or 1"),
    ("annotations", 1, "area", "40", "annotation 40 has area='40'; expected a finite number, 0 or more"),
    ("annotations", 1, "area", -1, "annotation 40 has area=-1; expected a finite number"),
    ("annotations", 1, "area", NAN, "annotation 40 has area=nan; expected a finite number"),
    ("annotations", 1, "image_id", "7", "annotation 40 has image_id='7'; expected a whole number"),
    ("annotations", 1, "image_id", "DROP", "annotation 40 has no 'image_id'; expected a whole number"),
    ("annotations", 1, "category_id", 1.5, "annotation 40 has category_id=1.5; expected a whole number"),
    ("annotations", 0, "segmentation", [[1, 2, 3, 4]], "annotation 91 has segmentation=[[1, 2, 3, 4]]; expected polygons"),
    ("annotations", 0, "segmentation", [[1, 2, 3, 4, 5, NAN]], "annotation 91 has segmentation="),
    ("annotations", 0, "segmentation", [1, 2, 3, 4, 5, 6], "annotation 91 has segmentation="),
    ("annotations", 0, "segmentation", "polygon", "annotation 91 has segmentation='polygon'; expected a list of polygons"),
    ("annotations", 2, "segmentation", {"size": [20, 31], "counts": [0, 20, 600]}, "annotation 6 has segmentation="),
    ("annotations", 2, "segmentation", {"size": [20, 30], "counts": [0, 20]}, "annotation 6 has segmentation="),
    ("annotations", 2, "segmentation", {"size": [20, 30], "counts": [700, -100]}, "annotation 6 has segmentation="),
    ("annotations", 2, "segmentation", {"size": [20, 30], "counts": "PPPPPPPP"}, "annotation 6 has segmentation="),
    ("images", 1, "height", "DROP", "image 7 has no 'height'; expected a whole number from 1"),
    ("images", 1, "height", None, "image 7 has height=None; expected a whole number from 1"),
    ("images", 1, "width", "30", "image 7 has width='30'; expected a whole number from 1"),
    ("images", 1, "width", 0, "image 7 has width=0; expected a whole number from 1"),
    ("images", 1, "width", 30.5, "image 7 has width=30.5; expected a whole number from 1"),
    ("images", 1, "file_name", "DROP", "image 7 has no 'file_name'; expected a text"),
    ("images", 1, "file_name", "", "image 7 has file_name=''; expected a text"),
    ("images", 1, "file_name", "a\0b.jpg", "image 7 has file_name="),
    ("images", 1, "file_name", "\ud800.jpg", "image 7 has file_name="),
    ("images", 1, "file_name", "../7.jpg", "image 7 has file_name='../7.jpg'; expected a path inside the folder"),
    ("images", 1, "file_name", "a/../../7.jpg", "image 7 has file_name='a/../../7.jpg'; expected a path inside"),
    ("images", 1, "file_name", "/etc/passwd", "image 7 has file_name='/etc/passwd'; expected a path inside"),
    ("images", 1, "file_name", "C:\\7.jpg", "image 7 has file_name="),
    ("images", 1, "file_name", "..\\7.jpg", "image 7 has file_name="),
    ("images", 1, "id", "seven", "image 'seven' has id='seven'; expected a whole number"),
    ("images", 1, "id", "DROP", "image at position 2 of the list has no 'id'; expected a whole number"),
    ("images", 1, "id", 2**60, f"image {2**60} has id={2**60}; expected a whole number"),
    ("categories", 0, "name", "DROP", "category 18 has no 'name'; expected a text"),
    ("categories", 0, "name", 3, "category 18 has name=3; expected a text"),
    ("categories", 0, "name", "cat", "category name 'cat' occurs twice"),
    ("categories", 0, "id", 4, "category id 4 occurs twice"),
    ("categories", 0, "id", True, "category at position 1 of the list has id=True; expected a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "position", "key", "value", "said"), ENTRIES, ids=lambda v: str(v)[:20])
def test_entries_are_named(tmp_path, where, position, key, value, said):
    def edit(data):
        del data[where][position][key]
        data[where][position].update({} if value == "DROP" else {key: value})

    file = change(tmp_path, edit)
    with pytest.raises(ValueError) as caught:
        coco_json.read(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: {said}") and message.endswith("correct the file") and "\n" not in message


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: [1, 2], "holds a JSON list; expected a COCO instances file, a dict"),
        (lambda d: d.update(annotations=None), "annotations is None; expected a list"),
        (lambda d: d.update(images={}), "images is {}; expected a list"),
        (lambda d: d.update(images=[], annotations=[]), "images is empty; expected one entry or more"),
        (lambda d: d["annotations"].__setitem__(1, None), "annotation at position 2 is None; expected a dict"),
        (lambda d: d["categories"].insert(0, "cat"), "category at position 1 is 'cat'; expected a dict"),
    ],
)
def test_lists_are_named(tmp_path, edit, said):
    file = change(tmp_path, edit)
    with pytest.raises(ValueError) as caught:
        coco_json.read(file)
    assert said in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b'{"images": [', b"\xff\xfe\x00", b"\x00" * 50])
def test_what_is_no_json_is_named(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.json is not valid JSON \(.*\); was it copied as a whole\?"):
        coco_json.read(tmp_path / "a.json")


def test_only_a_regular_file_is_read(tmp_path):
    (tmp_path / "a.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="a.json is no regular file; expected the COCO instances json"):
        coco_json.read(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path, encoding):
    assert len(coco_json.read(change(tmp_path, lambda data: None, encoding)).objects) == 4


@pytest.mark.parametrize("ids", [None, "a91", 1.5, [3]])
def test_annotations_need_no_ids(tmp_path, ids):
    """Where one has none of its own, all are numbered by their position."""

    def edit(data):
        del data["annotations"][2]["id"]
        data["annotations"][2].update({} if ids is None else {"id": ids})

    assert [entry.id for entry in coco_json.read(change(tmp_path, edit)).objects] == [1, 2, 3, 4]


@pytest.mark.parametrize("value", [0, 1, False, True, "0", "1", 0.0])
def test_crowd_however_it_is_written(tmp_path, value):
    file = change(tmp_path, lambda data: data["annotations"][0].update(iscrowd=value))
    assert coco_json.read(file).objects[0].crowd is bool(int(value))


def test_numbers_that_are_written_as_floats(tmp_path):
    def edit(data):
        data["images"][1].update(id=7.0, height=20.0)

    image = next(image for image in coco_json.read(change(tmp_path, edit)).images if image.id == 7)
    assert (type(image.id), image.height) == (int, 20)


def test_names_may_lead_outside_where_they_are_allowed_to(tmp_path):
    file = change(tmp_path, lambda data: data["images"][1].update(file_name="../7.jpg"))
    assert "../7.jpg" in {image.file_name for image in coco_json.read(file, allow_outside=True).images}


def test_compressed_run_lengths_are_counted_as_pycocotools_does(tmp_path):
    for counts in ([0, 20, 580], [600], [3, 1, 596], [0, 600], [5, 40, 100, 200, 3, 252], [599, 1]):
        packed = coco_mask.frPyObjects({"size": [20, 30], "counts": counts}, 20, 30)["counts"].decode()
        assert coco_json._unpacked(packed) == counts
        segmentation = {"size": [20, 30], "counts": packed}
        file = change(tmp_path / packed.encode().hex(), lambda d, s=segmentation: d["annotations"][2].update(segmentation=s))
        assert coco_json.read(file).objects[2].segmentation == segmentation
    assert coco_json._unpacked("zzzzzzzzzzzzz") is None and coco_json._unpacked("o") is None
