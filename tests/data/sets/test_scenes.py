"""Digit scenes: reproducible, tightly annotated, kept apart by split, and the same through TFDS and without it."""

import dataclasses
import sys

import numpy as np
import pytest

from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops.geometry import boxes_of_masks
from imgrec_jax.data.sets import scene_drawing as drawing
from imgrec_jax.data.sets import scenes
from imgrec_jax.data.source import Request
from tests.data.digits import draw_digits

DIGITS = draw_digits()
OPTIONS = drawing.SceneOptions()


@pytest.fixture(scope="module")
def made():
    images, labels = drawing.digits_of_split(DIGITS, "train")
    return [drawing.make_scene(images, labels, OPTIONS, "train", index) for index in range(120)]


def test_boxes_are_tight_and_labels_agree_with_the_map(made):
    for scene in made:
        masks = scene.instances == np.arange(1, len(scene.boxes) + 1)[:, None, None]
        np.testing.assert_array_equal(scene.boxes, boxes_of_masks(masks))
        assert ((scene.boxes[:, 2:] - scene.boxes[:, :2]) >= 2).all()
        assert scene.instances.max(initial=0) == len(scene.boxes)
        for mask, label in zip(masks, scene.labels, strict=True):
            assert (scene.segmentation[mask] == label).all()
        assert (scene.segmentation == 0).sum() == (scene.instances == 0).sum()


def test_there_are_empty_and_crowded_scenes_and_every_digit(made):
    counts = np.array([len(scene.boxes) for scene in made])
    assert (counts == 0).any() and (counts >= 9).any() and 3 < counts.mean() < 6
    assert set(np.concatenate([scene.labels for scene in made])) == set(range(1, 11))
    heights = np.concatenate([scene.boxes[:, 3] - scene.boxes[:, 1] for scene in made])
    assert np.percentile(heights, 95) > 2.5 * np.percentile(heights, 5)


def test_boxes_overlap_within_limits(made):
    overlaps = []
    for scene in made:
        boxes = scene.boxes[:, [1, 0, 3, 2]].tolist()
        overlaps += [drawing._overlap(box, boxes[:n]) for n, box in enumerate(boxes)]
    # placed boxes keep to the limit; what occlusion cuts away can raise the overlap of the rest a little
    assert 0.1 < max(overlaps) < drawing.MAX_OVERLAP + 0.15


def test_digits_stand_out(made):
    """Mean luma of a digit and of the ring around it differ, or nobody could see it."""
    import cv2

    contrasts = []
    for scene in made:
        luma = scene.image @ np.array([0.299, 0.587, 0.114])
        for n in range(len(scene.boxes)):
            mask = (scene.instances == n + 1).astype(np.uint8)
            ring = (cv2.dilate(mask, np.ones((7, 7))) > 0) & (scene.instances == 0)
            contrasts.append(abs(luma[mask > 0].mean() - luma[ring].mean()))
    assert np.percentile(contrasts, 5) > 20 and np.median(contrasts) > 50


def test_a_scene_is_a_function_of_seed_split_and_index(made):
    images, labels = drawing.digits_of_split(DIGITS, "train")
    again = drawing.make_scene(images, labels, OPTIONS, "train", 7)
    for one, two in zip(made[7], again, strict=True):
        np.testing.assert_array_equal(one, two)
    others = [
        drawing.make_scene(images, labels, drawing.SceneOptions(seed=1), "train", 7),
        drawing.make_scene(images, labels, OPTIONS, "test", 7),
        made[8],
    ]
    assert all((other.image != again.image).any() for other in others)


def test_splits_share_no_digit():
    marked = {split: (np.arange(n)[:, None, None], np.arange(n)) for split, n in (("train", 60), ("test", 10))}
    train, validation, test = (drawing.digits_of_split(marked, split)[1].tolist() for split in drawing.SPLITS)
    assert (train, validation, test) == (list(range(50)), list(range(50, 60)), list(range(10)))
    assert drawing.digits_of_split(marked, "test")[0] is not marked["train"][0]


def check_source(source):
    images, labels = drawing.digits_of_split(DIGITS, "validation")
    assert len(source) == 16 and source.info.class_names == tuple("0123456789")
    for index in (0, 5, 15):
        scene = drawing.make_scene(images, labels, drawing.PRESETS["tiny"], "validation", index)
        example = source[index]
        np.testing.assert_array_equal(example["image"], scene.image)
        np.testing.assert_allclose(example["boxes"], scene.boxes, atol=1e-4)
        np.testing.assert_array_equal(example["box_label"], scene.labels)
        np.testing.assert_array_equal(
            bits.unpack(example["box_mask"], scene.instances.shape[1]),
            scene.instances == np.arange(1, len(scene.boxes) + 1)[:, None, None],
        )
        np.testing.assert_array_equal(example["segmentation"], scene.segmentation)
        assert example["pixel_valid"].all() and not example["box_crowd"].any()
        assert example["file_name"] == f"scene_{index:05d}.png" and example["image_id"] == index + 1


def test_through_tfds_and_without_it(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    everything = ("boxes", "masks", "segmentation")
    tfds_source = scenes.open_source("validation", tmp_path / "a", lambda: DIGITS, preset="tiny", targets=everything)
    check_source(tfds_source)
    part = scenes.open_source("validation[4:10]", tmp_path / "a", lambda: pytest.fail("made again"), preset="tiny")
    assert len(part) == 6 and part[1]["file_name"] == "scene_00005.png" and "box_mask" not in part[1]
    assert part.info.meta["annotations"].image_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert "tensorflow" not in sys.modules

    monkeypatch.setattr(scenes.importlib.util, "find_spec", lambda name: None)
    plain_source = scenes.open_source("validation", tmp_path / "b", lambda: DIGITS, preset="tiny", targets=everything)
    check_source(plain_source)
    again = scenes.open_source("validation", tmp_path / "b", lambda: pytest.fail("made again"), preset="tiny")
    np.testing.assert_array_equal(again[3]["image"], tfds_source[3]["image"])
    one, two = (source.info.meta["annotations"] for source in (tfds_source, plain_source))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.areas, two.areas)
    assert one.segmentations == two.segmentations


def test_segmentation_alone(tmp_path):
    source = scenes.open_source("test[:3]", tmp_path, lambda: DIGITS, preset="tiny", targets=("segmentation",))
    assert source.info.class_names == ("background", *"0123456789")
    example = source[0]
    assert example["segmentation"].dtype == np.int32 and not any(key.startswith("box") for key in example)


def test_unknown_names_are_explained(tmp_path):
    with pytest.raises(ValueError, match="'huge'.*expected one of"):
        scenes.open_source("train", tmp_path, lambda: DIGITS, preset="huge")
    with pytest.raises(ValueError, match="'val'.*validation"):
        scenes.open_source("val", tmp_path, lambda: DIGITS)


def test_scenes_of_one_digit_have_a_class(tmp_path, monkeypatch):
    images, labels = drawing.digits_of_split(DIGITS, "train")
    options = dataclasses.replace(drawing.PRESETS["single"], train=6, validation=6, test=6)
    for index in range(40):
        assert len(drawing.make_scene(images, labels, options, "train", index).labels) == 1
    monkeypatch.setitem(drawing.PRESETS, "single", options)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setattr(scenes.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(scenes.mnist, "load_arrays", lambda *args: DIGITS)
    source = scenes.open_scenes(Request("digit_scenes/single", "train", tmp_path))
    boxes = scenes.open_scenes(Request("digit_scenes/single", "train", tmp_path, targets=("boxes",)))
    assert source.arrays["image"].shape == (6, 64, 64, 3) and source.info.class_names == tuple("0123456789")
    assert [int(boxes[n]["box_label"][0]) - 1 for n in range(6)] == source.arrays["label"].tolist()
    with pytest.raises(ValueError, match="'tiny' hold several digits and have no class; classification takes .'single'."):
        scenes.open_scenes(Request("digit_scenes/tiny", "train", tmp_path))
