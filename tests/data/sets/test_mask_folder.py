"""Mask folders: the kinds of masks, zip files, splits, and errors that name the file."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax.data.sets.mask_folder import list_files, open_mask_folder, take_split
from imgrec_jax.data.sets.mask_pairs import pair

NUCLEI = Path(__file__).parents[2] / "../shared/data/nuclei"
ONE_SPLIT = {"fractions": (("train", 1.0),)}
MASK = np.array([[0, 1, 2, 255], [0, 1, 1, 255]], np.uint8)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def make(root: Path, names=("a", "b"), mask=MASK, above="") -> Path:
    for i, name in enumerate(names):
        write(root / above / "images" / f"{name}.png", np.full((*mask.shape[:2], 3), (10 * i, 0, 200), np.uint8))  # BGR
        write(root / above / "masks" / f"{name}.png", mask)
    return root


def test_index_masks(tmp_path):
    source = open_mask_folder(make(tmp_path), "train", kind="index", class_names=("sky", "tree", "house"), **ONE_SPLIT)
    assert len(source) == 2 and source.info.class_names == ("sky", "tree", "house")
    assert source.info.meta["file_names"] == ("images/a.png", "images/b.png")
    example = source[1]
    assert example["image"][0, 0].tolist() == [200, 0, 10]  # RGB
    np.testing.assert_array_equal(example["segmentation"], np.where(MASK == 255, 0, MASK))
    np.testing.assert_array_equal(example["pixel_valid"], MASK != 255)
    with pytest.raises(IndexError, match="example 2 of 2"):
        source[2]


def test_palette_masks_are_read_by_index(tmp_path):
    make(tmp_path)
    for name in "ab":
        image = Image.fromarray(MASK, mode="P")
        image.putpalette([200, 30, 77] * 256)  # every colour alike: only the indices tell
        image.save(tmp_path / "masks" / f"{name}.png")
    example = open_mask_folder(tmp_path, "train", kind="index", class_names="abc", **ONE_SPLIT)[0]
    np.testing.assert_array_equal(example["segmentation"], np.where(MASK == 255, 0, MASK))


@pytest.mark.parametrize("mask", [MASK, np.repeat(MASK[..., None], 3, axis=2)], ids=["grey", "colour"])
def test_binary_masks(tmp_path, mask):
    example = open_mask_folder(make(tmp_path, mask=mask), "train", kind="binary", **ONE_SPLIT)[0]
    np.testing.assert_array_equal(example["segmentation"], MASK != 0)
    assert example["pixel_valid"].all()


def make_instances(root: Path) -> Path:
    for name in ("one", "two"):
        write(root / "set" / name / "images" / f"{name}.png", np.zeros((4, 6, 3), np.uint8))
        for number in range(2):
            mask = np.zeros((4, 6), np.uint8)
            mask[:, 3 * number : 3 * number + 2] = 255
            write(root / "set" / name / "masks" / f"{number}.png", mask)
    return root


def test_instance_masks_from_a_folder_a_zip_and_a_folder_with_a_zip(tmp_path):
    folder = make_instances(tmp_path / "plain")
    (tmp_path / "zipped").mkdir()
    path = tmp_path / "zipped" / "cells.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.txt", "not an image")
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    for root in (folder, path, path.parent):
        source = open_mask_folder(root, "train", kind="instances", **ONE_SPLIT)
        assert len(source) == 2
        np.testing.assert_array_equal(source[0]["instances"][0], [1, 1, 0, 2, 2, 0])
        np.testing.assert_array_equal(source[0]["segmentation"], source[0]["instances"] > 0)


def test_a_suffix_of_mask_names(tmp_path):
    write(tmp_path / "images" / "car.jpg", np.zeros((2, 4, 3), np.uint8))
    write(tmp_path / "masks" / "car_mask.png", MASK)
    assert len(open_mask_folder(tmp_path, "train", kind="binary", mask_suffix="_mask", **ONE_SPLIT)) == 1


def test_orphans_are_named(tmp_path):
    make(tmp_path)
    write(tmp_path / "images" / "lonely.png", np.zeros((2, 4, 3), np.uint8))
    write(tmp_path / "masks" / "extra.png", MASK)
    with pytest.raises(ValueError, match=r"1 images without a mask \(lonely\); 1 masks without an image \(extra\)"):
        open_mask_folder(tmp_path, "train", kind="index")


def test_two_images_of_one_name(tmp_path):
    make(tmp_path)
    write(tmp_path / "images" / "a.jpg", np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"1 names of several images \(a\)"):
        open_mask_folder(tmp_path, "train", kind="index")


def test_a_mask_of_another_size(tmp_path):
    make(tmp_path)
    write(tmp_path / "masks" / "b.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"masks/b.png has \(height, width\) \(3, 4\), and its image .*b.png has \(2, 4\)"):
        open_mask_folder(tmp_path, "train", kind="index", **ONE_SPLIT)


def test_strange_values_and_colours(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=r"masks/a.png has values \[2\]; expected classes 0..1 or void \(255\)"):
        open_mask_folder(tmp_path, "train", kind="index", **ONE_SPLIT)[0]
    make(tmp_path, mask=np.repeat(MASK[..., None], 3, axis=2) * np.uint8([1, 1, 2]))
    with pytest.raises(ValueError, match="masks/a.png is a colour image"):
        open_mask_folder(tmp_path, "train", kind="index", **ONE_SPLIT)[0]
    with pytest.raises(ValueError, match="'indexed' is unknown"):
        open_mask_folder(tmp_path, "train", kind="indexed")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a zip"):
        open_mask_folder(tmp_path / "nowhere", "train", kind="index")


def test_folders_name_the_splits(tmp_path):
    make(tmp_path, "abc", above="train")
    make(tmp_path, "de", above="validation")
    for split, size in (("train", 3), ("validation", 2), ("train[:2]", 2)):
        assert len(open_mask_folder(tmp_path, split, kind="index", class_names="abc")) == size
    with pytest.raises(ValueError, match=r"no split 'test'; there are \['train', 'validation'\]"):
        open_mask_folder(tmp_path, "test", kind="index")


def test_cut_splits_are_disjoint_complete_and_hardly_move(tmp_path):
    names = [f"image{i:03d}" for i in range(100)]
    fractions = (("train", 0.7), ("validation", 0.15), ("test", 0.15))
    entries = pair(list_files(make(tmp_path, names)), kind="index")

    def split(entries, seed=0):
        return {name: {e.name for e in take_split(entries, name, fractions, seed)} for name, _ in fractions}

    parts = split(entries)
    assert [len(part) for part in parts.values()] == [70, 15, 15]
    assert set.union(*parts.values()) == set(names)
    assert split(entries, seed=1)["test"] != parts["test"]
    fewer = split([e for e in entries if e.name != "image007"])
    assert len(fewer["train"] - parts["train"]) <= 2


def test_nuclei_as_they_come():
    if not NUCLEI.exists():
        pytest.skip("../shared/data/nuclei is not there")
    files = list_files(NUCLEI)
    entries = pair(files, kind="instances")
    assert len(entries) == 222 and sum(len(entry.masks) for entry in entries) == 10983
    fractions = (("train", 0.7), ("validation", 0.15), ("test", 0.15))
    parts = [take_split(entries, name, fractions, 0) for name, _ in fractions]
    assert [len(part) for part in parts] == [155, 34, 33]
    # The split of configs/nuclei_unet.py, written down: the first images of each part.
    assert [part[0].name[-64:][:8] for part in parts] == ["0121d675", "00071198", "072ff14c"]


@pytest.mark.parametrize("part", ["images/b.png", "masks/b.png"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"garbage", "7 bytes that are no image; replace the file"),
        (lambda data: b"", r"an empty file \(0 bytes\); expected an image"),
        (lambda data: data[:-20], r"a damaged PNG \(cut off after"),
        (lambda data: data[:-18] + bytes([data[-18] ^ 1]) + data[-17:], r"a damaged PNG \(the checksum of its part IDAT"),
    ],
    ids=["garbage", "empty", "cut", "flipped"],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_broken_files_are_named_at_the_start(tmp_path, part, damage, said, in_memory):
    path = make(tmp_path, mask=MASK % 2) / part
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}: {said}"):
        open_mask_folder(tmp_path, "train", kind="index", in_memory=in_memory, **ONE_SPLIT)


def test_a_damaged_jpeg_image_is_named_at_the_start(tmp_path):
    """libjpeg decodes it to something, and says so on stderr without a name."""
    make(tmp_path, names="ab", mask=np.ones((480, 640), np.uint8))
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (640, 480))
    for name in "ab":
        (tmp_path / "images" / f"{name}.png").unlink()
        write(tmp_path / "images" / f"{name}.jpg", picture)
    open_mask_folder(tmp_path, "train", kind="index", **ONE_SPLIT)
    data = bytearray((tmp_path / "images/b.jpg").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "images/b.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=r"images/b.jpg: a damaged file \(the decoder says: Corrupt JPEG data.*\); replace it"):
        open_mask_folder(tmp_path, "train", kind="index", **ONE_SPLIT)


def test_masks_of_0_and_255_are_no_classes(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 255
    make(tmp_path / "a", mask=mask)
    with pytest.raises(ValueError, match=r"masks/a.png, hold 0 and the void value 255 alone.*did you mean .*kind='binary'"):
        open_mask_folder(tmp_path / "a", "train", kind="index", **ONE_SPLIT)
    assert open_mask_folder(tmp_path / "a", "train", kind="binary", **ONE_SPLIT)[0]["segmentation"].sum() == 6
    with pytest.raises(ValueError, match=r"has values \[255\]"):
        open_mask_folder(tmp_path / "a", "train", kind="index", void=None, **ONE_SPLIT)
    # a split may lack objects that another one has, and masks of background alone are masks
    make(tmp_path / "b", names=("x",), mask=mask, above="val")
    make(tmp_path / "b", names=("y",), mask=mask // 255, above="train")
    assert not open_mask_folder(tmp_path / "b", "val", kind="index")[0]["segmentation"].any()
    make(tmp_path / "c", mask=mask * 0)
    open_mask_folder(tmp_path / "c", "train", kind="index", **ONE_SPLIT)


def as_jpeg(root: Path, mask: np.ndarray, suffix: str = ".jpg") -> Path:
    make(root, mask=mask)
    for path in (root / "masks").iterdir():
        data = cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
        path.unlink()
        path.with_suffix(suffix).write_bytes(data)
    return root


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("colour", [False, True])
def test_lossy_masks(tmp_path, capfd, suffix, colour):
    """JPEG, whatever its name says, has noise around its edges: what is 128 or more was drawn."""
    mask = np.zeros((32, 32), np.uint8)
    mask[5:19, 6:20] = 255
    as_jpeg(tmp_path, np.repeat(mask[..., None], 3, axis=2) if colour else mask, suffix)
    source = open_mask_folder(tmp_path, "train", kind="binary", **ONE_SPLIT)
    np.testing.assert_array_equal(source[0]["segmentation"], mask > 0)
    assert f"note: 2 of the masks of {tmp_path} train are lossy files (JPEG)" in capfd.readouterr().err
    for kind in ("index", "instances"):
        with pytest.raises(ValueError, match=r"(is a lossy JPEG.*expects PNG|names of several|without)"):
            open_mask_folder(tmp_path, "train", kind=kind, **ONE_SPLIT)


def test_lossy_instances_and_lossy_classes(tmp_path):
    make_instances(tmp_path)
    path = tmp_path / "set/one/masks/1.png"
    write(path.with_suffix(".jpg"), np.full((4, 6), 255, np.uint8))
    with pytest.raises(ValueError, match=r"masks/1.jpg is a lossy JPEG.*kind='instances' expects PNG"):
        open_mask_folder(tmp_path, "train", kind="instances", **ONE_SPLIT)
    as_jpeg(tmp_path / "dark", np.eye(32, dtype=np.uint8) * 20)
    with pytest.raises(ValueError, match=r"a.jpg is a lossy mask whose largest value is \d+; expected 0 and 255"):
        open_mask_folder(tmp_path / "dark", "train", kind="binary", **ONE_SPLIT)


def test_what_is_neither_folder_nor_zip(tmp_path):
    for name in ("/dev/zero", tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match="is neither a folder nor a zip file"):
            open_mask_folder(name, "train", kind="index")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="cut.zip: no zip file that can be read"):
        open_mask_folder(tmp_path, "train", kind="index")


def test_too_many_pixels(tmp_path):
    make(tmp_path, mask=MASK % 2)
    with pytest.raises(ValueError, match=r"images/a.png: an image of 2 x 4 pixels, more than config.data.max_pixels=7"):
        open_mask_folder(tmp_path, "train", kind="index", max_pixels=7, **ONE_SPLIT)
