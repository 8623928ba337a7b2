"""Objects with boxes and masks: of mask folders, of COCO's polygons and run lengths, and what own data are found to have."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from imgrec_jax.assemble import data
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.config import base
from imgrec_jax.data import check
from imgrec_jax.data.annotated import FolderSplit, open_folder
from imgrec_jax.data.annotations import encode_mask
from imgrec_jax.data.ops import bits
from imgrec_jax.data.sets import coco, mask_folder, own_boxes
from imgrec_jax.data.source import Request
from tests.data.own.make import encoded, write

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
    with pytest.raises(ValueError, match=r"1 of 2 objects have no mask, the first being annotation 2 of a\.png; draw them"):
        check.check_masks("things", table)
    assert check.check_masks("things", table, drop=True).endswith("annotation 2 of a.png; they are left out")
    bare = dataclasses.replace(table, segmentations=None)
    with pytest.raises(ValueError, match="2 of 2 objects have no mask.*: there is nothing to learn masks from"):
        check.check_masks("things", bare, drop=True)
    assert not check.check_masks("things", table.subset(np.zeros(0, int)), drop=True)


def detection_config(**changes):
    config = base()
    config.task, config.data.drop_degenerate_boxes = "detection", True
    with config.unlocked(), config.ignore_type():
        config.model.kind = "mask"
    config.update(changes)
    return config


def test_what_is_evaluated_may_have_boxes_alone(tmp_path):
    """Its masks are empty, its boxes are counted, its segm metrics are not there; what selects must have masks."""
    root = coco_folder(tmp_path, [[[3, 2, 10, 2, 10, 8]], [[3, 2, 10, 2, 10, 8]], None])
    folder = coco.read_folder(root, root / "train.json")
    train = open_folder("things", folder, ("boxes", "masks"))
    bare = open_folder("old", folder._replace(annotations=dataclasses.replace(folder.annotations, segmentations=None)),
                       ("boxes", "masks"))  # fmt: skip
    example = bare[0]
    assert example["box_mask"].shape == (3, SIZE[0], 5) and not example["box_mask"].any()
    said = []
    data.check_detection(detection_config(), train, {"east": bare, "test": train}, said.append)
    assert len(said) == 1 and said[0].startswith("split 'east' has no masks (old")
    config = detection_config(select={"metric": "segm_AP"})
    with pytest.raises(ConfigError, match=r"select\.metric='segm_AP', but old .* has no masks; choose a metric of boxes"):
        data.check_detection(config, train, {"validation": bare}, said.append)
    with pytest.raises(ValueError, match="nothing to learn masks from"):
        data.check_detection(config, bare, {"validation": train}, said.append)
    with pytest.raises(ValueError, match="hold no masks"):
        open_folder("old", FolderSplit(bare.info.meta["annotations"], bare.paths), ("boxes", "segmentation"))[0]


def test_changed_masks_are_other_data_where_masks_are_learnt(tmp_path):
    """Box-only runs keep the identity that they have; each way to write masks counts."""
    mask = np.zeros(SIZE, bool)
    mask[2:8, 3:10] = True
    packed, counts = encode_mask(mask), [2, 5, SIZE[0] * SIZE[1] - 7]
    text = {"size": list(SIZE), "counts": packed["counts"].decode()}
    written = [
        [[3, 2, 10, 2, 10, 8]], [[3, 2, 10, 2, 10, 9]], [[3, 2, 10, 2], [10, 8]], [], text, None,
        {"size": list(SIZE), "counts": counts}, {"size": list(SIZE), "counts": [*counts[:1], 6, counts[2] - 1]},
    ]  # fmt: skip
    root = coco_folder(tmp_path, [[[3, 2, 10, 2, 10, 8]]])
    folder = coco.read_folder(root, root / "train.json")
    boxes, both = set(), []
    for segmentation in [*written, packed]:
        table = dataclasses.replace(folder.annotations, segmentations=(segmentation,))
        boxes.add(open_folder("things", folder._replace(annotations=table)).info.identity)
        both.append(open_folder("things", folder._replace(annotations=table), ("boxes", "masks")).info.identity)
    assert len(boxes) == 1 and len(set(both) - boxes) == len(written) - 1 and both[-1] == both[4]  # [] and None are nothing


def test_own_data_with_masks_are_found_to_have_them(one_file_each):
    save(one_file_each / "val" / "d" / "images" / "x.png", np.full((*SIZE, 3), 90, np.uint8))
    save(one_file_each / "val" / "d" / "masks" / "0.png", drawn(1)[0].astype(np.uint8))
    given = own_boxes.find(one_file_each)
    assert given.format == "a mask file for each object" and set(given.splits) == {"train", "validation"}
    assert given.splits["train"].annotations.all_have_masks()
    request = Request("own_detection", "train", one_file_each / "cache", one_file_each, ("boxes", "masks"))
    found = own_boxes.survey_boxes(request)
    assert found.found["model.kind"] == "mask" and "every object has a mask" in found.lines
    identity = found.open("train").info.identity
    save(one_file_each / "train" / "a" / "masks" / "0.png", np.roll(drawn(3)[0], 1, axis=1).astype(np.uint8) * 255)
    assert own_boxes.survey_boxes(request).open("train").info.identity != identity


def test_folders_of_masks_beside_other_formats_do_not_change_what_they_are(tmp_path):
    """YOLO's and COCO's sets that have masks/ beside images/, and one with neither, whose images share a folder."""
    image = np.full((*SIZE, 3), 90, np.uint8)
    for folder in ("yolo/train", "coco/train", "maps/train"):
        for name in "ab":
            save(tmp_path / folder / "images" / f"{name}.png", image)
            save(tmp_path / folder / "masks" / f"{name}.png", drawn(1)[0].astype(np.uint8))
    for name in "ab":
        (tmp_path / "yolo" / "train" / "labels").mkdir(exist_ok=True)
        (tmp_path / "yolo" / "train" / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2")
    images = [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in "ab"]
    objects = [{"id": 1, "image_id": "a", "category_id": 1, "bbox": [0, 0, 10, 10]}]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    for n, entry in enumerate(images):
        entry["id"] = n
    objects[0]["image_id"] = 0
    (tmp_path / "coco" / "train.json").write_text(json.dumps(content))
    (tmp_path / "yolo" / "README").write_text("")  # the only folder in a folder is looked into
    assert own_boxes.find(tmp_path / "yolo").format == "YOLO"
    assert own_boxes.find(tmp_path / "coco").format == "COCO"
    (tmp_path / "maps" / "README").write_text("")
    with pytest.raises(ValueError, match=r"names of several images \(train\)"):
        own_boxes.find(tmp_path / "maps")


def test_masks_are_asked_for_where_the_model_learns_them():
    config = base()
    config.task = "detection"
    with config.unlocked():
        config.model.kind = "mask"
    assert data.targets_of(config) == ("boxes", "masks")
    config.model.kind = "faster"
    assert data.targets_of(config) == ("boxes",)


def test_masks_of_classes_and_of_nothing_are_no_objects(tmp_path):
    for n in range(4):
        for case, values in (("classes", np.arange(64) % 4), ("empty", np.zeros(64))):
            write(tmp_path / case / f"p{n}" / "images" / "a.png", encoded(np.full((8, 8, 3), n, np.uint8)))
            write(tmp_path / case / f"p{n}" / "masks" / "a.png", encoded(values.reshape(8, 8).astype(np.uint8)))
    with pytest.raises(ValueError, match=r"a\.png holds the numbers \[1, 2, 3\]; a file for each object has one"):
        own_boxes.find(tmp_path / "classes")
    with pytest.raises(ValueError, match="none of its masks has a pixel that is not 0"):
        own_boxes.find(tmp_path / "empty")
