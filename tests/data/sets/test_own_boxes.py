"""Own images with boxes: COCO, VOC and YOLO folders of one set give the same examples; YOLO's rules; what is found."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from imgrec_jax import assemble
from imgrec_jax.config import difference, load
from imgrec_jax.data.annotations import from_images
from imgrec_jax.data.ops.canvases import canvas_of
from imgrec_jax.data.sets import yolo
from imgrec_jax.data.sets.own_boxes import fitting, survey_boxes
from imgrec_jax.data.source import Request
from tests.data.own.make import encoded, pixels, write

SIZE = (40, 60)
CLASSES = ("ball", "cube")
RNG = np.random.default_rng(0)
BOXES = {n: [[0, 4, 4, 24, 20], [1, 30, 10, 52, 36]][: 1 + n % 2] if n % 4 else [] for n in range(20)}  # class, xyxy


def split_of(n):
    return "train" if n < 12 else "val" if n < 16 else "test"


def image(n):
    return encoded(pixels("cat", n, SIZE))


def coco(root, splits=True):
    for split in ("train", "val", "test") if splits else ("all",):
        mine = [n for n in BOXES if not splits or split_of(n) == split]
        for n in mine:
            write(root / (split if splits else "pictures") / f"{n}.png", image(n))
        annotations = [
            {"id": 10 * n + k, "image_id": n, "category_id": c + 5, "bbox": [x, y, X - x, Y - y],
             "area": (X - x) * (Y - y), "iscrowd": 0}
            for n in mine for k, (c, x, y, X, Y) in enumerate(BOXES[n])
        ]  # fmt: skip
        images = [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in mine]
        content = {"images": images, "annotations": annotations,
                   "categories": [{"id": c + 5, "name": name} for c, name in enumerate(CLASSES)]}  # fmt: skip
        where = root / split / "_annotations.coco.json" if splits else root / "labels.json"
        write(where, json.dumps(content).encode())
    return root


def voc(root, splits=True):
    for n, boxes in BOXES.items():
        write(root / "JPEGImages" / f"{n:02}.png", image(n))
        objects = "".join(
            f"<object><name>{CLASSES[c]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{X}</xmax><ymax>{Y}</ymax>"
            "</bndbox></object>" for c, x, y, X, Y in boxes
        )  # fmt: skip
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></size><filename>{n:02}.png</filename>"
        write(root / "Annotations" / f"{n:02}.xml", f"<annotation>{size}{objects}</annotation>".encode())
        if splits:
            with open(root / "names.tmp", "a") as file:
                file.write(f"{split_of(n)} {n:02}\n")
    if splits:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        lines = [line.split() for line in (root / "names.tmp").read_text().splitlines()]
        (root / "names.tmp").unlink()
        for split in ("train", "val", "test"):
            names = "\n".join(name for s, name in lines if s == split)
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    return root


def yolo_lines(boxes, polygon=False):
    h, w = SIZE
    if polygon:
        return "\n".join(f"{c} {x / w} {y / h} {X / w} {y / h} {X / w} {Y / h} {x / w} {Y / h}" for c, x, y, X, Y in boxes)
    return "\n".join(f"{c} {(x + X) / 2 / w} {(y + Y) / 2 / h} {(X - x) / w} {(Y - y) / h}" for c, x, y, X, Y in boxes)


def yolo_folder(root, layout="images/split", yaml=True, polygon=False):
    for n, boxes in BOXES.items():
        parts = {"images/split": ("{}", split_of(n)), "split/images": (split_of(n), "{}"), "flat": ("{}",)}[layout]
        place = lambda kind, parts=parts: root.joinpath(*(p.format(kind) for p in parts))  # noqa: E731
        write(place("images") / f"{n:02}.png", image(n))
        if n != 4:  # one without a text file
            write(place("labels") / f"{n:02}.txt", yolo_lines(boxes, polygon).encode())
    if yaml:
        paths = {"images/split": "images/{}", "split/images": "../{}/images", "flat": "images"}[layout]
        rows = [f"{split}: {paths.format(split)}" for split in (("train", "val", "test") if layout != "flat" else ("train",))]
        write(root / "data.yaml", "\n".join([*rows, "nc: 2", "names: [ball, cube]"]).encode())
    return root


MAKERS = {
    "coco": coco,
    "voc": voc,
    "yolo": yolo_folder,
    "yolo around": lambda root: yolo_folder(root, "split/images"),
    "yolo polygons": lambda root: yolo_folder(root, polygon=True),
    "yolo without yaml": lambda root: yolo_folder(root, yaml=False),
    "one folder around": lambda root: coco(root / "inner").parent,
}


def survey(root, tmp_path, options=None, **request):
    return survey_boxes(Request("own_detection", "train", tmp_path / "cache", root, ("boxes",), **request), **(options or {}))


@pytest.mark.parametrize("kind", MAKERS)
def test_formats_agree(tmp_path, kind):
    found = survey(MAKERS[kind](tmp_path / "d"), tmp_path)
    assert found.class_names == (CLASSES if kind != "yolo without yaml" else ("0", "1"))
    for split, numbers in (("train", range(12)), ("validation", range(12, 16)), ("test", range(16, 20))):
        source = found.open(split)
        assert len(source) == len(numbers)
        by_name = {int(source[i]["file_name"].split("/")[-1].split(".")[0]): source[i] for i in range(len(source))}
        assert sorted(by_name) == list(numbers)
        for n, example in by_name.items():
            expected = np.array([box[1:] for box in BOXES[n]], np.float32).reshape(-1, 4)
            np.testing.assert_allclose(example["boxes"], expected, atol=1e-4)
            assert example["box_label"].tolist() == [box[0] + 1 for box in BOXES[n]]
            np.testing.assert_array_equal(example["image"], pixels("cat", n, SIZE))
    assert found.found["model.num_classes"] == 3 and found.found["data.canvases"] == ((64, 64),)


@pytest.mark.parametrize(
    "make", [lambda r: coco(r, False), lambda r: voc(r, False), lambda r: yolo_folder(r, "flat")], ids=["coco", "voc", "yolo"]
)
def test_splits_are_cut_where_none_is_given(tmp_path, make):
    found = survey(make(tmp_path / "d"), tmp_path)
    counts = {split: len(found.open(split)) for split in ("train", "validation", "test")}
    assert sum(counts.values()) == 20 and counts["train"] >= 14 and min(counts.values()) >= 1
    held = []
    for number in range(1, 5):
        source = survey(tmp_path / "d", tmp_path, fold=f"{number}/4").open("test")
        held += [source[i]["file_name"] for i in range(len(source))]
    assert len(held) == len(set(held)) == 20


def test_groups_stay_together(tmp_path):
    found = survey(coco(tmp_path / "d", False), tmp_path, group=r"(\d)\.png")  # by the last digit
    where = {}
    for split in ("train", "validation", "test"):
        source = found.open(split)
        for i in range(len(source)):
            where.setdefault(source[i]["file_name"][-5], set()).add(split)
    assert len(where) == 10 and all(len(splits) == 1 for splits in where.values())
    with pytest.raises(ValueError, match="groups lie in more than one split: 2 \\("):
        survey(coco(tmp_path / "e"), tmp_path, group=r"(2)\.png")


def test_yolo_rules(tmp_path):
    def labels(text, names=CLASSES):
        return yolo.read_labels(write(tmp_path / "x.txt", text.encode()), names)

    assert len(labels("").classes) == len(labels("\n  \n").classes) == 0
    found = labels("0 0.5 0.5 1.02 0.5\n1 0.1 0.1 0.2 0.2")
    assert found.cut == 1 and found.boxes[0].tolist() == [0, 0.25, 1, 0.75]
    assert labels("1 .1 .2 .5 .2 .3 .6").boxes.tolist() == [[0.1, 0.2, 0.5, 0.6]]
    for text, message in {
        "2 .5 .5 .1 .1": r"line 1: class 2; expected 0 to 1",
        "0 .5 .5 .1 .1\n0 .5 .5 .1": r"line 2: 4 numbers; expected 5",
        "a .5 .5 .1 .1": "no line of numbers",
        "0 320 240 20 20": r"outside of 0..1; are these pixels\?",
        "0 .5 .5 -.1 .1": "width -0.1",
        "0.5 .5 .5 .1 .1": "class 0.5",
        "0 nan .5 .1 .1": "finite numbers",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            labels(text)
        assert "x.txt, line" in str(caught.value)


def test_a_yaml_that_cannot_be(tmp_path):
    for text, message in {
        "names: [a]\nnc: 2\ntrain: images": "nc=2, but names has 1",
        "names: [a]\ntrain: nowhere": "nowhere is neither at",
        "names: {1: a}\ntrain: images": "names has the keys",
        "names: [a]": "none of train, val, test",
        "names: [a": "no YAML",
    }.items():
        write(tmp_path / "d" / "data.yaml", text.encode())
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            survey(tmp_path / "d", tmp_path)


def test_bad_images_stop_with_the_list_or_are_left_out(tmp_path):
    root = yolo_folder(tmp_path / "d")
    write(root / "images/train/01.png", b"")
    turned = Image.fromarray(pixels("cat", 2, SIZE))
    exif = turned.getexif()
    exif[0x0112] = 6
    write(root / "images/train/02.png", encoded(turned, exif=exif))
    with pytest.raises(ValueError) as caught:
        survey(root, tmp_path)
    message = str(caught.value)
    assert "2 of 12 files" in message and "01.png: an empty file" in message and "02.png: has an EXIF orientation" in message
    found = survey(root, tmp_path, bad_files="skip")
    assert len(found.open("train")) == 10 and any("2 of 12 files are left out" in line for line in found.lines)


def test_equal_images_in_two_splits_are_told_and_other_folders_are_test_sets(tmp_path):
    root = coco(tmp_path / "d")
    shutil.copy(root / "train" / "3.png", root / "test" / "17.png")
    found = survey(root, tmp_path)
    assert any("leakage: 1 files of test are equal to ones of train: 17.png" in line for line in found.lines)
    assert len(found.other(voc(tmp_path / "east"))) == 4 and len(found.other(voc(tmp_path / "west", False))) == 20


def test_what_is_no_set_says_what_was_looked_for(tmp_path):
    write(tmp_path / "d" / "notes.txt", b"x")
    with pytest.raises(ValueError, match=r"holds \['notes.txt'\]; expected Pascal VOC .* YOLO .* COCO json"):
        survey(tmp_path / "d", tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        survey(tmp_path / "nowhere", tmp_path)


def test_the_config_needs_nothing_but_the_folder(tmp_path):
    config = load("own_detection:tiny")
    config.data.manual_dir, config.data.data_dir = str(coco(tmp_path / "d")), str(tmp_path)
    experiment = assemble.build(config)
    settled = experiment.config
    assert settled.model.num_classes == 3 and settled.data.canvases == ((64, 64),) and settled.data.max_boxes == 8
    assert settled.data.validation_split == "validation" and settled.data.test_split == "test"
    assert experiment.data.train.batch(0)["image"].shape == (4, 64, 64, 3)
    kept = load("own_detection:tiny")
    kept.data.manual_dir, kept.data.data_dir, kept.data.max_size = str(tmp_path / "d"), str(tmp_path), 96
    assert assemble.build(kept).config.data.max_size == 96  # what is given is kept
    early = settled.copy_and_resolve_references().unlock()
    del early.model.mask_widths, early.model.mask_size  # of a workdir from before there were masks
    assert difference(assemble.complete(early), assemble.complete(settled)) == []


def test_groups_are_looked_for_below_the_folder_and_somewhere(tmp_path):
    root = coco(tmp_path / "ward7" / "d", False)
    with pytest.raises(ValueError, match=r"config.data.group='ward\(.\)' is found in no path of"):
        survey(root, tmp_path, group="ward(.)")


def test_a_given_test_split_of_voc_is_never_trained_on(tmp_path):
    root = voc(tmp_path / "d")
    lists = root / "ImageSets" / "Main"
    (lists / "val.txt").unlink()
    (lists / "train.txt").rename(lists / "trainval.txt")
    found = survey(root, tmp_path)
    assert len(found.open("train")) + len(found.open("validation")) == 12 and len(found.open("test")) == 4
    (lists / "trainval.txt").unlink()
    with pytest.raises(ValueError, match=r"has no training split; it has \['test'\]"):
        survey(root, tmp_path)


def test_a_folder_may_be_given_from_where_one_stands(tmp_path, monkeypatch):
    from imgrec_jax.assemble.data import survey as survey_of

    coco(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    config = load("own_detection:tiny")
    config.data.manual_dir, config.data.data_dir = "d", str(tmp_path / "cache")
    assert len(survey_of(config).open("train")) == 12


def annotated(boxes, size=(240, 320)):
    rows = [{"image_id": n, "file_name": f"{n}", "size": size, "boxes": [box], "labels": [1], "crowd": [False], "ids": [n],
             "areas": [1.0]} for n, box in enumerate(boxes)]  # fmt: skip
    return from_images(rows, class_names=("ball",))


@pytest.mark.parametrize("sides", [[32] * 20, [32] * 19 + [200], [8, 16, 32, 64, 100, 150]])
def test_every_level_has_as_many_anchors(sides):
    fit = fitting(annotated([[0, 0, side, side] for side in sides]), np.array([[240, 320]] * len(sides)))
    assert [len(set(level)) for level in fit.anchor_sizes] == [2, 2, 2]


@pytest.mark.parametrize(("given", "min_size", "max_size"), [
    ({"max_size": 640}, (480,), 640),
    ({"min_size": (480,)}, (480,), 640),
    ({"min_size": (300, 400), "max_size": 640}, (300, 400), 640),
])  # fmt: skip
@pytest.mark.parametrize("sizes", [[[240, 320]], [[240, 320], [320, 240], [200, 320]]])
def test_sizes_that_are_given_are_kept_and_the_rest_fits(given, min_size, max_size, sizes):
    fit = fitting(annotated([[0, 0, 100, 100]]), np.array(sizes * 3), **given)
    assert (
        fit.max_size == max_size
        and fit.min_size[0] == pytest.approx(min_size[0], rel=0.2)
        and len(fit.min_size) == len(min_size)
    )
    for size in sizes:
        for short in fit.min_size:
            canvas_of(tuple(size), short, fit.max_size, fit.canvases)  # raises where none holds it


def test_links_to_folders_are_followed(tmp_path):
    real = yolo_folder(tmp_path / "real", "flat", yaml=False)
    for name in ("images", "labels"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "more").symlink_to(real / name)
    found = survey(tmp_path / "d", tmp_path)
    assert (
        sum(len(found.open(s)) for s in ("train", "validation", "test")) == 20
        and len(found.open("train").info.meta["annotations"].boxes) > 0
    )


def test_a_yaml_takes_what_lies_beside_it_first_and_nothing_from_elsewhere(tmp_path):
    root = yolo_folder(tmp_path / "d", "split/images")
    write(tmp_path / "train" / "images" / "other.png", image(0))
    write(tmp_path / "train" / "labels" / "other.txt", b"")
    assert len(survey(root, tmp_path).open("train")) == 12  # "../train/images", as Roboflow writes
    shutil.rmtree(root / "train")
    with pytest.raises(ValueError, match=r"outside of this folder; .* --config.data.options=.{'allow_outside': True}"):
        survey(root, tmp_path)
    assert len(survey(root, tmp_path, {"allow_outside": True}).open("train")) == 1


def test_images_beside_those_of_training_are_not_dropped(tmp_path):
    root = yolo_folder(tmp_path / "d", yaml=False)
    write(root / "images" / "x.png", image(0))
    with pytest.raises(ValueError, match="images/x.png; move them to one"):
        survey(root, tmp_path)


def test_a_test_set_of_several_splits_says_which_is_missing(tmp_path):
    found, other = survey(coco(tmp_path / "d"), tmp_path), coco(tmp_path / "e")
    shutil.rmtree(other / "test")
    with pytest.raises(ValueError, match=r"has the splits \['train', 'validation'\]; expected one"):
        found.other(other)


def test_the_index_of_all_splits_is_kept(tmp_path, monkeypatch):
    from imgrec_jax.data.own import index

    monkeypatch.setattr(index, "KEPT_FROM", 1)
    root, looked, describe = coco(tmp_path / "d"), [], index.describe
    monkeypatch.setattr(index, "describe", lambda data, name, most: looked.append(name) or describe(data, name, most))
    survey(root, tmp_path)
    survey(root, tmp_path)
    assert len(looked) == 20


def test_test_sets_that_share_files_are_told(tmp_path, capfd):
    found = survey(coco(tmp_path / "d"), tmp_path)
    found.other(yolo_folder(tmp_path / "e", "flat"))
    assert "leakage: 16 files are equal to ones that are trained on" in capfd.readouterr().err


def test_the_order_of_classes_may_be_given(tmp_path):
    found = survey(coco(tmp_path / "d"), tmp_path, {"class_names": ("cube", "ball")})
    plain = survey(tmp_path / "d", tmp_path).open("train")
    source = found.open("train")
    assert found.class_names == source.info.class_names == ("cube", "ball")
    for i in range(len(source)):
        assert (source[i]["box_label"] == 3 - plain[i]["box_label"]).all()
    with pytest.raises(ValueError, match="'cube' to be among .'ball'., as config.data.options.class_names says"):
        survey(tmp_path / "d", tmp_path, {"class_names": ("ball",)})


def test_key_points_of_coco_lie_beside_its_instances(tmp_path):
    root = coco(tmp_path / "d")
    for split in ("train", "val", "test"):
        json_file = root / split / "_annotations.coco.json"
        write(root / "annotations" / f"person_keypoints_{split}2017.json", json_file.read_bytes().replace(b"ball", b"person"))
        write(root / "annotations" / f"captions_{split}2017.json", b'{"images": [], "annotations": []}')
        json_file.rename(root / "annotations" / f"instances_{split}2017.json")
    found = survey(root, tmp_path)
    assert found.class_names == CLASSES and len(found.open("train")) == 12


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(coco(tmp_path / "d") / "a.json")
    assert len(survey(tmp_path / "d", tmp_path).open("train")) == 12


def whole_coco(root, split, file, images, numbers):
    """A json of one split at `file`, its images under `images` with names that do not tell the split."""
    for k, n in enumerate(numbers):
        write(root / images / f"{k:04}.png", image(n))
    entries = [{"id": k, "file_name": f"{k:04}.png", "height": SIZE[0], "width": SIZE[1]} for k in range(len(numbers))]
    objects = [
        {"id": k + 1, "image_id": k, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}
        for k in range(len(numbers))
    ]
    content = {"images": entries, "annotations": objects, "categories": [{"id": 1, "name": "ball"}]}
    return write(root / file.format(split=split), json.dumps(content).encode())


@pytest.mark.parametrize(
    "file",
    [
        "annotations/{split}_coco.json", "coco_{split}.json", "{split}_labels.json", "annotations/data-{split}.json",
        "annotations/instances_{split}_v2.json", "{split}/annotations/instances_default.json",
    ],
)  # fmt: skip
def test_a_json_takes_the_images_of_its_own_split(tmp_path, file):
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        whole_coco(tmp_path / "d", split, file, f"images/{split}", numbers)
    found = survey(tmp_path / "d", tmp_path)
    places = {name: {path.parent.name for path in split.paths} for name, split in found.splits.items()}
    assert places["train"] == {"train"} and places["validation"] == {"val"}


def test_images_that_may_be_of_two_folders_are_asked_for(tmp_path):
    for folder in ("first", "second"):
        whole_coco(tmp_path / "d", "", "all.json", f"pictures/{folder}", range(6))
    with pytest.raises(
        ValueError, match=r"all\.json: its images, e\.g\. 0000\.png, are in .*first, .*second, and no name tells"
    ):
        survey(tmp_path / "d", tmp_path)


def test_a_json_may_lead_out_of_its_folder_where_that_is_allowed(tmp_path):
    file = whole_coco(tmp_path / "d", "", "all.json", "../elsewhere", range(6))
    content = json.loads(file.read_text())
    for entry in content["images"]:
        entry["file_name"] = "../elsewhere/" + entry["file_name"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="allow_outside=True"):
        survey(tmp_path / "d", tmp_path)
    assert survey(tmp_path / "d", tmp_path, {"allow_outside": True}).splits["train"].paths


def test_labels_that_match_no_image_stop(tmp_path):
    """A folder called labels is YOLO's where text files are in it, and these are the images'."""
    lines = yolo_lines(BOXES[1]).encode()
    for n in range(6):
        for case in ("json", "doubled", "upper", "xml"):
            write(tmp_path / case / "images" / f"{n}.png", image(n))
        write(tmp_path / "doubled" / "labels" / f"{n}.png.txt", lines)
        write(tmp_path / "upper" / "labels" / f"{n}.TXT", lines)
        write(tmp_path / "xml" / "labels" / f"{n}.xml", b"<annotation/>")
    whole_coco(tmp_path / "json", "", "labels/instances.json", "images", range(6))
    assert survey(tmp_path / "json", tmp_path).lines[0].endswith("COCO, 6 images")
    assert len(survey(tmp_path / "upper", tmp_path).splits["train"].annotations.boxes)
    with pytest.raises(
        ValueError, match=r"none of the 6 images has a text file.*labels/0\.txt; text files without an image: labels"
    ):
        survey(tmp_path / "doubled", tmp_path)
    with pytest.raises(ValueError, match=r"holds \['images', 'labels'\]; expected Pascal VOC"):
        survey(tmp_path / "xml", tmp_path)


def test_text_files_of_no_image_and_test_images_without_any_are_told(tmp_path):
    root = yolo_folder(tmp_path / "d", yaml=False)
    write(root / "labels" / "train" / "stale.txt", b"")
    write(root / "labels" / "classes.txt", b"ball\ncube\n")
    assert any("1 text files belong to no image, e.g. labels/train/stale.txt" in line for line in survey(root, tmp_path).lines)
    (root / "labels" / "train" / "stale.txt").unlink()
    shutil.rmtree(root / "labels" / "test")
    found = survey(root, tmp_path)
    assert "test" not in found.splits or found.splits["test"].paths
    assert any("none of the 4 images of test has a text file: left out" in line for line in found.lines)
    shutil.rmtree(root / "labels" / "val")
    with pytest.raises(ValueError, match="none of the 4 images of validation has a text file"):
        survey(root, tmp_path)


def test_key_points_behind_a_box_are_passed_over(tmp_path):
    root = yolo_folder(tmp_path / "d")
    want = survey(root, tmp_path).splits["train"].annotations.boxes
    for path in root.glob("labels/*/*.txt"):
        path.write_text("\n".join(f"{line} .45 .45 .55 .55 .5 .5" for line in path.read_text().splitlines()))
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "\nkpt_shape: [3, 2]\n")
    np.testing.assert_array_equal(survey(root, tmp_path).splits["train"].annotations.boxes, want)
    (root / "data.yaml").write_text((root / "data.yaml").read_text().replace("[3, 2]", "[4, 2]"))
    with pytest.raises(ValueError, match=r"line 1: 11 numbers; expected 5, or 13: kpt_shape has 8"):
        survey(root, tmp_path)


def test_lists_that_lead_elsewhere_are_refused(tmp_path):
    root = yolo_folder(tmp_path / "d")
    write(tmp_path / "elsewhere" / "x.png", image(0))
    write(tmp_path / "elsewhere" / "x.txt", b"")
    (root / "train.txt").write_text(f"{tmp_path / 'elsewhere' / 'x.png'}\n")
    (root / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [ball, cube]\n")
    with pytest.raises(ValueError, match=r"train\.txt: .*elsewhere/x\.png lies outside of .*allow_outside"):
        survey(root, tmp_path)
    assert len(survey(root, tmp_path, {"allow_outside": True}).splits["train"].paths) == 1


def test_corners_that_begin_at_0_are_counted_from_0(tmp_path):
    root = voc(tmp_path / "d")
    for path in (root / "Annotations").glob("*.xml"):  # each corner one less: counted from 0
        text = path.read_text()
        for key in ("xmin", "ymin"):
            text = "".join(
                f"<{key}>{int(part.split('<')[0]) - 1}<{part.split('<', 1)[1]}" if k else part
                for k, part in enumerate(text.split(f"<{key}>"))
            )
        path.write_text(text)
    shifted = survey(root, tmp_path)
    assert not any("counted from 0" in line for line in shifted.lines)  # nothing proves it
    want = shifted.splits["train"].annotations.boxes + [1, 1, 0, 0]
    np.testing.assert_array_equal(survey(root, tmp_path, {"one_based": False}).splits["train"].annotations.boxes, want)
    first = next(path for path in sorted((root / "Annotations").glob("*.xml")) if "<xmin>" in path.read_text())
    first.write_text(first.read_text().replace("<xmin>4<", "<xmin>0<", 1))
    found = survey(root, tmp_path)
    assert any("1 of 20 files have boxes that begin at 0" in line for line in found.lines)
    assert found.splits["train"].annotations.boxes.min() == 0


@pytest.mark.parametrize(("tag", "format"), [(3, "JPEG"), (6, "JPEG"), (3, "TIFF"), (6, "TIFF")])
def test_turned_images_without_boxes_keep_their_stored_size(tmp_path, tag, format):
    """With boxes they are refused, whatever the format; without, every example has the size of its pixels."""
    root = yolo_folder(tmp_path / "d", "flat")
    exif = {"tiffinfo": {0x0112: tag}} if format == "TIFF" else {"exif": Image.Exif()}
    if format == "JPEG":
        exif["exif"][0x0112] = tag
    name = f"turned.{'tif' if format == 'TIFF' else 'jpg'}"
    write(root / "images" / name, encoded(pixels("cat", 77, SIZE), format, **exif))
    write(root / "labels" / "turned.txt", b"")
    found = survey(root, tmp_path)
    at = [(split, i) for split, s in found.splits.items() for i, path in enumerate(s.paths) if path.name == name]
    ((split, i),) = at
    assert found.open(split)[i]["image"].shape[:2] == SIZE
    write(root / "labels" / "turned.txt", yolo_lines(BOXES[1]).encode())
    with pytest.raises(ValueError, match=rf"{name}: has an EXIF orientation"):
        survey(root, tmp_path)


def test_names_that_are_no_utf_8(tmp_path):
    root = yolo_folder(tmp_path / "d", yaml=False)
    for n, folder in ((1, "images"), (1, "labels")):
        path = next((root / folder / "train").glob(f"{n:02}.*"))
        os.rename(path, os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9" + os.fsencode(path.suffix)))
    found = survey(root, tmp_path)
    assert len(found.splits["train"].paths) == 12 and found.open("train")[0]["image"].shape[:2] == SIZE


def test_deep_images_keep_their_depth(tmp_path):
    root = yolo_folder(tmp_path / "d")
    deep = np.random.default_rng(0).integers(0, 4096, SIZE).astype(np.uint16)
    write(root / "images" / "train" / "01.png", encoded(Image.fromarray(deep)))
    found = survey(root, tmp_path)
    assert found.found["data.options.depth"] == 16
    by_name = {path.name: i for i, path in enumerate(found.splits["train"].paths)}
    source = found.open("train")
    np.testing.assert_allclose(source[by_name["01.png"]]["image"][..., 2], deep / 65535, rtol=1e-6)
    np.testing.assert_allclose(source[by_name["02.png"]]["image"], pixels("cat", 2, SIZE) / 255, rtol=1e-6)


def damage(file, how):
    data = file.read_bytes()
    if how == "no annotations":
        return write(file, json.dumps({k: v for k, v in json.loads(data).items() if k != "annotations"}).encode())
    return write(file, {"cut off": data[:-40], "empty": b"", "latin-1": data.replace(b"ball", b"b\xe4ll")}[how])


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("how", ["cut off", "empty", "latin-1", "no annotations"])
def test_a_json_of_a_split_that_cannot_be_read_is_named(tmp_path, how, split):
    """Otherwise the split would be cut from the training images, and nobody told."""
    root = coco(tmp_path / "d")
    damage(root / split / "_annotations.coco.json", how)
    if (how, split) == ("no annotations", "test"):  # as COCO gives those of its test images
        found = survey(root, tmp_path)
        assert "test" not in found.splits and any("without 'annotations': test is left out" in line for line in found.lines)
        return
    with pytest.raises(ValueError, match=rf"{split}/_annotations\.coco\.json looks like the annotations of {split}.*, but "):
        survey(root, tmp_path)


def test_other_json_files_and_capital_letters_do_not_matter(tmp_path):
    root = coco(tmp_path / "d")
    (root / "val" / "_annotations.coco.json").rename(root / "val" / "_annotations.coco.JSON")
    write(root / "val" / "notes.json", b"{")
    write(root / "test" / "results.json", b"[]")
    found = survey(root, tmp_path)
    assert {name: len(split.paths) for name, split in found.splits.items()} == {"train": 12, "validation": 4, "test": 4}
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    write(file, json.dumps({**content, "images": None}).encode())
    with pytest.raises(ValueError, match=r"train/_annotations\.coco\.json: images is None; expected a list"):
        survey(root, tmp_path)


@pytest.mark.parametrize("make", [coco, voc], ids=["coco", "voc"])
def test_boxes_in_shares_of_the_image_are_refused(tmp_path, make):
    root = make(tmp_path / "d")
    for file in root.rglob("*.json"):
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            entry["bbox"] = [v / 100 for v in entry["bbox"]]
        write(file, json.dumps(content).encode())
    for file in root.rglob("*.xml"):
        write(file, re.sub(r"(<[xy]m\w\w>)(\d+)", lambda m: f"{m[1]}{int(m[2]) / 100}", file.read_text()).encode())
    with pytest.raises(ValueError, match=r"every box lies within 0\.\.1, e\.g\. .*expected pixels"):
        survey(root, tmp_path)


@pytest.mark.parametrize("key", ["val", "valid", "validation", "dev"])
def test_a_yaml_may_call_its_splits_as_folders_may(tmp_path, key):
    root = yolo_folder(tmp_path / "d")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("val:", f"{key}:"))
    assert len(survey(root, tmp_path).splits["validation"].paths) == 4
    (root / "data.yaml").write_text(text + "\nval_2: images/test\ntrain_note: made by me\n")
    found = survey(root, tmp_path)
    assert len(found.splits["validation"].paths) == 4 and "data.yaml: 'val_2' is passed over beside 'val'" in str(found.lines)
    (root / "data.yaml").write_text(text.replace("test:", "test_note:").replace("images/test", "soon"))
    assert any("'test_note' is passed over: no key of a split" in line for line in survey(root, tmp_path).lines)
    (root / "data.yaml").write_text(text + f"\n{'valid' if key == 'val' else key}: images/test\n")
    with pytest.raises(ValueError, match=r"data\.yaml has a key '\w+' beside 'val'; expected train, val and test, each once"):
        survey(root, tmp_path)
    (root / "data.yaml").write_text(text.replace("test:", "test1:"))
    with pytest.raises(ValueError, match="has a key 'test1'; expected"):
        survey(root, tmp_path)


def test_a_yaml_may_number_its_classes_in_texts_and_lie_beside_others(tmp_path):
    root = yolo_folder(tmp_path / "d")
    text = (root / "data.yaml").read_text().replace("[ball, cube]", "{0: ball, '1': cube}")
    (root / "data.yaml").write_text(text)
    write(root / "._data.yaml", b"\0\5\x16\7Mac OS X\xa1")
    write(root / "args.yaml", b"model: !!python/object:pathlib.Path {}\nseed: 0\n")
    assert survey(root, tmp_path).class_names == CLASSES
    (root / "data.yaml").write_text(text.replace("'1'", "one"))
    with pytest.raises(ValueError, match=r"names has the keys \[0, 'one'\]"):
        survey(root, tmp_path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
@pytest.mark.parametrize("layout", ["data.yaml", "classes.txt"])
def test_names_of_classes_that_are_no_utf_8_are_told_by_file(tmp_path, encoding, layout):
    root = yolo_folder(tmp_path / "d", yaml=False)
    text = "b\xe4ll\ncube\n" if layout == "classes.txt" else "train: images/train\nval: images/val\nnames: [b\xe4ll, cube]\n"
    write(root / layout, text.encode(encoding))
    with pytest.raises(ValueError, match=rf"{layout} is no (UTF-8 text|YAML)"):
        survey(root, tmp_path)


@pytest.mark.parametrize(
    "names", [("train2017", "val2017", "test2017"), ("stage1_train", "a_val", "test1"), ("TRAIN", "Valid", "tst-2")]
)
@pytest.mark.parametrize("layout", ["yolo", "lists"])
def test_words_of_names_tell_the_splits(tmp_path, layout, names):
    root = tmp_path / "d"
    if layout == "yolo":
        yolo_folder(root, yaml=False)
        places = [root / kind / split for kind in ("images", "labels") for split in ("train", "val", "test")]
        suffix = ""
    else:
        voc(root)
        places, suffix = [root / "ImageSets" / "Main" / f"{split}.txt" for split in ("train", "val", "test")], ".txt"
        write(root / "ImageSets" / "Main" / "ball_test.txt", b"00 1\n01 -1\n")
        write(root / "Annotations" / "._01.xml", b"\0\5\x16\7Mac OS X\xa1")
    for place in places:
        place.rename(place.with_name(names[("train", "val", "test").index(place.stem)] + suffix))
    found = survey(root, tmp_path)
    assert {name: len(split.paths) for name, split in found.splits.items()} == {"train": 12, "validation": 4, "test": 4}
    if layout == "lists":
        write(root / "ImageSets" / "Main" / "test_more.txt", b"00\n")
        with pytest.raises(ValueError, match="are both of split 'test'; move one away, or call the one that is meant test.txt"):
            survey(root, tmp_path)


@pytest.mark.parametrize(
    "names",
    [("test1", "test2", "test3"), ("dev1", "dev2", "cam1"), ("val_gardena", "bozen", "meran"), ("train_station", "a", "b")],
)
@pytest.mark.parametrize("layout", ["yolo", "objects"])
def test_a_word_of_one_folder_s_name_makes_no_split(tmp_path, layout, names):
    """The rule of classification: every folder beside it has such a word, and training is among them."""
    for n, name in enumerate(names):
        for k in range(5):
            if layout == "yolo":
                write(tmp_path / "d" / "images" / name / f"{k}.png", image(5 * n + k))
                write(tmp_path / "d" / "labels" / name / f"{k}.txt", yolo_lines(BOXES[1]).encode())
            else:
                write(tmp_path / "d" / name / f"{k}" / "images" / "a.png", image(5 * n + k))
                write(tmp_path / "d" / name / f"{k}" / "masks" / "0.png", encoded(np.eye(*SIZE, dtype=np.uint8) * 255))
    found = survey(tmp_path / "d", tmp_path)
    assert sum(len(split.paths) for split in found.splits.values()) == 15 and len(found.splits) == 3
    assert any(line.startswith("cut from the training images") for line in found.lines)


def test_folders_of_splits_beside_one_of_none_are_told(tmp_path):
    root = yolo_folder(tmp_path / "d", yaml=False)
    for kind in ("images", "labels"):
        for split, name in (("train", "train2017"), ("val", "val2017"), ("test", "extra")):
            (root / kind / split).rename(root / kind / name)
    said = (
        "images/train2017, images/val2017 are not read as splits, beside extra: rename them to train, val and test if they are"
    )
    assert said in survey(root, tmp_path).lines


@pytest.mark.parametrize(
    ("name", "text"),
    [("train_more", "00\n"), ("val_hard", "12\n"), ("ball_train", "00\n"), ("cube_train", ""), ("notes_test", "\xe4")],
)
def test_a_list_that_has_the_name_of_its_split_is_read(tmp_path, name, text):
    root = voc(tmp_path / "d")
    write(root / "ImageSets" / "Main" / f"{name}.txt", text.encode("latin-1"))
    found = survey(root, tmp_path)
    assert {name: len(split.paths) for name, split in found.splits.items()} == {"train": 12, "validation": 4, "test": 4}
    assert f"lists that are not read, beside those called after the splits: {name}.txt" in found.lines


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("train_log", b'{"a": 1}\n{"a": 2}\n'), ("work/val_metrics", b""), ("test_outputs/metrics", b"nan, nan"),
        ("captions_val", b'{"images": [], "annotations": [{"id": 1, "caption": "a"}]}'),
        ("annotations/val_questions", b'{"images": [1], "questions": []}'),
    ],
)  # fmt: skip
def test_a_json_that_looks_like_no_coco_s_stops_nothing(tmp_path, name, data):
    whole_coco(tmp_path / "d", "train", "annotations/{split}.json", "images", range(8))
    file = write(tmp_path / "d" / f"{name}.json", data)
    found = survey(tmp_path / "d", tmp_path)
    assert "train_log" in name or any(f"{file} " in line and "passed over" in line for line in found.lines)
    whole = whole_coco(tmp_path / "d", "val", "annotations/{split}.json", "images/val", range(4))
    write(tmp_path / "d" / "annotations" / "val_tiny.json", whole.read_bytes())
    assert len(survey(tmp_path / "d", tmp_path).splits["validation"].paths) == 4  # val.json before val_tiny.json
    (tmp_path / "d" / "annotations" / "val_tiny.json").unlink()
    for broken in (b"", whole.read_bytes()[:-9]):
        write(whole, broken)
        with pytest.raises(ValueError, match=r"annotations/val\.json looks like the annotations of validation, but cannot be"):
            survey(tmp_path / "d", tmp_path)


def test_of_several_yamls_the_one_that_describes_the_folder_counts(tmp_path):
    root = yolo_folder(tmp_path / "d")
    right = (root / "data.yaml").read_text()
    (root / "a.yaml").write_text("names: [cat, dog, cow]\ndepth: 3\n")  # of a network, say
    (root / "hyp.yaml").write_text("lr: 0.1\n")
    found = survey(root, tmp_path)
    assert found.class_names == CLASSES and "a.yaml is passed over beside data.yaml" in str(found.lines)
    (root / "a.yaml").write_text(right.replace("ball", "bell"))  # another version of it
    assert survey(root, tmp_path).class_names == CLASSES
    (root / "data.yaml").rename(root / "b.yaml")
    with pytest.raises(ValueError, match=r"has a.yaml and b.yaml, which name classes and splits differently; keep one"):
        survey(root, tmp_path)
    (root / "a.yaml").write_text(right + "# the same\n")
    assert survey(root, tmp_path).class_names == CLASSES


@pytest.mark.parametrize(
    "other, text",
    [
        ("deploy.yaml", "a: 1\n---\nlist:\n  names: [x]\n"),
        ("template.yaml", "names: {{ names }}\n"),
        ("data_old.yaml", "names: [caf\xe9]\n"),
        ("data.yml", "names: [\n"),
        ("a.yaml", "names: [a, b]\nval: true\n"),
    ],
)
def test_a_yaml_that_nobody_needs_stops_nothing(tmp_path, other, text):
    root = yolo_folder(tmp_path / "d")
    (root / other).write_bytes(text.encode("latin-1"))
    found = survey(root, tmp_path)
    assert found.class_names == CLASSES and f"{other} is passed over beside data.yaml" in str(found.lines)
    (root / "data.yaml").rename(root / "z.yaml")
    if other != "data.yml":
        assert survey(root, tmp_path).class_names == CLASSES
        (root / "z.yaml").unlink()
    if other != "a.yaml":
        with pytest.raises(ValueError, match=f"{other} is no YAML"):
            survey(root, tmp_path)


def test_names_are_the_same_however_they_are_written(tmp_path):
    root = yolo_folder(tmp_path / "d")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").rename(root / "my.yaml")
    (root / "my2.yaml").write_text(text.replace("[ball, cube]", "{0: ball, 1: cube}"))
    assert survey(root, tmp_path).class_names == CLASSES
    (root / "data.yaml").write_text(text)
    (root / "data.yml").write_text(text.replace("ball", "bell"))
    with pytest.raises(ValueError, match=r"data.yaml and data.yml, which name classes and splits differently; keep one$"):
        survey(root, tmp_path)


def test_file_names_that_windows_wrote(tmp_path):
    root = coco(tmp_path / "d", splits=False)
    content = json.loads((root / "labels.json").read_text())
    for one in content["images"]:
        one["file_name"] = rf"pictures\{one['file_name']}"
    (root / "labels.json").write_text(json.dumps(content))
    found = survey(root, tmp_path)
    assert sum(len(found.open(split)) for split in ("train", "validation", "test")) == len(BOXES)


def test_classes_are_named_beside_the_labels(tmp_path):
    root = yolo_folder(tmp_path / "d", yaml=False)
    (root / "classes.txt").unlink(missing_ok=True)
    for split in ("train", "val"):  # as LabelImg writes it
        write(root / "labels" / split / "classes.txt", b"ball\r\ncube\r\n")
    assert survey(root, tmp_path).class_names == CLASSES
    begun = survey(root, tmp_path, {"class_names": ("0", "1")})  # a run from when these names were not read
    assert begun.class_names == ("0", "1") and begun.open("train")[1]["box_label"].tolist() == [1, 2]
    write(root / "labels" / "val" / "classes.txt", b"ball\n")  # when nothing but balls had been drawn
    assert survey(root, tmp_path).class_names == CLASSES
    write(root / "labels" / "val" / "classes.txt", b"cube\nball\n")
    with pytest.raises(ValueError, match="name the classes differently; keep one"):
        survey(root, tmp_path)


@pytest.mark.parametrize("line", ["data/images/train/{}.png", "images\\train\\{}.png", "./images/train/{}.png"])
def test_a_list_of_images_that_was_written_elsewhere(tmp_path, line):
    root = yolo_folder(tmp_path / "d")
    names = sorted(path.stem for path in (root / "images" / "train").iterdir())
    (root / "train.txt").write_text("\n".join(map(line.format, names)))
    (root / "data.yaml").write_text("names: [ball, cube]\ntrain: train.txt\nval: images/val\n")
    assert len(survey(root, tmp_path).open("train")) == len(names)
    (root / "train.txt").write_text("images/train/other.png\n")
    with pytest.raises(ValueError, match="other.png, which is not there: expected"):
        survey(root, tmp_path)


@pytest.mark.parametrize(
    "layout",
    [
        "annotations/ images/",
        "Annotations/ images/",
        "annotations/xmls/ images/",
        "SPLIT/ SPLIT/",
        "SPLIT/annotations/ SPLIT/images/",
    ],
)
def test_pascal_voc_as_tools_lay_it_out(tmp_path, layout):
    """As Kaggle's sets made with LabelImg, the Oxford pets, and Roboflow have it."""
    root = voc(tmp_path / "voc")
    for n in BOXES:
        for kind, path in zip(layout.split(), (f"Annotations/{n:02}.xml", f"JPEGImages/{n:02}.png"), strict=True):
            data = (root / path).read_bytes()
            write(tmp_path / "d" / kind.replace("SPLIT", split_of(n)) / path.split("/")[1], data)
    found = survey(tmp_path / "d", tmp_path)
    assert found.class_names == CLASSES
    sources = {split: found.open(split) for split in ("train", "validation", "test")}
    if "SPLIT" in layout:
        assert [len(source) for source in sources.values()] == [12, 4, 4]
    examples = [source[i] for source in sources.values() for i in range(len(source))]
    assert len(examples) == len(BOXES)
    for example in examples:
        boxes = BOXES[int(example["file_name"].split(".")[0])]
        np.testing.assert_allclose(example["boxes"], np.array([box[1:] for box in boxes]).reshape(-1, 4))
    if layout.startswith("annotations/ "):  # the same objects for YOLO beside them count, as before
        yolo_folder(tmp_path / "d", "flat", yaml=False)
        assert "YOLO" in survey(tmp_path / "d", tmp_path).lines[0]
