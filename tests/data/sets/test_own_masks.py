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
    from imgrec_jax.data.sets import own_masks

    monkeypatch.setattr(own_masks, "KEPT_FROM", 1)
    root, looked = index(tmp_path / "d", binary), []
    values = own_masks.mask_values
    monkeypatch.setattr(own_masks, "mask_values", lambda files, path: looked.append(path) or values(files, path))
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
