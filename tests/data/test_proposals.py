"""Selective search: OpenCV's boxes in an order of our own, kept on disk, resumed where it stopped."""

import numpy as np
import pytest

from imgrec_jax.data import proposals
from imgrec_jax.data.annotated import DetectionSource
from imgrec_jax.data.annotations import from_images
from imgrec_jax.data.sets import scene_drawing as scenes
from tests.data.digits import draw_digits

DIGITS = draw_digits()
FAST = proposals.SearchOptions(min_region=20, scales=(150,))


def make_source(count):
    images, labels = scenes.digits_of_split(DIGITS, "train")
    made = [scenes.make_scene(images, labels, scenes.SceneOptions(), "train", index) for index in range(count)]
    rows = [scenes.describe(scene, index) for index, scene in enumerate(made)]
    annotations = from_images(rows, class_names=scenes.CLASS_NAMES)
    return DetectionSource("scenes", annotations, lambda index: {"image": made[index].image})


def fake_search(calls):
    def search(image, options):
        calls.append(image.shape)
        return np.float32([[0, 0, 4, 4 + image[0, 0, 0] % 8], [1, 1, 9, 9]])[: 1 + image[0, 0, 1] % 2]

    return search


def test_boxes_are_opencvs_fast_mode():
    import cv2

    pytest.importorskip("cv2.ximgproc")
    image = make_source(1)[0]["image"]
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    search.switchToSelectiveSearchFast()
    expected = {(x, y, x + w, y + h) for x, y, w, h in search.process().tolist() if min(w, h) >= 4}
    ours = proposals.selective_search(image)
    assert {tuple(box) for box in ours.astype(int).tolist()} == expected and len(ours) == len(expected)
    np.testing.assert_array_equal(ours, proposals.selective_search(image))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_picture_has_the_same_proposals_as_floats_and_as_bytes(dtype):
    pytest.importorskip("cv2.ximgproc")
    image = make_source(1)[0]["image"]
    expected = proposals.selective_search(image, FAST)
    assert len(expected) > 5
    np.testing.assert_array_equal(proposals.selective_search((image / dtype(255)).astype(dtype), FAST), expected)


def test_digits_are_found():
    source = make_source(12)
    found = [proposals.selective_search(source[index]["image"], FAST) for index in range(12)]
    table = proposals.ProposalTable(np.concatenate(found), np.cumsum([0, *map(len, found)]))
    assert proposals.recall(source, table) > 0.9
    assert proposals.recall(source, table, limit=5) < proposals.recall(source, table, limit=50)
    thinned = proposals.selective_search(
        source[0]["image"], proposals.SearchOptions(min_region=20, scales=(150,), max_overlap=0.5)
    )
    assert len(thinned) < len(found[0])


def test_thinning_by_hand():
    """IoU of the second with the first is 0.9, of the third with the first 0.5."""
    xywh = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5]])
    np.testing.assert_array_equal(proposals._thin_out(xywh, 0.8), xywh[[0, 2]])
    np.testing.assert_array_equal(proposals._thin_out(xywh, 0.4), xywh[:1])


def test_computed_once_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "SHARD", 4)
    source, calls = make_source(10), []
    table = proposals.compute(source, tmp_path, search=fake_search(calls))
    assert len(calls) == 10 and len(table) == 10
    expected = [fake_search([])(source[index]["image"], None) for index in range(10)]
    for index in range(10):
        np.testing.assert_array_equal(table[index], expected[index])

    again = proposals.compute(source, tmp_path, search=lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(again[9], expected[9])
    next(tmp_path.rglob("0000004.npz")).unlink()
    proposals.compute(source, tmp_path, search=fake_search(calls))
    assert len(calls) == 14
    proposals.compute(source, tmp_path, options=FAST, search=fake_search(calls))  # other options, another folder
    assert len(calls) == 24 and not list(tmp_path.rglob("*.partial"))


def test_an_interruption_keeps_whole_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "SHARD", 4)
    source, calls = make_source(10), []

    def stops_at_seven(image, options):
        if len(calls) == 6:
            raise KeyboardInterrupt
        return fake_search(calls)(image, options)

    with pytest.raises(KeyboardInterrupt):
        proposals.compute(source, tmp_path, search=stops_at_seven, threads=1)
    assert [path.name for path in tmp_path.rglob("*.npz")] == ["0000000.npz"]
    calls.clear()
    proposals.compute(source, tmp_path, search=fake_search(calls), threads=1)
    assert len(calls) == 6


@pytest.mark.parametrize("harm", [b"", b"PK\x03\x04", None])
def test_a_damaged_shard_is_searched_again(tmp_path, monkeypatch, capsys, harm):
    monkeypatch.setattr(proposals, "SHARD", 4)
    source, calls = make_source(10), []
    whole = proposals.compute(source, tmp_path, search=fake_search([]))
    shard = next(tmp_path.rglob("0000004.npz"))
    shard.write_bytes(shard.read_bytes()[:-30] if harm is None else harm)
    again = proposals.compute(source, tmp_path, search=fake_search(calls))
    assert len(calls) == 4 and f"{shard} is damaged" in capsys.readouterr().err
    assert len(again) == 10 and again[0].shape == whole[0].shape


def test_examples_carry_their_proposals(tmp_path):
    source = make_source(3)
    table = proposals.compute(source, tmp_path, search=fake_search([]))
    example = proposals.ProposalSource(source, table)[2]
    np.testing.assert_array_equal(example["proposals"], table[2])
    with pytest.raises(ValueError, match="scenes has 4 images, the table of proposals 3"):
        proposals.ProposalSource(make_source(4), table)


def test_opencv_without_contrib_is_explained(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2, "ximgproc", raising=False)
    with pytest.raises(ImportError, match="pip install opencv-contrib-python-headless"):
        proposals.selective_search(np.zeros((32, 32, 3), np.uint8))
