"""Own images with masks: kinds, classes and splits are found, in folders and zips; what cannot be used is named."""

import zipfile
from pathlib import PurePosixPath

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax import assemble
from imgrec_jax.config import load
from imgrec_jax.data.sets.own_masks import survey_masks
from imgrec_jax.data.source import Request
from tests.data.own.make import encoded, pixels, write

SIZE = (32, 48)
NUMBERS = range(20)


def mask(n, high=2):
    values = np.zeros(SIZE, np.uint8)
    values[4 : 10 + n % 8, 5:20] = 1
    values[20:30, 30:40] = high
    return values


def index(root, values=mask, images="images", masks="masks", suffix="", splits=None, format="PNG"):
    for n in NUMBERS:
        above = root / splits(n) if splits else root
        write(above / images / f"{n:02}.png", encoded(pixels("cat", n, SIZE)))
        write(above / masks / f"{n:02}{suffix}.{'jpg' if format == 'JPEG' else 'png'}", encoded(values(n), format))
    return root


def binary(n):
    return (mask(n) > 0).astype(np.uint8) * 255


def palette(n):
    image = Image.fromarray(np.where(mask(n) == 2, 255, mask(n)), "P")
    image.putpalette([7] * 768)
    return image


def instances(root):
    for n in NUMBERS:
        write(root / f"cell{n}" / "images" / "picture.png", encoded(pixels("cat", n, SIZE)))
        for k in (1, 2):
            write(root / f"cell{n}" / "masks" / f"{k}.png", encoded((mask(n) == k).astype(np.uint8) * 255))
    return root


def survey(root, tmp_path, options=None, **request):
    given = Request("own_segmentation", "train", tmp_path / "cache", root, ("segmentation",), **request)
    return survey_masks(given, **(options or {}))


def by_split(n):
    return "train" if n < 12 else "val" if n < 16 else "test"


@pytest.mark.parametrize(
    ("make", "kind", "classes"),
    [
        (index, "index", ("background", "class 1", "class 2")),
        (lambda r: index(r, binary), "binary", ("background", "foreground")),
        (lambda r: index(r, binary, format="JPEG"), "binary", ("background", "foreground")),
        (lambda r: index(r, lambda n: np.repeat(binary(n)[..., None], 3, 2)), "binary", ("background", "foreground")),
        (lambda r: index(r, palette), "index", ("background", "class 1")),
        (instances, "instances", ("background", "foreground")),
        (lambda r: index(r, images="imgs", masks="labels", suffix="_mask"), "index", ("background", "class 1", "class 2")),
    ],
    ids=["index", "binary", "jpeg", "colour", "palette and void", "instances", "other names"],
)
def test_kinds(tmp_path, make, kind, classes):
    found = survey(make(tmp_path / "d"), tmp_path)
    assert (found.kind, found.class_names) == (kind, classes) and found.found["model.num_classes"] == len(classes)
    counts = {split: len(found.open(split)) for split in ("train", "validation", "test")}
    assert counts == {"train": 16, "validation": 2, "test": 2}
    source = found.open("train")
    n = int("".join(c for c in source.info.meta["file_names"][0] if c.isdigit())[-2:])
    expected = mask(n) if len(classes) == 3 else (mask(n) > 0) if "void" not in str(found.lines) else mask(n) == 1
    np.testing.assert_array_equal(source[0]["segmentation"], expected)
    np.testing.assert_array_equal(source[0]["image"], pixels("cat", n, SIZE))
    if any("255 is void" in line for line in found.lines):
        np.testing.assert_array_equal(source[0]["pixel_valid"], mask(n) != 2)


@pytest.mark.parametrize("layout", ["split/images", "images/split"])
def test_given_splits(tmp_path, layout):
    root = tmp_path / "d"
    if layout == "split/images":
        index(root, splits=by_split)
    else:
        for n in NUMBERS:
            write(root / "images" / by_split(n) / f"{n:02}.png", encoded(pixels("cat", n, SIZE)))
            write(root / "masks" / by_split(n) / f"{n:02}.png", encoded(mask(n)))
    found = survey(root, tmp_path)
    assert {s: len(found.open(s)) for s in ("train", "validation", "test")} == {"train": 12, "validation": 4, "test": 4}
    assert len(found.other(index(tmp_path / "east"))) == 20


def test_a_zip_and_names_of_classes(tmp_path):
    index(tmp_path / "d")
    write(tmp_path / "d" / "classes.txt", b"sky\ntree\nhouse\n")
    assert survey(tmp_path / "d", tmp_path).class_names == ("sky", "tree", "house")
    (tmp_path / "z").mkdir()
    with zipfile.ZipFile(tmp_path / "z" / "a.zip", "w") as archive:
        for file in (tmp_path / "d").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
    assert survey(tmp_path / "z", tmp_path).kind == "index"


def test_folds_and_groups(tmp_path):
    root, held = index(tmp_path / "d"), []
    for number in range(1, 6):
        found = survey(root, tmp_path, fold=f"{number}/5", group=r"(\d)\.png")
        names = {s: found.open(s).info.meta["file_names"] for s in ("train", "validation", "test")}
        assert not {n[-5] for n in names["test"]} & {n[-5] for n in (*names["train"], *names["validation"])}
        held += names["test"]
    assert len(held) == len(set(held)) == 20
    with pytest.raises(ValueError, match="groups lie in more than one split"):
        survey(index(tmp_path / "e", splits=by_split), tmp_path, group=r"(\d)\.png")


def test_bad_files_and_layouts(tmp_path):
    root = index(tmp_path / "d")
    write(root / "images" / "03.png", b"")
    write(root / "masks" / "04.png", encoded(mask(4)[:10]))
    with pytest.raises(ValueError) as caught:
        survey(root, tmp_path)
    assert "2 of 20 files" in str(caught.value) and "03.png: an empty file" in str(caught.value)
    assert sum(len(survey(root, tmp_path, bad_files="skip").open(s)) for s in ("train", "validation", "test")) == 18
    write(tmp_path / "e" / "things" / "1.png", encoded(mask(1)))
    with pytest.raises(ValueError, match="expected a folder of images, one of"):
        survey(tmp_path / "e", tmp_path)
    (root / "masks" / "05.png").unlink()
    with pytest.raises(ValueError, match="1 images without a mask"):
        survey(root, tmp_path)


def test_the_config_needs_nothing_but_the_folder(tmp_path):
    config = load("own_segmentation:tiny")
    config.data.manual_dir, config.data.data_dir = str(index(tmp_path / "d")), str(tmp_path)
    settled = assemble.build(config).config
    assert settled.model.num_classes == 3 and settled.data.options.kind == "index"
    assert tuple(settled.data.train_ops.random_affine.size) == (32, 32)
    assert tuple(settled.data.options.class_names) == ("background", "class 1", "class 2")


def test_a_group_that_nothing_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config.data.group='patient' is found in no path of"):
        survey(index(tmp_path / "d"), tmp_path, group="patient")


def test_test_sets_that_share_files_are_told(tmp_path, capfd):
    found = survey(index(tmp_path / "d"), tmp_path)
    found.other(index(tmp_path / "e"))
    assert "leakage: 18 files are equal to ones that are trained on" in capfd.readouterr().err


def test_names_without_the_background_get_it(tmp_path):
    write(index(tmp_path / "d") / "classes.txt", b"tree\nhouse\n")
    assert survey(tmp_path / "d", tmp_path).class_names == ("background", "tree", "house")
    write(tmp_path / "d" / "classes.txt", b"tree\n")
    found = survey(tmp_path / "d", tmp_path)
    assert found.class_names == ("background", "class 1", "class 2") and "has 1 names, and the masks" in " ".join(found.lines)


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_files_without_a_partner_are_left_out_where_bad_files_are(tmp_path, suffix):
    root = index(tmp_path / "d", suffix=suffix)
    (root / "masks" / f"05{suffix}.png").unlink()
    (root / "images" / "06.png").unlink()
    with pytest.raises(ValueError, match="images without a mask"):
        survey(root, tmp_path)
    found = survey(root, tmp_path, bad_files="skip")
    assert sum(len(found.open(s)) for s in ("train", "validation", "test")) == 18
    assert any(line.startswith("2 of 38 files are left out") and "05.png: has no partner" in line for line in found.lines)


def test_every_mask_is_looked_into_and_what_was_found_is_kept_until_one_changes(tmp_path, monkeypatch):
    from imgrec_jax.data.sets import mask_kinds, own_masks

    monkeypatch.setattr(own_masks, "KEPT_FROM", 1)
    root, looked = index(tmp_path / "d", binary), []
    read = mask_kinds.read_mask
    monkeypatch.setattr(mask_kinds, "read_mask", lambda files, path: looked.append(path) or read(files, path))
    assert survey(root, tmp_path).kind == "binary" and len(looked) == len(NUMBERS)
    looked.clear()
    assert survey(root, tmp_path).kind == "binary" and not looked
    write(root / "masks" / "07.png", encoded(mask(7, high=3)))  # the only one with other classes
    found = survey(root, tmp_path)
    assert found.kind == "index" and len(looked) == len(NUMBERS)


@pytest.mark.parametrize(("tag", "size"), [(3, SIZE), (6, SIZE), (6, (40, 40))])
def test_a_turned_image_with_a_mask_is_refused(tmp_path, tag, size):
    """Its mask may have been drawn on what a viewer shows, or on what is stored."""
    index(tmp_path / "d")
    exif = Image.Exif()
    exif[0x0112] = tag
    write(tmp_path / "d" / "images" / "03.png", encoded(pixels("cat", 3, size), exif=exif))
    write(tmp_path / "d" / "masks" / "03.png", encoded(np.ones(size, np.uint8)))
    with pytest.raises(ValueError, match=rf"03\.png: has the EXIF orientation {tag}, and its mask may be of the turned"):
        survey(tmp_path / "d", tmp_path)
    assert len(survey(tmp_path / "d", tmp_path, bad_files="skip").entries["train"]) == 15


def soft(n):
    values = np.zeros(SIZE, np.uint8)
    values[4:28, 5 : 30 + n % 8] = 255
    return cv2.GaussianBlur(values, (3, 3), 0.6)


def test_soft_edges_are_a_threshold(tmp_path):
    found = survey(index(tmp_path / "d", soft), tmp_path)
    assert found.kind == "grey" and found.found["model.num_classes"] == 2
    assert any("soft edges: 128 and more is foreground" in line for line in found.lines)
    source = found.open("train")
    n = int(PurePosixPath(source.info.meta["file_names"][0]).stem)
    np.testing.assert_array_equal(source[0]["segmentation"], soft(n) >= 128)
    assert source[0]["pixel_valid"].all()


def counted(n, dtype=np.uint16):
    values = np.zeros(SIZE, dtype)
    for k in range(8 + n % 5):
        values[3 * (k // 4) : 3 * (k // 4) + 2, 11 * (k % 4) : 11 * (k % 4) + 8] = k + 1
    return values


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numbers_of_objects_are_no_classes(tmp_path, dtype):
    found = survey(index(tmp_path / "d", lambda n: counted(n, dtype)), tmp_path)
    assert found.kind == "instance_map" and found.class_names == ("background", "foreground")
    example = found.open("train")[0]
    assert example["instances"].max() >= 8 and set(np.unique(example["segmentation"])) == {0, 1}
    assert survey(tmp_path / "d", tmp_path, {"kind": "index"}).found["model.num_classes"] == 13


@pytest.mark.parametrize(
    "make", [lambda n: (counted(n) * (n + 7)).astype(np.uint16), lambda n: cv2.GaussianBlur(binary(n), (9, 9), 4)]
)
def test_many_values_that_nothing_names_are_asked_for(tmp_path, make):
    with pytest.raises(ValueError, match=r"values up to \d+, and nothing names so many .* what they are: .*'instance_map'"):
        survey(index(tmp_path / "d", make), tmp_path)
    assert survey(tmp_path / "d", tmp_path, {"kind": "instance_map"}).kind == "instance_map"


def test_a_palette_says_what_is_black(tmp_path):
    def white_first(n):
        image = Image.fromarray(1 - (mask(n) > 0).astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        return image

    found = survey(index(tmp_path / "d", white_first), tmp_path)
    source = found.open("train")
    n = int(PurePosixPath(source.info.meta["file_names"][0]).stem)
    assert found.kind == "binary"
    np.testing.assert_array_equal(source[0]["segmentation"], mask(n) > 0)


@pytest.mark.parametrize("channels", [2, 4])
def test_an_alpha_channel_says_nothing(tmp_path, channels):
    def transparent(n):
        opaque = np.full(SIZE, 255, np.uint8)
        return np.dstack([binary(n)] * (channels - 1) + [opaque])

    found = survey(index(tmp_path / "d", transparent), tmp_path)
    source = found.open("train")
    n = int(PurePosixPath(source.info.meta["file_names"][0]).stem)
    assert found.kind == "binary"
    np.testing.assert_array_equal(source[0]["segmentation"], mask(n) > 0)


def test_masks_of_void_alone_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"hold 0 and the void value 255 alone"):
        survey(index(tmp_path / "d", lambda n: np.full(SIZE, 255, np.uint8)), tmp_path, {"kind": "index"}).open("train")


def test_deep_images_keep_their_depth(tmp_path):
    """Twelve bits in sixteen, as microscopes write them, of which the upper eight would be sixteen greys."""
    index(tmp_path / "d", binary)
    deep = lambda n: np.random.default_rng(n).integers(0, 4096, SIZE).astype(np.uint16)  # noqa: E731
    for n in NUMBERS:
        (tmp_path / "d" / "images" / f"{n:02}.png").unlink()
        write(tmp_path / "d" / "images" / f"{n:02}.tif", encoded(Image.fromarray(deep(n)), "TIFF"))
    found = survey(tmp_path / "d", tmp_path)
    assert found.found["data.options.depth"] == 16 and found.found["data.mean"][0] == pytest.approx(2048 / 65535, rel=0.05)
    source = found.open("train")
    n = int(PurePosixPath(source.info.meta["file_names"][0]).stem)
    np.testing.assert_allclose(source[0]["image"], np.repeat(deep(n)[..., None], 3, 2) / 65535, rtol=1e-6)
    assert "data.options.depth" not in survey(tmp_path / "d", tmp_path, {"depth": 8}).found


def with_palette(n, *colours):
    """The mask of `n`, where 0, 1, 2 are of these colours."""
    image = Image.fromarray(mask(n), "P")
    image.putpalette([v for colour in colours for v in colour])
    return image


def with_colours(n, *colours):
    return np.array(colours, np.uint8)[mask(n)]


BLACK, RED, GREEN, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_palettes_of_every_format_are_read_by_index(tmp_path, format):
    found = survey(index(tmp_path / "d", lambda n: with_palette(n, BLACK, RED, GREEN), format=format), tmp_path)
    assert found.kind == "index" and found.class_names == ("background", "class 1", "class 2")
    source = found.open("train")
    n = int(PurePosixPath(source.info.meta["file_names"][0]).stem)
    np.testing.assert_array_equal(source[0]["segmentation"], mask(n))


def test_palettes_of_another_order_are_asked_for(tmp_path):
    swapped = lambda n: Image.fromarray(np.uint8([0, 2, 1])[mask(n)], "P")  # noqa: E731

    def other_order(n):
        image = swapped(n)
        image.putpalette([*BLACK, *GREEN, *RED])
        return image if n % 2 else with_palette(n, BLACK, RED, GREEN)

    with pytest.raises(ValueError, match=r"number 1 of its palettes is \(0, 255, 0\) in .*01\.png; \(255, 0, 0\) in .*00\.png"):
        survey(index(tmp_path / "d", other_order), tmp_path)
    assert survey(tmp_path / "d", tmp_path, {"kind": "index"}).kind == "index"
    assert survey(tmp_path / "d", tmp_path, {"kind": "binary"}).kind == "binary"
    with pytest.raises(ValueError, match=r"black is number 2 of its palettes, and 0, the background, is \(255, 0, 0\)"):
        survey(index(tmp_path / "e", lambda n: with_palette(n, RED, GREEN, BLACK)), tmp_path)


def test_two_colours_in_any_order_are_one_foreground(tmp_path):
    def either(n):
        drawn = (mask(n) > 0).astype(np.uint8)
        image = Image.fromarray(drawn if n % 2 else 1 - drawn, "P")
        image.putpalette([*BLACK, *WHITE] if n % 2 else [*WHITE, *BLACK])
        return image

    found = survey(index(tmp_path / "d", either), tmp_path)
    source = found.open("train")
    assert found.kind == "binary" and {int(PurePosixPath(n).stem) % 2 for n in source.info.meta["file_names"]} == {0, 1}
    for name, example in zip(source.info.meta["file_names"], map(source.__getitem__, range(len(source))), strict=True):
        np.testing.assert_array_equal(example["segmentation"], mask(int(PurePosixPath(name).stem)) > 0)


def test_colours_that_differ_by_image_are_not_merged(tmp_path):
    one = lambda n: with_colours(n, BLACK, (RED, GREEN)[n % 2], (RED, GREEN)[n % 2])  # noqa: E731
    with pytest.raises(
        ValueError, match=r"colour images, \(0, 255, 0\) in .*01\.png; \(255, 0, 0\) in .*00\.png; expected grey"
    ):
        survey(index(tmp_path / "d", one), tmp_path)
    found = survey(tmp_path / "d", tmp_path, {"kind": "binary"})
    n = int(PurePosixPath(found.open("train").info.meta["file_names"][0]).stem)
    np.testing.assert_array_equal(found.open("train")[0]["segmentation"], mask(n) > 0)
    assert survey(index(tmp_path / "e", lambda n: with_colours(n, BLACK, RED, RED)), tmp_path).kind == "binary"


def test_class_numbers_in_three_equal_channels_are_class_numbers(tmp_path):
    found = survey(index(tmp_path / "d", lambda n: with_colours(n, BLACK, (1, 1, 1), (2, 2, 2))), tmp_path)
    assert found.class_names == ("background", "class 1", "class 2")
    n = int(PurePosixPath(found.open("train").info.meta["file_names"][0]).stem)
    np.testing.assert_array_equal(found.open("train")[0]["segmentation"], mask(n))


@pytest.mark.parametrize(
    "named", [("1st_manual", "mask"), ("manual1", "mask"), ("labels", "mask"), ("gt", "annotations")], ids="/".join
)
def test_several_folders_that_may_be_the_masks_are_asked_for(tmp_path, named):
    root = index(tmp_path / "d", masks=named[0])
    for n in NUMBERS:
        write(root / named[1] / f"{n:02}.png", encoded(binary(0)))
        write(root / "overlays" / f"{n:02}.png", encoded(pixels("dog", n, SIZE)))
    with pytest.raises(ValueError, match=r"may be those of .*/, .*/; say which, e.g. --config\.data\.options=\"{'masks': '"):
        survey(root, tmp_path)
    found = survey(root, tmp_path, {"masks": named[0]})
    assert len(found.class_names) == 3
    assert f"folders that are not used: {named[1]}/ (20 images); overlays/ (20 images)" in found.lines
    assert survey(root, tmp_path, {"masks": named[1]}).kind == "binary"
    with pytest.raises(ValueError, match="masks='nowhere'"):
        survey(root, tmp_path, {"masks": "nowhere"})
    given = {"kind": "index", "class_names": ("a", "b", "c", "d")}  # as a run has them that goes on
    assert survey(root, tmp_path, given).entries["train"]


@pytest.mark.parametrize("beside", ["labels", "masks_color", "edges", "images_grey", "valid"])
def test_masks_are_those_of_masks_whatever_lies_beside(tmp_path, beside):
    root = index(tmp_path / "d")
    for n in NUMBERS:
        write(root / beside / f"{n:02}.png", encoded(binary(0)))
    found = survey(root, tmp_path)
    assert len(found.class_names) == 3 and f"folders that are not used: {beside}/ (20 images)" in found.lines
    assert f"masks are those of masks/; data.options.masks takes those of {beside}/" in found.lines
    assert survey(root, tmp_path, {"masks": beside}).kind == "binary"


@pytest.mark.parametrize("names", [("test1", "test2", "test3"), ("dev1", "dev2", "cam1"), ("val_gardena", "bozen", "meran")])
@pytest.mark.parametrize("layout", ["{name}/{kind}", "{kind}/{name}"])
def test_a_word_of_one_folder_s_name_makes_no_split(tmp_path, layout, names):
    for n in NUMBERS:
        place = lambda kind, n=n: tmp_path / "d" / layout.format(kind=kind, name=names[n % 3]) / f"{n:02}.png"  # noqa: E731
        write(place("images"), encoded(pixels("cat", n, SIZE)))
        write(place("masks"), encoded(mask(n)))
    assert {k: len(v) for k, v in survey(tmp_path / "d", tmp_path).entries.items()} == {"train": 16, "validation": 2, "test": 2}


def test_a_folder_of_masks_may_have_a_name_of_its_own(tmp_path):
    root = index(tmp_path / "d", masks="vessels")
    with pytest.raises(ValueError, match=r"one of masks, .*; --config\.data\.options=\"{'masks': 'vessels'}\" takes another"):
        survey(root, tmp_path)
    assert len(survey(root, tmp_path, {"masks": "vessels"}).entries["train"]) == 16
    root = index(tmp_path / "e")
    write(root / "labels" / "preview.png", encoded(binary(0)))
    assert "folders that are not used: labels/ (1 images)" in survey(root, tmp_path).lines


@pytest.mark.parametrize("names", [("train2020", "val2020", "test1"), ("stage1_train", "my-valid", "stage1_test")])
@pytest.mark.parametrize("layout", ["split/images", "images/split", "instances"])
def test_words_of_names_tell_the_splits(tmp_path, layout, names):
    name = lambda n: names[("train", "val", "test").index(by_split(n))]  # noqa: E731
    if layout == "split/images":
        root = index(tmp_path / "d", splits=name)
    elif layout == "instances":
        root = tmp_path / "d"
        instances(tmp_path / "cells")
        for n in NUMBERS:
            (root / name(n)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "cells" / f"cell{n}").rename(root / name(n) / f"test{n}")
    else:
        root = index(tmp_path / "d", images="images/{}", masks="masks/{}")
        for kind in ("images", "masks"):
            for n in NUMBERS:
                file = root / kind / "{}" / f"{n:02}.png"
                write(root / kind / name(n) / file.name, file.read_bytes())
                file.unlink()
    assert {k: len(v) for k, v in survey(root, tmp_path).entries.items()} == {"train": 12, "validation": 4, "test": 4}


def test_lists_of_pascal_voc_tell_the_splits_of_masks(tmp_path):
    root = index(tmp_path / "d" / "VOC2012", images="JPEGImages", masks="SegmentationClass")
    for n in (50, 51):  # of boxes alone
        write(root / "JPEGImages" / f"{n}.png", encoded(pixels("cat", n, SIZE)))
    for n in NUMBERS:
        write(root / "SegmentationObject" / f"{n:02}.png", encoded(mask(n)))
    for split in ("train", "val", "trainval"):
        mine = [f"{n:02}" for n in NUMBERS if by_split(n) != "test" and (split == "trainval" or by_split(n) == split)]
        write(root / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(mine).encode())
    write(root / "ImageSets" / "Segmentation" / "test2012.txt", b"16\n17\n18\n19\n")
    found = survey(tmp_path / "d", tmp_path)
    assert {k: len(v) for k, v in found.entries.items()} == {"train": 12, "validation": 4, "test": 4}
    assert "2 images are in no list of ImageSets/Segmentation: left out" in found.lines
    write(root / "ImageSets" / "Segmentation" / "train_aug.txt", b"00\n12\n")
    found = survey(tmp_path / "d", tmp_path)
    assert {k: len(v) for k, v in found.entries.items()} == {"train": 12, "validation": 4, "test": 4}
    assert "lists that are not read, beside those called after the splits: train_aug.txt" in found.lines
    alone = index(tmp_path / "e", images="JPEGImages", masks="SegmentationClass")
    write(alone / "ImageSets" / "Segmentation" / "test.txt", b"03\n04\n")
    assert len(found.other(alone)) == 2  # a whole test set needs no list of training
    write(root / "ImageSets" / "Segmentation" / "val.txt", b"00\n")
    with pytest.raises(ValueError, match=r"00 is in the list of \w+, too"):
        survey(tmp_path / "d", tmp_path)


def three_levels(low, high):
    def values(n):
        return np.uint8([0, low, high])[np.where(mask(n) == 2, 2, np.where(mask(0) > 0, 1, 0))]

    return values


def test_a_mask_an_image_in_a_folder_of_its_own_is_read_by_its_values(tmp_path):
    for n in NUMBERS:
        for root, values in (("classes", mask(n)), ("binary", binary(n)), ("several", mask(n))):
            write(tmp_path / root / f"p{n}" / "images" / "slice.png", encoded(pixels("cat", n, SIZE)))
            write(tmp_path / root / f"p{n}" / "masks" / "slice.png", encoded(values))
        write(tmp_path / "several" / f"p{n}" / "masks" / "more.png", encoded(mask(n)))
    found = survey(tmp_path / "classes", tmp_path)
    assert found.kind == "index" and len(found.class_names) == 3
    assert survey(tmp_path / "binary", tmp_path).kind == "binary"
    with pytest.raises(ValueError, match=r"more\.png holds the numbers \[1, 2\]; a file for each object has one"):
        survey(tmp_path / "several", tmp_path)


def test_the_bytes_of_a_mask_tell_whether_it_is_lossy(tmp_path):
    root = index(tmp_path / "d")
    (root / "masks" / "03.png").rename(root / "masks" / "03.jpg")
    assert survey(root, tmp_path).kind == "index"
    write(root / "masks" / "03.jpg", encoded(binary(3), "JPEG"))
    with pytest.raises(ValueError, match=r"some of its masks are lossy, e\.g\. .*03\.jpg, .* others hold \[1, 2\]"):
        survey(root, tmp_path)


@pytest.mark.parametrize("low", [60, 100, 140, 190])
def test_three_levels_are_asked_for(tmp_path, low):
    if low > 60:
        with pytest.raises(ValueError, match=rf"hold 3 values up to 255, .* \(0; {low}; 255\); say what they are"):
            survey(index(tmp_path / "png", three_levels(low, 255)), tmp_path)
    with pytest.raises(ValueError, match="between black and white: a class of its own"):
        survey(index(tmp_path / "jpeg", three_levels(low, 255), format="JPEG"), tmp_path)
    assert survey(tmp_path / "jpeg", tmp_path, {"kind": "binary"}).kind == "binary"
    assert survey(index(tmp_path / "soft", soft, format="JPEG"), tmp_path).kind == "binary"


def vessels(n, grey=255):
    values = np.zeros((96, 96), np.uint8)
    steps = np.random.default_rng(n).normal(0, 12, (6, 12, 2))
    cv2.polylines(values, list(np.cumsum(steps, 1).astype(np.int32) + 48), False, grey, 1 + n % 2)
    return values


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("scale", [0.5, 1, 2])
@pytest.mark.parametrize("grey", [200, 255])
def test_soft_edges_of_lossy_masks_are_no_class(tmp_path, quality, scale, grey):
    for n in NUMBERS[:6]:
        values = cv2.resize(vessels(n, grey), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        write(tmp_path / "d" / "images" / f"{n}.png", encoded(pixels("cat", n, values.shape)))
        write(tmp_path / "d" / "masks" / f"{n}.jpg", encoded(values, "JPEG", quality=quality))
    assert survey(tmp_path / "d", tmp_path).kind == "binary"


def as_float(values, where=None, number=0.0):
    values = values.astype(np.float32)
    values[:3] = number if where is None else values[:3]
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda n: as_float(mask(n), number=np.nan), r"00\.png holds NaN or infinity in 144 pixels"),
        (lambda n: as_float(mask(n), number=-9999), r"hold negative values, \[-9999\], e\.g\. .*00\.png; .*'void': -9999"),
        (lambda n: Image.fromarray(np.where(np.arange(48) < 3, -1, mask(n).astype(np.int32))), r"values, \[-1\], .*'void': -1"),
        (lambda n: as_float((mask(n) > 0) * 0.8 + 0.02, 0), r"00\.png holds fractions, 0\.02 to 0\.82"),
        (lambda n: np.zeros(SIZE, np.uint8), "no mask holds anything but 0, the background; expected"),
        (lambda n: np.dstack([binary(n) * 0] * 3 + [binary(n)]), r"00\.png is drawn in its alpha channel, which is not read"),
    ],
    ids=["nan", "-9999", "-1", "probabilities", "zero", "alpha"],
)
def test_values_that_are_no_class_are_refused(tmp_path, values, message):
    root = index(tmp_path / "d", lambda n: mask(n))
    for n in NUMBERS:
        (root / "masks" / f"{n:02}.png").unlink()
        image = values(n)
        deep = isinstance(image, Image.Image)
        write(root / "masks" / f"{n:02}.png", encoded(image, "TIFF" if deep else "PNG"))
    with pytest.raises(ValueError, match=message):
        survey(root, tmp_path)
    for kind in ("binary", "instance_map") if "void" in message else ():
        with pytest.raises(ValueError, match="holds negative values, e.g. -"):
            survey(root, tmp_path, {"kind": kind, "class_names": ("a", "b")}).open("train")
    if void := {"-9999": -9999, "-1": -1}.get(message.rsplit(" ", 1)[-1]):
        found = survey(root, tmp_path, {"void": void})
        example = found.open("train")[0]
        assert found.kind == "index" and len(found.class_names) == 3 and not example["pixel_valid"].all()
        assert example["segmentation"].max() == 2


def test_names_that_are_no_utf_8_are_told_by_file(tmp_path):
    write(index(tmp_path / "d") / "classes.txt", "bg\nk\xe4t\ndog\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes\.txt is no UTF-8 text"):
        survey(tmp_path / "d", tmp_path)


NAMED = {
    "DRIVE": ("{n:02}_training", "{n:02}_manual1"),
    "STARE": ("im{n:04}", "im{n:04}.ah"),
    "prefixes": ("img_{n}", "mask_{n}"),
    "both": ("a_{n}_sat", "label-{n}_m"),
    "numbers around": ("scan1_{n}_3", "truth1_{n}_3"),
}


@pytest.mark.parametrize("image_name, mask_name", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("numbers", [range(10, 20), range(20), range(100, 200, 10)], ids=str)
def test_names_are_paired_by_what_differs_in_them(tmp_path, image_name, mask_name, numbers):
    for k, n in enumerate(numbers):
        write(tmp_path / "d" / "images" / f"{image_name.format(n=n)}.png", encoded(pixels("cat", n % 7, SIZE)))
        write(tmp_path / "d" / "masks" / f"{mask_name.format(n=n)}.png", encoded(mask(k)))
    found = survey(tmp_path / "d", tmp_path)
    assert any("paired by what differs" in line for line in found.lines)
    for entries in found.entries.values():
        for entry in entries:
            [own] = entry.masks
            [n] = [n for n in numbers if image_name.format(n=n) == entry.image.stem]
            assert own.stem == mask_name.format(n=n) and entry.name == entry.image.stem


@pytest.mark.parametrize(
    "image_name, mask_names",
    [
        ("{n}", lambda n: [f"m{n + 1}"]),
        ("{n:02}", lambda n: [f"m{n}"]),
        ("{n}", lambda n: [f"{n}_a", f"{n}_b"]),
        ("video1_{n}", lambda n: [f"video2_{n}"]),
        ("{n}_1", lambda n: [f"1_{n}"]),
        ("{n}_a1", lambda n: [f"{n}_a2"]),
        ("2021-01-{n:02}_a", lambda n: [f"2021-02-{n:02}_m"]),
    ],
)
def test_names_that_tell_nothing_are_refused(tmp_path, image_name, mask_names):
    for n in range(20):
        write(tmp_path / "d" / "images" / f"{image_name.format(n=n)}.png", encoded(pixels("cat", n % 7, SIZE)))
        for name in mask_names(n):
            write(tmp_path / "d" / "masks" / f"{name}.png", encoded(mask(n)))
    with pytest.raises(ValueError, match="images without a mask"):
        survey(tmp_path / "d", tmp_path)


def test_the_splits_of_names_that_differ_are_those_of_their_folders(tmp_path):
    for n in range(40):
        part = "training" if n < 20 else "test"
        write(tmp_path / "d" / part / "images" / f"{n:02}_{part}.png", encoded(pixels("cat", n % 7, SIZE)))
        write(tmp_path / "d" / part / "masks" / f"{n:02}_manual1.png", encoded(mask(n)))
    found = survey(tmp_path / "d", tmp_path)
    assert len(found.entries["test"]) == 20 and len(found.entries["train"]) == 18
    assert {(e.image.stem[:2], e.masks[0].stem[:2]) for e in found.entries["test"]} == {(f"{n}",) * 2 for n in range(20, 40)}


@pytest.mark.parametrize("above", ["", "data_dataset_voc/inner"])
def test_labelme_s_list_of_classes_begins_below_0(tmp_path, above):
    root = index(tmp_path / "d" / above)
    (root / "labels.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    assert survey(tmp_path / "d", tmp_path).class_names == ("_background_", "cat", "dog")


@pytest.mark.parametrize("layout", ["{split}/{kind}/{n}.png", "{kind}/{split}/{n}.png", "stage1_{split}/{n}/{kind}/x{n}.png"])
def test_test_images_without_masks_are_left_out(tmp_path, layout):
    for n in NUMBERS:
        split = "test" if n > 15 else "train"
        write(tmp_path / "d" / layout.format(split=split, kind="images", n=n), encoded(pixels("cat", n, SIZE)))
        if split == "train":
            write(tmp_path / "d" / layout.format(split=split, kind="masks", n=n), encoded(binary(n)))
    found = survey(tmp_path / "d", tmp_path)
    assert sum(map(len, found.entries.values())) == 16
    assert any("none of the 4 images of test has a mask: left out" in line for line in found.lines)
