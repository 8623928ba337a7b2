"""Objects with boxes and masks: of mask folders, of COCO's polygons and run lengths, and what own data are found to have."""

import json

import numpy as np
import pytest
from PIL import Image

from imgrec_jax.assemble import data
from imgrec_jax.config import base
from imgrec_jax.data import check
from imgrec_jax.data.annotations import encode_mask
from imgrec_jax.data.ops import bits
from imgrec_jax.data.sets import coco, mask_folder, own_boxes

SIZE = (24, 40)


def drawn(count):
    """bool [count, H, W]: rectangles that overlap a little."""
    masks = np.zeros((count, *SIZE), bool)
    for n in range(count):
        masks[n, 2 + n : 12 + n, 8 * n : 8 * n + 10] = True
    return masks


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def one_file_each(tmp_path):
    """a has three objects, b one and an empty file, c none that is drawn."""
    for name, count in (("a", 3), ("b", 1), ("c", 0)):
        save(tmp_path / "train" / name / "images" / "x.png", np.full((*SIZE, 3), 90, np.uint8))
        for n, mask in enumerate(drawn(count)):
            save(tmp_path / "train" / name / "masks" / f"{n}.png", mask.astype(np.uint8) * 255)
        save(tmp_path / "train" / name / "masks" / "empty.png", np.zeros(SIZE, np.uint8))
    return tmp_path


def test_one_file_an_object(one_file_each):
    options = {"kind": "instances", "targets": ("boxes", "masks"), "class_names": ("cell",)}
    source = mask_folder.open_objects(one_file_each, "train", **options)
    assert source.info.class_names == ("cell",) and len(source) == 3
    example = source[0]
    np.testing.assert_array_equal(bits.unpack(example["box_mask"], SIZE[1]), drawn(3))  # overlaps stay whole
    np.testing.assert_array_equal(example["boxes"][1], [8, 3, 18, 13])
    assert [len(source[n]["boxes"]) for n in range(3)] == [3, 1, 0]
    part = mask_folder.open_objects(one_file_each, "train[1:]", **options)
    assert len(part) == 2 and part.info.base_size == 3 and part.info.identity == source.info.identity
    assert "box_mask" not in source.carrying(("boxes",))[0]


def test_an_instance_map_gives_the_same_objects_but_for_overlaps(tmp_path):
    numbers = np.zeros(SIZE, np.uint8)
    for n, mask in enumerate(drawn(3)):
        numbers[mask] = 10 * (n + 1)
    save(tmp_path / "images" / "a.png", np.full((*SIZE, 3), 90, np.uint8))
    save(tmp_path / "masks" / "a.png", numbers)
    options = {"kind": "instance_map", "fractions": (("train", 1.0),)}
    source = mask_folder.open_objects(tmp_path, "train", targets=("boxes", "masks"), **options)
    masks = bits.unpack(source[0]["box_mask"], SIZE[1])
    np.testing.assert_array_equal(masks[2], drawn(3)[2])
    np.testing.assert_array_equal(masks.sum(0), numbers > 0)
    maps = mask_folder.open_mask_folder(tmp_path, "train", **options)[0]
    np.testing.assert_array_equal(maps["instances"], numbers // 10)
    np.testing.assert_array_equal(maps["segmentation"], numbers > 0)


def test_kinds_without_objects_are_refused(one_file_each):
    with pytest.raises(ValueError, match="'index' does not tell objects apart; detection expects one of"):
        mask_folder.open_objects(one_file_each, "train", kind="index")
    with pytest.raises(ValueError, match="expected one class, or the background and one"):
        mask_folder.open_objects(one_file_each, "train", kind="instances", class_names=("a", "b", "c"))


def coco_folder(root, segmentations):
    objects = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "segmentation": s, "iscrowd": int(n == 3)}
        for n, s in enumerate(segmentations, start=1)
    ]
    image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    save(root / "a.png", np.full((*SIZE, 3), 90, np.uint8))
    content = {"images": [image], "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    (root / "train.json").write_text(json.dumps(content))
    return root


def test_polygons_and_both_run_lengths_are_one_mask(tmp_path):
    mask = np.zeros(SIZE, bool)
    mask[2:8, 3:10] = True
    polygon = [[3, 2, 10, 2, 10, 8, 3, 8]]
    packed = {"size": list(SIZE), "counts": encode_mask(mask)["counts"].decode()}
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(int)))
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    root = coco_folder(tmp_path, [polygon, packed, {"size": list(SIZE), "counts": counts}])
    table = coco.read_folder(root, root / "train.json").annotations
    assert (bits.unpack(table.masks(0), SIZE[1]) == mask).all() and table.all_have_masks()


def test_an_object_without_a_mask_is_named_before_the_first_step(tmp_path):
    root = coco_folder(tmp_path, [[[3, 2, 10, 2, 10, 8]], None, None])  # the third is a crowd
    table = coco.read_folder(root, root / "train.json").annotations
    assert not table.all_have_masks()
    with pytest.raises(ValueError, match=r"1 of 3 objects have no mask, the first being annotation 2 of a\.png; draw them"):
        check.check_masks("things", table)


def test_own_data_with_masks_are_found_to_have_them(one_file_each):
    save(one_file_each / "val" / "d" / "images" / "x.png", np.full((*SIZE, 3), 90, np.uint8))
    save(one_file_each / "val" / "d" / "masks" / "0.png", drawn(1)[0].astype(np.uint8))
    given = own_boxes.find(one_file_each)
    assert given.format == "a mask file for each object" and set(given.splits) == {"train", "validation"}
    assert given.splits["train"].annotations.all_have_masks()


def test_masks_are_asked_for_where_the_model_learns_them():
    config = base()
    config.task = "detection"
    with config.unlocked():
        config.model.kind = "mask"
    assert data.targets_of(config) == ("boxes", "masks")
    config.model.kind = "faster"
    assert data.targets_of(config) == ("boxes",)
