"""A data set can be looked at before training, written as files, and checked, whatever its task."""

import json
import os
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax import assemble
from imgrec_jax.data.check_examples import check_examples
from imgrec_jax.data.sets import coco, mask_folder
from imgrec_jax.data.source import ArraySource, SourceInfo
from imgrec_jax.pages import browse, html, plots, split_files
from tests import small_runs


@pytest.mark.parametrize("task", small_runs.TASKS)
def test_a_page_of_every_task_shows_the_data_and_needs_nothing_else(small_data, tmp_path, task):
    experiment = assemble.build(small_runs.config_of(task, small_data[task]))
    page = browse.write(experiment, tmp_path, lambda line: None, reports=assemble.reports(experiment.config))
    text = page.read_text()
    for heading in ("Augmented training batches", "train: ", "test: ", "Class histogram", "Check: "):
        assert heading in text
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "<script" not in text
    assert text.count("<img") > 20


def test_files_that_are_written_are_the_split(small_data, tmp_path):
    sources = {
        task: assemble.build(small_runs.config_of(task, small_data[task])).data.evals["test"].source
        for task in ("detection", "segmentation")
    }
    for task, source in sources.items():
        split_files.write(source, tmp_path / task, "test")
    again = coco.read_folder(tmp_path / "detection/test", tmp_path / "detection/test.json")
    table = sources["detection"].info.meta["annotations"]
    for key in ("boxes", "labels", "image_ids", "sizes", "areas"):
        np.testing.assert_array_equal(getattr(again.annotations, key), getattr(table, key))
    maps = mask_folder.open_mask_folder(tmp_path / "segmentation", "test", kind="index", class_names=("a", "b"))
    for index in range(len(maps)):
        for key in ("image", "segmentation"):
            np.testing.assert_array_equal(maps[index][key], sources["segmentation"][index][key])


def test_check_names_what_repeats_contradicts_and_cannot_be_read():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 4, 4, 3), np.uint8)
    image[2], image[3], image[4] = image[0], image[1], 7

    class Broken(ArraySource):
        def __getitem__(self, index):
            if index == 5:
                raise ValueError("f.png: a damaged PNG")
            return super().__getitem__(index)

    source = Broken({"image": image, "label": np.array([0, 1, 0, 0, 9, 1])}, SourceInfo("x test", ("a", "b")))
    report = check_examples(source, {})
    kinds = [(f.kind, f.file) for f in report.findings]
    assert sorted(kinds) == [
        ("blank image", "example 4"), ("contradiction", "example 3"), ("corrupt file", "example 5"),
        ("label outside the classes", "example 4"), ("repeated image", "example 2"),
    ]  # fmt: skip
    assert len(report.bad()) == 2 and report.counts["a"] == 3 and "x test: 6 images of 1 sizes: 4 x 4" in report.table()
    other = ArraySource({"image": image[:1], "label": np.array([0])}, SourceInfo("x train", ("a", "b")))
    seen: dict = {}
    check_examples(other, seen)
    assert {f.kind for f in check_examples(source, seen).findings if f.file == "example 0"} == {"in another split"}


def test_check_mode_serves_every_task(small_data):
    for task in ("classification", "segmentation"):
        reports = list(assemble.reports(small_runs.config_of(task, small_data[task])))
        assert len(reports) >= 2 and not any(report.bad() for report in reports)
        assert json.dumps(reports[0].counts)


def test_several_labels_an_image_are_checked_and_written(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (3, 8, 8, 3), np.uint8),
        "labels": np.array([[1, 0], [1, 1], [0, 0]]),
        "label_known": np.array([[True, True], [True, False], [True, True]]),
    }
    source = ArraySource(arrays, SourceInfo("x test", ("a", "b")))
    report = check_examples(source, {})
    assert report.counts == {"a": 2, "b": 1} and not report.findings
    _, path = split_files.write(source, tmp_path, "test")
    assert path.read_text().split() == ["file,a,b", "test/00000.png,1,0", "test/00001.png,1,", "test/00002.png,0,0"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_sixteen_bits_are_written_with_all_of_them(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    split_files._png(tmp_path / "a.png", (image / np.float32(65535)).astype(np.float32))
    read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).reshape(9, 7, channels)[..., ::-1]
    np.testing.assert_array_equal(read, image)
    split_files._png(tmp_path / "b.png", (image >> 8).astype(np.uint8))
    assert cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint8


def test_every_channel_of_a_png_is_where_it_was_and_what_no_png_holds_is_refused(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 5), np.uint8)
    for channels in (1, 3, 4):
        split_files._png(tmp_path / "a.png", image[..., :channels])
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")).reshape(5, 6, -1), image[..., :channels])
    for channels in (2, 5):
        with pytest.raises(ValueError, match=f"a.png: an image of {channels} channels"):
            split_files._png(tmp_path / "a.png", image[..., :channels])


def test_long_names_leave_room_for_a_plot_and_are_told_apart(recwarn):
    names = [f"{'Plantae Tracheophyta Magnoliopsida Asterales ' * 3}{n}" for n in range(3)]
    assert plots.matrix(np.eye(3, dtype=int), names, names).png and not [w for w in recwarn if "collapsed" in str(w.message)]
    assert len({plots._label(name) for name in names}) == 3 and plots._label("a b") == "a b"


def test_void_pixels_are_of_no_class():
    arrays = {
        "image": np.zeros((2, 4, 4, 3), np.uint8),
        "segmentation": np.array([np.eye(4), np.zeros((4, 4))], np.int32),
        "pixel_valid": np.array([np.tile([[True], [False]], (2, 4)), np.zeros((4, 4))], bool),
    }
    counts, _, shares = browse._statistics(ArraySource(arrays, SourceInfo("x", ("nothing", "cell"))), ["nothing", "cell"])
    assert shares and counts == {"nothing": 0.75, "cell": 0.25}


def test_names_of_classes_need_not_be_utf8(tmp_path, recwarn):
    """A folder that was unpacked with names of another system."""
    name = os.fsdecode(b"caf\xe9 \xe7\x8c\xab")
    html.write(tmp_path / "a.html", html.page(name, name, [(name, html.table([name], []))]))
    assert "caf" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert plots.bars({name: 1.0}, "x").png and not [w for w in recwarn if "Glyph" in str(w.message)]
    source = ArraySource({"image": np.zeros((1, 4, 4, 3), np.uint8), "label": np.array([0])}, SourceInfo("x", (name,)))
    folder, table = split_files.write(source, tmp_path, "test")
    assert os.fsencode(folder / name / "00000.png") == os.fsencode(next(folder.rglob("*.png")))
    assert table.read_bytes().splitlines()[1].endswith(b"," + os.fsencode(name))
