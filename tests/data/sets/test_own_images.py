"""Own images: what is found in folders, tables, npz and archives; splits, groups, labels by name, and every oddity by file."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax.data.ops.geometry import random_resized_crop
from imgrec_jax.data.ops.photometric import to_channels
from imgrec_jax.data.own import reading
from imgrec_jax.data.own.choice import read as read_listing
from imgrec_jax.data.own.listing import Reading
from imgrec_jax.data.pipeline import Order, Pipeline
from imgrec_jax.data.sets import own_images
from imgrec_jax.data.sets.own_images import survey_images
from imgrec_jax.data.source import Request
from tests.data.own.make import COLOURS, encoded, folder, pixels, write

COUNTS = {"cat": 20, "dog": 20, "emu": 20}


def survey(root, tmp_path, options=None, **request):
    return survey_images(Request("image_folder", "train", tmp_path / "cache", root, **request), **(options or {}))


def names_of(found, split):
    source = found.open(split)
    return [(source.info.meta["file_names"][i], found.class_names[source[i]["label"]]) for i in range(len(source))]


def test_a_folder_of_classes_is_cut_into_splits(tmp_path):
    found = survey(folder(tmp_path / "d", COUNTS), tmp_path)
    assert found.class_names == ("cat", "dog", "emu")
    sizes = {split: len(found.open(split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 48, "validation": 6, "test": 6}
    seen = [name for split in sizes for name, label in names_of(found, split) if name.startswith(label)]
    assert len(seen) == len(set(seen)) == 60
    example = found.open("train")[0]
    assert example["image"].shape == (20, 24, 3) and example["image"].dtype == np.uint8
    assert found.found["data.options.size"] == (20, 24) and found.found["data.options.channels"] == 3
    mean, std = found.found["data.mean"], found.found["data.std"]
    assert len(mean) == len(std) == 3 and 0.2 < mean[0] < 0.5


def test_a_folder_that_holds_one_folder_is_opened(tmp_path):
    folder(tmp_path / "d" / "Dataset" / "inner", COUNTS)
    write(tmp_path / "d" / "README.md", b"hello")
    found = survey(tmp_path / "d", tmp_path)
    assert found.class_names == ("cat", "dog", "emu")
    assert any("1 files are no images by their names, e.g. README.md" in line for line in found.lines)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST"), ("train", "dev", "testing")])
def test_folders_of_splits(tmp_path, names):
    for above, start in zip(names, (0, 50, 70), strict=True):
        folder(tmp_path / "d", {"cat": 5, "dog": 4}, above, start)
    found = survey(tmp_path / "d", tmp_path)
    assert {s: len(found.open(s)) for s in ("train", "validation", "test")} == dict.fromkeys(("train", "validation", "test"), 9)


def test_validation_is_cut_where_only_train_and_test_are_given(tmp_path):
    folder(tmp_path / "d", {"cat": 18, "dog": 18}, "train")
    folder(tmp_path / "d", {"cat": 4, "dog": 4}, "test", 50)
    found = survey(tmp_path / "d", tmp_path)
    assert [len(found.open(s)) for s in ("train", "validation", "test")] == [32, 4, 8]
    folder(tmp_path / "e", {"cat": 18, "dog": 18}, "train")
    folder(tmp_path / "e", {"cat": 4, "dog": 4}, "val", 50)
    found = survey(tmp_path / "e", tmp_path)
    assert [len(found.open(s)) for s in ("train", "validation")] == [36, 8]
    assert found.found["data.test_split"] == ""


def test_classes_called_like_a_split_are_classes(tmp_path):
    found = survey(folder(tmp_path / "d", {"bus": 9, "car": 9, "train": 9}), tmp_path)
    assert found.class_names == ("bus", "car", "train")


def test_splits_beside_other_folders_are_refused(tmp_path):
    root = folder(folder(tmp_path / "d", {"cat": 2}, "train"), {"cat": 2}, "test", 7)
    folder(root, {"extra": 2})
    with pytest.raises(ValueError, match="folders test, train, which are splits, beside extra"):
        survey(root, tmp_path)


# Labels go by name


def test_a_validation_folder_that_lacks_a_class_is_scored_right(tmp_path):
    folder(tmp_path / "d", {"cat": 5, "dog": 5, "emu": 5}, "train")
    folder(tmp_path / "d", {"emu": 3}, "val", 50)
    found = survey(tmp_path / "d", tmp_path)
    assert {label for _, label in names_of(found, "validation")} == {"emu"}
    assert found.open("validation")[0]["label"] == 2
    assert "validation has no image of cat; dog" in found.lines


def test_a_class_that_training_does_not_know_is_refused(tmp_path):
    folder(tmp_path / "d", {"cat": 5, "emu": 5}, "train")
    folder(tmp_path / "d", {"cat": 5, "dog": 3, "emu": 5}, "val", 50)
    with pytest.raises(
        ValueError, match=r"3 images are of class 'dog' .*val/dog/050.png, in validation.*training does not know"
    ):
        survey(tmp_path / "d", tmp_path)


# Oddities


def odd_folder(root):
    """One of each; {name: what is said of it} of those that cannot be used."""
    folder(root, {"cat": 12, "dog": 12})
    cat = root / "cat"
    write(cat / "cmyk.jpg", encoded(Image.fromarray(pixels("cat", 100)).convert("CMYK"), "JPEG"))
    write(cat / "palette.png", encoded(Image.fromarray(pixels("cat", 101)).quantize(16)))
    write(cat / "alpha.png", encoded(np.dstack([pixels("cat", 102), np.full((20, 24), 128, np.uint8)])))
    write(cat / "grey.png", encoded(pixels("cat", 103)[..., 0]))
    turned = Image.fromarray(pixels("cat", 104))
    exif = turned.getexif()
    exif[0x0112] = 6
    write(cat / "turned.jpg", encoded(turned, "JPEG", exif=exif))
    frames = [Image.fromarray(pixels("cat", n)) for n in (105, 106)]
    frames[0].save(cat / "moving.gif", save_all=True, append_images=frames[1:])
    write(cat / "UPPER.JPG", encoded(pixels("cat", 107), "JPEG"))
    write(cat / "naïve 猫 with spaces.png", encoded(pixels("cat", 108)))
    write(cat / "deeper" / "still" / "nested.png", encoded(pixels("cat", 109)))
    write(cat / ".hidden.png", b"")
    write(root / "__MACOSX" / "cat" / "._000.png", b"x")
    (root / "nothing").mkdir()
    write(root / "single" / "only.png", encoded(pixels("emu", 110)))
    write(root.parent / "elsewhere" / "linked.png", encoded(pixels("dog", 111)))
    os.symlink(root.parent / "elsewhere", root / "dog" / "link")
    os.symlink(root, root / "dog" / "circle")
    write(root / "cat" / "copy.png", encoded(pixels("cat", 0)))
    bad = {
        "cat/zero.png": "an empty file",
        "cat/text.jpg": "that are no image",
        "dog/cut.jpg": "a damaged JPEG",
        "dog/cut.png": "a damaged PNG",
        "dog/gone.png": "is not there",
        "loose.png": "lies in no folder of a class",
    }
    write(root / "cat/zero.png", b"")
    write(root / "cat/text.jpg", b"not an image at all")
    write(root / "dog/cut.jpg", encoded(pixels("dog", 112, (80, 80)), "JPEG")[:-90])
    write(root / "dog/cut.png", encoded(pixels("dog", 113))[:-30])
    os.symlink(root / "nowhere.png", root / "dog/gone.png")
    write(root / "loose.png", encoded(pixels("dog", 114)))
    return bad


def test_every_oddity_is_met(tmp_path):
    bad = odd_folder(tmp_path / "d")
    with pytest.raises(ValueError) as caught:
        survey(tmp_path / "d", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{len(bad)} of ") and "config.data.bad_files=skip" in message
    for name, what in bad.items():
        assert any(f"/{name}: " in line and what in line for line in message.splitlines()), (name, message)
    found = survey(tmp_path / "d", tmp_path, bad_files="skip")
    said = "\n".join(found.lines)
    assert f"{len(bad)} of 42 files are left out" in said and found.class_names == ("cat", "dog", "single")
    for line in (
        "nothing has no images", "classes of a single training image: single", "1 images: CMYK, e.g. cat/cmyk.jpg",
        "images: palette", "1 images: transparent, e.g. cat/alpha.png", "1 images: turned by its EXIF tag, e.g. cat/turned.jpg",
        "1 images: animated, e.g. cat/moving.gif", "1 images are grey among 35 in colour",
    ):  # fmt: skip
        assert line in said, said
    everything = [name for split in ("train", "validation", "test") for name, _ in names_of(found, split)]
    assert len(everything) == 36 and {"dog/link/linked.png", "cat/UPPER.JPG", "cat/naïve 猫 with spaces.png"} <= set(everything)
    assert not any("hidden" in name or "MACOSX" in name for name in everything)
    split_of = {name: split for split in ("train", "validation", "test") for name, _ in names_of(found, split)}
    assert split_of["cat/copy.png"] == split_of["cat/000.png"]  # equal files are never torn apart


def test_equal_files_in_two_given_splits_are_told(tmp_path):
    root = folder(folder(tmp_path / "d", {"cat": 5, "dog": 5}, "train"), {"cat": 4, "dog": 4}, "test", 4)
    found = survey(root, tmp_path)
    assert any(line.startswith("leakage: 2 files are equal to one of another split: ") for line in found.lines), found.lines


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (("x/images/1.png", "x/masks/1.png"), "own_segmentation"),
        (("JPEGImages/1.png", "Annotations/1.xml"), "own_detection"),
        (("images/1.png", "labels/1.txt"), "own_detection"),
    ],
)
def test_data_of_another_kind_are_refused_with_the_right_config(tmp_path, names, config):
    for name in names:
        write(tmp_path / "d" / name, encoded(pixels("cat", 1)))
    with pytest.raises(ValueError, match=f"which are no classes; it looks like data of --config=configs/{config}.py"):
        survey(tmp_path / "d", tmp_path)


def test_several_labels_need_a_table(tmp_path):
    with pytest.raises(ValueError, match="has one label an image; use --config=configs/image_folder.py without :multi_label"):
        survey(folder(tmp_path / "d", COUNTS), tmp_path, multi_label=True)


def test_one_class_alone_or_no_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has one class, .cat."):
        survey(folder(tmp_path / "d", {"cat": 3}), tmp_path)
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match="holds no image of a class"):
        survey(tmp_path / "e", tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        survey(tmp_path / "f", tmp_path)


# Tables, npz, archives


def table(tmp_path, name="t.csv", header="file,label,split", rows=None, **more):
    folder(tmp_path / "images", COUNTS, **more)
    if rows is None:
        rows = [f"images/{label}/{n:03}.png,{label},{'train' if n < 14 else 'val' if n < 17 else 'test'}"
                for label in COUNTS for n in range(20)]  # fmt: skip
    return write(tmp_path / name, "\n".join([header, *rows]).encode())


@pytest.mark.parametrize("kind", ["csv", "semicolon", "tsv", "jsonl", "absolute", "bom"])
def test_tables(tmp_path, kind):
    path = table(tmp_path)
    lines = path.read_text().splitlines()
    if kind == "semicolon":
        path.write_text("\n".join(line.replace(",", ";") for line in lines))
    elif kind == "tsv":
        path = write(tmp_path / "t.tsv", "\n".join(line.replace(",", "\t") for line in lines).encode())
    elif kind == "jsonl":
        rows = [dict(zip(("file", "label", "split"), line.split(","), strict=True)) for line in lines[1:]]
        path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)).encode())
    elif kind == "absolute":
        path = write(
            tmp_path / "elsewhere" / "t.csv", "\n".join([lines[0], *(f"{tmp_path}/{line}" for line in lines[1:])]).encode()
        )
    elif kind == "bom":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = survey(path, tmp_path)
    assert [len(found.open(s)) for s in ("train", "validation", "test")] == [42, 9, 9]
    image = found.open("test")[0]["image"]
    np.testing.assert_array_equal(image, pixels("cat", 17))


def test_texts_of_tables_stay_texts(tmp_path):
    rows = [f"images/cat/{n:03}.png,{('007', 'NA', '7', '1e3')[n % 4]}" for n in range(20)]
    found = survey(table(tmp_path, header="file,label", rows=rows), tmp_path)
    assert found.class_names == ("007", "1e3", "7", "NA")
    lines = [json.dumps({"file": f"images/cat/{n:03}.png", "label": n % 2}) for n in range(20)]
    found = survey(write(tmp_path / "n.jsonl", "\n".join(lines).encode()), tmp_path)
    assert found.class_names == ("0", "1")


def test_unknown_labels_leave_unless_they_are_mapped(tmp_path):
    rows = [f"images/cat/{n:03}.png,{('a', 'b', '', '-1')[n % 4]}" for n in range(20)]
    path = table(tmp_path, header="file,label", rows=rows)
    found = survey(path, tmp_path)
    assert len(found.listing.names) == 10 and "10 images have no known label" in "\n".join(found.lines)
    found = survey(path, tmp_path, {"empty": "a", "minus_one": "b"})
    assert len(found.listing.names) == 20 and (found.labels == 0).sum() == 10


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("a,b", ["1,2"], r"columns \['a', 'b'\]; expected one of \('file'"),
        ("file,kind", ["x.png,3"], r"expected one of \('label'"),
        ("file,tb,flu", ["x.png,1,0"], "several labels an image: use --config=configs/image_folder.py:multi_label"),
        ("file,label,split", ["x.png,a,holdout"], "line 2: split='holdout'; expected train, val or test"),
        ("file,label", ["x.png"], "line 2: 1 cells; the header has 2"),
        ("file,label", [], "has no rows"),
        ("file,label", ["gone.png,a", "images/cat/000.png,b"], "gone.png: is not there"),
        (
            "file,label",
            ["images/cat/000.png,a", "images/cat/000.png,b"],
            "line 3: names images/cat/000.png again, after line 2",
        ),
    ],
)
def test_tables_that_cannot_be(tmp_path, header, rows, message):
    with pytest.raises(ValueError, match=message):
        survey(table(tmp_path, header=header, rows=rows), tmp_path)


def test_a_folder_with_a_table_and_its_images(tmp_path):
    rows = [f"{n:03},{'ab'[n % 2]}" for n in range(20)]  # as Kaggle writes: without the suffix
    write(tmp_path / "d" / "train.csv", "\n".join(["image_id,label", *rows]).encode())
    for n in range(20):
        write(tmp_path / "d" / f"{n:03}.png", encoded(pixels("cat", n)))
    assert survey(tmp_path / "d", tmp_path).class_names == ("a", "b")


def test_archives(tmp_path):
    root = folder(tmp_path / "d", COUNTS)
    files = sorted(root.rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in files:
            archive.write(file, f"set/{file.relative_to(root)}")
    for mode, name in (("w", "a.tar"), ("w:gz", "a.tar.gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(root, "./set")
    (tmp_path / "only").mkdir()
    os.rename(tmp_path / "a.tar", tmp_path / "only" / "a.tar")
    plain = survey(root, tmp_path)
    for path in (tmp_path / "a.zip", tmp_path / "only", tmp_path / "a.tar.gz"):
        found = survey(path, tmp_path)
        assert found.class_names == plain.class_names and len(found.listing.names) == 60
        one = found.listing.names.index("set/emu/003.png")
        np.testing.assert_array_equal(found._images[one], pixels("emu", 3))
    broken = write(tmp_path / "b.zip", (tmp_path / "a.zip").read_bytes()[:-100])
    with pytest.raises(ValueError, match="b.zip is neither a folder nor a zip or tar"):
        survey(broken, tmp_path)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_inside_a_tar_are_followed(tmp_path, mode):
    root = folder(tmp_path / "set", {"cat": 12})
    (root / "dog").mkdir()
    for file in sorted((root / "cat").iterdir()):
        os.link(file, root / "dog" / file.name)
    for n in range(3):
        (root / "dog" / f"soft{n}.png").symlink_to(f"../cat/{n:03}.png" if n else "soft1.png")
    (root / "emu").symlink_to("cat")
    with tarfile.open(tmp_path / "set.tar", mode) as archive:
        archive.add(root, "set")
    plain, found = read_listing(root), read_listing(tmp_path / "set.tar")
    assert sorted(found.names) == sorted(f"set/{name}" for name in plain.names) and set(found.labels) == {"cat", "dog", "emu"}
    for name in plain.names:
        assert found.store.read(f"set/{name}") == (root / name).read_bytes()
    (root / "dog" / "gone.png").symlink_to("../nowhere.png")
    with tarfile.open(tmp_path / "set.tar", mode) as archive:
        archive.add(root, "set")
    with pytest.raises(ValueError, match="1 of 40 files .*\n.*set.tar: set/dog/gone.png: is not there"):
        survey(tmp_path / "set.tar", tmp_path)


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("val", 8), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 9, 9)).astype(np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (count, 1)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", **arrays)
    found = survey(tmp_path / "x.npz", tmp_path, {"size": (9, 9)})
    assert found.class_names == ("0", "1") and found.channels == 1
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        source = found.open(split)
        np.testing.assert_array_equal(
            np.stack([source[i]["image"][..., 0] for i in range(len(source))]), arrays[f"{name}_images"]
        )
        np.testing.assert_array_equal([source[i]["label"] for i in range(len(source))], arrays[f"{name}_labels"][:, 0])
    np.savez(tmp_path / "y.npz", things=np.zeros(3))
    with pytest.raises(ValueError, match=r"has the arrays \['things'\]; expected train_images"):
        survey(tmp_path / "y.npz", tmp_path)


# Groups and folds


def patients(tmp_path, count=40, each=4):
    for p in range(count):
        label = "cat" if p % 2 else "dog"
        for n in range(each):
            write(tmp_path / "d" / label / f"patient{p:02}_{n}.png", encoded(pixels(label, 100 * p + n)))
    return tmp_path / "d"


def test_a_group_stays_in_one_split(tmp_path):
    found = survey(patients(tmp_path), tmp_path, group=r"(patient\d+)_")
    where = {}
    for split in ("train", "validation", "test"):
        for name, _ in names_of(found, split):
            where.setdefault(name.split("/")[1][:9], set()).add(split)
    assert len(where) == 40 and all(len(splits) == 1 for splits in where.values())
    assert [len(found.open(s)) for s in ("train", "validation", "test")] == [128, 16, 16]
    assert found.open("test").info.meta["groups"][0].startswith("patient")
    with pytest.raises(ValueError, match=r"config.data.group='\(nurse\)' is found in no path"):
        survey(tmp_path / "d", tmp_path, group="(nurse)")
    with pytest.raises(ValueError, match="is no regular expression"):
        survey(tmp_path / "d", tmp_path, group="(")


def test_a_group_in_two_given_splits_is_an_error_that_lists_them(tmp_path):
    root = patients(tmp_path)
    for split, numbers in (("train", range(20)), ("test", range(15, 30))):
        for p in numbers:
            label = "cat" if p % 2 else "dog"
            write(
                tmp_path / "e" / split / label / f"patient{p:02}_{split}.png", encoded(pixels(label, 100 * p)) + split.encode()
            )
    with pytest.raises(ValueError) as caught:
        survey(tmp_path / "e", tmp_path, group=r"(patient\d+)_")
    assert "5 groups lie in more than one split" in str(caught.value)
    assert all(f"patient{p} (test, train)" in str(caught.value) for p in range(15, 20))
    assert root.exists()


def test_folds_hold_every_group_out_once(tmp_path):
    root, held = patients(tmp_path), []
    for number in range(1, 6):
        found = survey(root, tmp_path, group=r"(patient\d+)_", fold=f"{number}/5")
        assert f"fold {number} of 5 is the test split" in found.lines
        test = {name for name, _ in names_of(found, "test")}
        rest = {name for s in ("train", "validation") for name, _ in names_of(found, s)}
        assert not {n.split("/")[1][:9] for n in test} & {n.split("/")[1][:9] for n in rest}
        held += sorted(test)
    assert len(held) == len(set(held)) == 160


def test_the_group_column_of_a_table(tmp_path):
    rows = [f"images/{label}/{n:03}.png,{label},p{n // 4}" for label in ("cat", "dog") for n in range(20)]
    listing = read_listing(table(tmp_path, header="file,label,group", rows=rows), Reading())
    assert listing.groups[:5] == ["p0", "p0", "p0", "p0", "p1"]
    path = table(tmp_path, header="file,label,ward", rows=rows)
    assert read_listing(path, Reading(group="ward")).groups == listing.groups
    assert set(read_listing(path, Reading()).groups) == {""}


def test_the_index_is_kept_and_only_what_changed_is_looked_at_again(tmp_path, monkeypatch):
    from imgrec_jax.data.own import index

    monkeypatch.setattr(index, "KEPT_FROM", 1)
    root = folder(tmp_path / "d", COUNTS)
    looked = []
    describe = index.describe
    monkeypatch.setattr(index, "describe", lambda data, name, most: looked.append(name) or describe(data, name, most))
    first = survey(root, tmp_path)
    assert len(looked) == 60
    looked.clear()
    assert (survey(root, tmp_path)._index.table == first._index.table).all() and not looked
    folder(root, {"cat": 3}, start=40)
    write(root / "dog" / "000.png", encoded(pixels("dog", 77)))
    (root / "emu" / "000.png").unlink()
    again = survey(root, tmp_path)
    assert sorted(looked) == ["cat/040.png", "cat/041.png", "cat/042.png", "dog/000.png"] and len(again.listing.names) == 62
    for kept in (tmp_path / "cache" / "own").glob("*.npz"):
        kept.write_bytes(b"damage")
    looked.clear()
    survey(root, tmp_path)
    assert len(looked) == 62


def test_what_was_found_is_found_anew_where_files_or_options_changed(tmp_path, monkeypatch):
    from imgrec_jax.data.own import index

    monkeypatch.setattr(index, "KEPT_FROM", 1)
    cut = []
    divide = own_images.divide
    monkeypatch.setattr(own_images, "divide", lambda *given: cut.append(1) or divide(*given))
    root = folder(tmp_path / "d", COUNTS)
    for change, options, anew in (
        (lambda: None, {}, 1),
        (lambda: None, {}, 0),
        (lambda: None, {"options": {"split_seed": 3}}, 1),
        (lambda: None, {"fold": "2/3"}, 1),  # validation is cut from what the fold leaves
        (lambda: None, {"fold": "2/3"}, 0),
        (lambda: folder(root, {"cat": 3}, start=40), {}, 1),
        (lambda: write(root / "dog" / "000.png", encoded(pixels("dog", 77))), {}, 1),
        (lambda: (root / "dog" / "001.png").rename(root / "cat" / "001_dog.png"), {}, 1),
    ):
        change()
        cut.clear()
        found = survey(root, tmp_path, **options)
        assert len(cut) == anew
        fresh = survey(root, tmp_path / "fresh" / str(len(list(tmp_path.glob("fresh/*")))), **options)
        np.testing.assert_array_equal(found.splits, fresh.splits)
        assert found.found == fresh.found and found.lines == fresh.lines


def test_16_bits_and_grey_reach_the_batch(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for n in range(10):
            values = rng.integers(0, 65536, (16, 16)).astype(np.uint16)
            write(tmp_path / "d" / label / f"{n}.png", cv2.imencode(".png", values)[1].tobytes())
    found = survey(tmp_path / "d", tmp_path)
    assert (found.channels, found.depth) == (1, 16)
    source = found.open("train")
    image = source[0]["image"]
    assert image.dtype == np.float32 and image.shape == (16, 16, 1) and len(np.unique(image)) > 200
    stored = cv2.imread(str(tmp_path / "d" / source.info.meta["file_names"][0]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(image[..., 0], stored.astype(np.float32) / np.float32(65535))


def test_images_of_many_sizes_are_brought_to_one(tmp_path):
    for n in range(12):
        write(tmp_path / "d" / "ab"[n % 2] / f"{n}.png", encoded(pixels("cat", n, (200 + 10 * n, 400))))
    found = survey(tmp_path / "d", tmp_path)
    assert found.size == (80, 128) and found.open("train")[0]["image"].shape == (80, 128, 3)
    assert len(COLOURS) == 3


def test_a_preparation_goes_on_and_takes_only_what_is_new(tmp_path, monkeypatch, capfd):
    from imgrec_jax.data.own import prepared

    monkeypatch.setattr(prepared, "_SHARD", 8)
    root = folder(tmp_path / "d", COUNTS)
    plain = survey(root, tmp_path, {"size": (16, 16)})
    made = survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    assert "preparing 60 of 60 images" in capfd.readouterr().err
    for split in ("train", "test"):
        one, other = plain.open(split), made.open(split)
        for i in range(len(one)):
            np.testing.assert_array_equal(one[i]["image"], other[i]["image"])
    where = next((tmp_path / "cache" / "own" / "prepared").iterdir())
    shards = {path.name: path.stat().st_mtime_ns for path in where.iterdir() if path.name != ".lock"}
    assert len(shards) == 2 * 8 and not any("partial" in name for name in shards)
    lost = next(path for path in sorted(where.glob("*.json")) if len(json.loads(path.read_text())) == 8)
    lost.unlink()  # killed between a shard and its list
    folder(root, {"cat": 5}, start=40)
    capfd.readouterr()
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    assert "preparing 13 of 65 images" in capfd.readouterr().err
    assert all((where / name).stat().st_mtime_ns == time for name, time in shards.items() if name.split(".")[0] != lost.stem)
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    assert "preparing" not in capfd.readouterr().err


@pytest.fixture
def in_threads(monkeypatch):
    """Preparations that start no processes."""
    from imgrec_jax.data.own import prepared

    monkeypatch.setattr(prepared, "_pool", lambda: ThreadPoolExecutor(2))


@pytest.mark.parametrize("harm", ["list", "cut list", "empty", "cut", "gone"])
def test_what_is_damaged_is_prepared_again(tmp_path, in_threads, capfd, harm):
    root = folder(tmp_path / "d", {"cat": 3, "dog": 3})
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    listed = next((tmp_path / "cache" / "own" / "prepared").rglob("*.json"))
    shard = next(path for path in listed.parent.glob(f"{listed.stem}.*") if path != listed)
    whole = shard.read_bytes()
    if harm in ("list", "cut list"):
        listed.write_text(listed.read_text()[:40] if harm == "cut list" else "")
    elif harm == "gone":
        shard.unlink()
    else:
        shard.write_bytes(b"" if harm == "empty" else whole[: len(whole) // 2])
    capfd.readouterr()
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    said = capfd.readouterr().err
    assert said.count("is damaged") == 1 and "preparing 6 of 6 images" in said and shard.read_bytes() == whole


def test_a_preparation_that_is_whole_is_only_read(tmp_path, in_threads, monkeypatch):
    from imgrec_jax.data.own import prepared

    root = folder(tmp_path / "d", {"cat": 3, "dog": 3})
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    monkeypatch.setattr(prepared, "alone", None)
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)


def test_a_tar_that_was_packed_again_is_looked_at_again(tmp_path):
    from imgrec_jax.data.own.stores import open_store

    store = {}
    for n in (1, 2):
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            member = tarfile.TarInfo("a.bmp")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"%d   " % n))
        os.utime(tmp_path / "set.tar", ns=(n * 10**9, n * 10**9))
        store[n] = open_store(tmp_path / "set.tar").stamps["a.bmp"]
    assert store[1] != store[2]


def test_what_a_killed_preparation_left_is_removed(tmp_path, in_threads):
    root = folder(tmp_path / "d", {"cat": 3, "dog": 3})
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    where = next((tmp_path / "cache" / "own" / "prepared").iterdir())
    left = [".a1b2.json.12.partial.json", ".00003-1.json.12.partial.json", ".a1b2.array_record.12.partial.array_record"]
    for name in left:
        write(where / name, b'[["cat/0')
    folder(root, {"cat": 1}, start=9)
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    assert not any((where / name).exists() for name in left)


def test_shards_are_named_by_what_they_hold(tmp_path, in_threads):
    from imgrec_jax.data.own import prepared
    from imgrec_jax.data.own.stores import open_store

    store = open_store(folder(tmp_path / "d", {"cat": 2, "dog": 2}))
    form, names = prepared.Form((16, 16), 3, 8, 10**6), sorted(store.stamps)
    for part in (names[:2], names[2:]):  # as two processes would that know nothing of each other
        made = prepared.prepare(store, part, form, tmp_path / f"{part[0][:3]}", 256)
        files = [path.name for path in (tmp_path / f"{part[0][:3]}").glob("*.json")]
        assert len(files) == 1 and len(made.where) == 2
    assert next((tmp_path / "cat").glob("*.json")).name != next((tmp_path / "dog").glob("*.json")).name


# Several labels an image, by name


def marks(path, names, lines):
    return write(path, "\n".join([",".join(("file", *names)), *lines]).encode())


def test_marks_of_test_sets_go_by_name(tmp_path):
    folder(tmp_path, {"cat": 12})
    lines = [f"cat/{n:03}.png,{n % 2},{n % 3 > 0:d}" for n in range(12)]
    found = survey(marks(tmp_path / "t.csv", ("cat", "dog"), lines), tmp_path, multi_label=True)
    folder(tmp_path / "e", {"emu": 2})
    other = found.other(marks(tmp_path / "e" / "t.csv", ("dog", "cat"), ["emu/000.png,1,0", "emu/001.png,0,1"]))
    assert other.info.class_names == ("cat", "dog")
    assert [other[i]["labels"].tolist() for i in range(2)] == [[0, 1], [1, 0]]
    other = found.other(marks(tmp_path / "e" / "u.csv", ("dog",), ["emu/000.png,1"]))
    assert other[0]["labels"].tolist() == [0, 1] and other[0]["label_known"].tolist() == [False, True]
    other = found.other(marks(tmp_path / "e" / "w.csv", ("dog",), ["emu/000.png,1", "emu/001.png,-1"]))
    assert len(other) == 1  # as in training, -1 is unknown
    with pytest.raises(ValueError, match=r"has the label 'emu', which training does not know; it has \['cat', 'dog'\]"):
        found.other(marks(tmp_path / "e" / "v.csv", ("emu",), ["emu/000.png,1"]))
    found = survey(tmp_path / "t.csv", tmp_path, {"class_names": ("dog", "cat")}, multi_label=True)
    at = found.listing.names.index("cat/001.png")
    assert found.class_names == ("dog", "cat") and found.labels[at].tolist() == [1, 1] and found.labels[3].tolist() == [0, 1]


def test_a_label_that_no_image_of_a_test_set_lists_is_no(tmp_path):
    folder(tmp_path, {"cat": 12})
    rows = [f"cat/{n:03}.png,{('a', 'b', 'a|b')[n % 3]}" for n in range(12)]
    found = survey(marks(tmp_path / "t.csv", ("label",), rows), tmp_path, multi_label=True)
    other = found.other(marks(tmp_path / "u.csv", ("label",), ["cat/000.png,b"]))
    assert other[0]["labels"].tolist() == [0, 1] and other[0]["label_known"].all()


@pytest.mark.parametrize("kind", ["path", "table", "npz"])
def test_a_group_that_nothing_has_is_refused(tmp_path, kind):
    root = folder(tmp_path / "d", {"cat": 3, "dog": 3})
    if kind == "table":
        root = write(
            root / "t.csv",
            "\n".join(["file,label,patient", *(f"{c}/00{n}.png,{c},1" for c in ("cat", "dog") for n in range(3))]).encode(),
        )
    elif kind == "npz":
        np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 2)
        root = tmp_path / "x.npz"
    with pytest.raises(ValueError, match="config.data.group='pateint' is found in no path"):
        survey(root, tmp_path, group="pateint")


def test_images_without_a_group_are_told(tmp_path):
    found = survey(folder(tmp_path / "d", {"cat": 12, "dog": 12}), tmp_path, group=r"cat/(\d)")
    assert any(line.startswith("12 of 24 images have no group") for line in found.lines)


@pytest.mark.parametrize("folders", [{"train": 2, "holdout": 1}, {"val": 2, "more": 2}])
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path, folders):
    for above, classes in folders.items():
        folder(tmp_path / "d", dict.fromkeys(("cat", "dog")[:classes], 2), above)
    with pytest.raises(ValueError, match="which are splits, beside"):
        survey(tmp_path / "d", tmp_path)


def test_splits_without_training_images_are_no_classes(tmp_path):
    for start, above in enumerate(("val", "test")):
        folder(tmp_path / "d", {"cat": 2, "dog": 2}, above, 10 * start)
    with pytest.raises(ValueError, match="has no training images"):
        survey(tmp_path / "d", tmp_path)
    assert len(survey(folder(tmp_path / "e", COUNTS), tmp_path).other(tmp_path / "d")) == 4


# What is odd


@pytest.mark.parametrize(
    ("rows", "names", "known", "noted"),
    [
        (['{"file": "a", "cat": 1, "dog": 0}', '{"file": "b", "cat": 0}'], ("cat", "dog"), [[1, 1], [1, 0]], ""),
        (['{"file": "a", "cat": 1}', '{"file": "b", "cat": 0, "dog": 1}'], ("cat", "dog"), [[1, 0], [1, 1]], ""),
        (['{"file": "a", "cat": 1, "dog": 2}', '{"file": "b", "cat": 0, "dog": 1}'], ("cat",), [[1], [1]], "line 1 has '2'"),
        (['{"file": "a", "cat": 1, "dog": ""}', '{"file": "b", "cat": 0}'], ("cat",), [[1], [1]], "no row has 0 or 1"),
    ],
    ids=["absent later", "new later", "odd", "empty"],
)
def test_columns_of_several_labels(tmp_path, rows, names, known, noted):
    listing = read_listing(write(tmp_path / "t.jsonl", "\n".join(rows).encode()), Reading(multi_label=True))
    assert listing.mark_names == names and (listing.marks != -1).astype(int).tolist() == known
    assert noted in " ".join(listing.notes)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_numbers_of_an_npz_that_are_no_marks(tmp_path):
    images = np.zeros((3, 8, 8), np.uint8)
    good = npz(tmp_path / "a.npz", images=images, labels=np.array([[1, 0], [np.nan, 1], [-1, 0]]))
    assert read_listing(good, Reading(multi_label=True)).marks.tolist() == [[1, 0], [-1, 1], [-1, 0]]
    for odd in (0.7, 2.0, np.inf):
        bad = npz(tmp_path / "b.npz", images=images, labels=np.array([[1, 0], [0, odd], [0, 0]]))
        with pytest.raises(ValueError, match=rf"b.npz: labels\[1, 1\]={odd}; expected 0, 1, and -1 or NaN"):
            read_listing(bad, Reading(multi_label=True))
    with pytest.raises(ValueError, match="images is of int64; expected uint8, uint16 or floats of 0..1"):
        read_listing(npz(tmp_path / "c.npz", images=images.astype(np.int64), labels=np.arange(3)), Reading())


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535), np.float32(1)])
@pytest.mark.parametrize("depth", [8, 16])
def test_white_of_an_npz_stays_white(tmp_path, white, depth):
    path = npz(tmp_path / "a.npz", images=np.full((8, 8, 8), white), labels=np.arange(8) % 2)
    image = survey(path, tmp_path, {"depth": depth, "size": (8, 8)}).open("train")[0]["image"]
    assert image.dtype == (np.uint8 if depth == 8 else np.float32) and image.min() == image.max() == (255 if depth == 8 else 1)


def test_minus_one_as_pandas_writes_it_is_unknown(tmp_path):
    rows = [f"images/cat/{n:03}.png,{('0.0', '1.0', '-1.0')[n % 3]}" for n in range(12)]
    found = survey(table(tmp_path, header="file,label", rows=rows), tmp_path)
    assert found.class_names == ("0.0", "1.0") and len(found.listing.names) == 8


def labelled(tmp_path, names, header="file,label", rows=None):
    for n, name in enumerate(names):
        write(tmp_path / "d" / name, encoded(pixels("cat", n)))
    rows = rows or [f"{name},{'ab'[n % 2]}" for n, name in enumerate(names)]
    write(tmp_path / "d" / "labels.csv", "\n".join([header, *rows]).encode())
    return tmp_path / "d"


def test_a_table_beside_folders_tells_the_classes_where_they_do_not(tmp_path):
    names = [f"p{n // 4}/{n}.jpg" for n in range(12)]
    found = read_listing(labelled(tmp_path, names), Reading())
    assert set(found.labels) == {"a", "b"} and sorted(found.names) == sorted(names)
    (tmp_path / "d" / "labels.csv").write_text("file,age\np0/0.jpg,3")
    assert set(read_listing(tmp_path / "d", Reading()).labels) == {"p0", "p1", "p2"}
    (tmp_path / "d" / "labels.csv").write_text("a,b\n1")  # no table of anything
    assert set(read_listing(tmp_path / "d", Reading()).labels) == {"p0", "p1", "p2"}
    (tmp_path / "d" / "labels.csv").write_text("file,label\np0/0.jpg,p0\np1/4.jpg,p1")
    assert len(read_listing(tmp_path / "d", Reading()).names) == 12


def test_a_table_that_forgets_the_splits_of_folders_is_refused(tmp_path):
    with pytest.raises(ValueError, match="labels.csv tells the labels, but no splits, and train/0.jpg lies in"):
        read_listing(labelled(tmp_path, ["train/0.jpg", "train/1.jpg", "test/2.jpg"]), Reading())


@pytest.mark.parametrize("names", [["train/cat/0.jpg", "train/cat/1.jpg", "test/cat/2.jpg"], ["a_train/0.jpg", "a_test/1.jpg"]])
def test_a_table_beside_splits_of_classes_needs_splits(tmp_path, names):
    rows = [f"{name},{n % 2}" for n, name in enumerate(names) if "train" in name or len(names) == 2]
    with pytest.raises(ValueError, match="labels.csv tells the labels, but no splits, and .*train/(cat/)?0.jpg lies in"):
        read_listing(labelled(tmp_path, names, rows=rows), Reading())


def test_a_table_in_an_archive_that_names_what_is_not_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("t.csv", "file,label\n0.png,a\n1.png,b")
        archive.writestr("0.png", encoded(pixels("cat", 0)))
    with pytest.raises(ValueError, match=r"1 of 2 files .*\n.*a.zip: 1.png: is not there"):
        survey(tmp_path / "a.zip", tmp_path)


def test_links_to_themselves_are_told_by_name(tmp_path):
    root = folder(tmp_path / "d", COUNTS)
    (root / "cat" / "loop").symlink_to("loop")
    (root / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValueError, match="1 of 61 files .*\n.*loop.png: is not there"):
        survey(root, tmp_path)


def test_what_had_a_problem_is_looked_at_again(tmp_path, monkeypatch):
    from imgrec_jax.data.own import index

    monkeypatch.setattr(index, "KEPT_FROM", 1)
    root, describe = folder(tmp_path / "d", COUNTS), index.describe
    monkeypatch.setattr(index, "describe", lambda data, name, most: index.Picture(problem="pip install x"))
    for _ in range(2):
        with pytest.raises(ValueError, match="60 of 60 files"):
            survey(root, tmp_path)
    monkeypatch.setattr(index, "describe", describe)
    assert len(survey(root, tmp_path).listing.names) == 60


def test_test_sets_that_share_files_or_groups_are_told(tmp_path, capfd):
    found = survey(patients(tmp_path), tmp_path, group=r"(patient\d+)_")
    mine = found.open("train").info.meta["file_names"][0]
    write(tmp_path / "e" / "cat" / mine.split("/")[1], (tmp_path / "d" / mine).read_bytes())
    write(tmp_path / "e" / "dog" / "patient99_1.png", encoded(pixels("dog", 999)))
    found.other(tmp_path / "e")
    said = capfd.readouterr().err
    assert "leakage: 1 files are equal to ones that are trained on" in said and "leakage: 1 groups are trained on" in said


@pytest.mark.parametrize("text", ['file,label\n"a.png,x\nb.png,y\n', 'file,label\n"a"b.png,x\n'])
def test_quotes_that_never_end_are_told(tmp_path, text):
    with pytest.raises(ValueError, match=r"t.csv, line \d: "):
        read_listing(write(tmp_path / "t.csv", text.encode()), Reading())


def test_suffixes_of_either_case_are_tried(tmp_path):
    write(tmp_path / "a.PNG", encoded(pixels("cat", 0)))
    write(tmp_path / "b.jpg", encoded(pixels("cat", 0)))
    listing = read_listing(write(tmp_path / "t.csv", b"image_id,label\na,x\nb,y"), Reading())
    assert listing.names == ["a.PNG", "b.jpg"]


@pytest.mark.parametrize("at", [20, 60, 4000])
@pytest.mark.parametrize("mode", ["gz", "xz", "bz2"])
def test_damaged_archives_are_named(tmp_path, mode, at):
    with tarfile.open(tmp_path / f"a.tar.{mode}", f"w:{mode}") as archive:
        archive.add(folder(tmp_path / "d", {"cat": 3, "dog": 3}), "d")
    data = bytearray((tmp_path / f"a.tar.{mode}").read_bytes())
    data[at : at + 12] = bytes(12)
    write(tmp_path / f"a.tar.{mode}", bytes(data))
    with pytest.raises(ValueError, match=f"a.tar.{mode}"):
        survey(tmp_path / f"a.tar.{mode}", tmp_path)


def test_shares_are_said_as_they_are_cut(tmp_path):
    folder(folder(tmp_path / "d", {"cat": 27, "dog": 27}, "train"), {"cat": 4, "dog": 4}, "test", 40)
    found = survey(tmp_path / "d", tmp_path)
    assert "cut from the training images (seed 0): validation, 0.111 of them" in found.lines


def test_groups_of_a_column_in_two_splits_name_the_column(tmp_path):
    rows = [f"images/cat/{n:03}.png,{'ab'[n % 2]},{'train' if n < 10 else 'test'},p{n % 3}" for n in range(20)]
    with pytest.raises(ValueError, match="3 groups lie in more than one split: .* or call their column or array otherwise"):
        survey(table(tmp_path, header="file,label,split,group", rows=rows), tmp_path)


def photographs(root):
    """Smooth JPEG files of several sizes, one of them grey, one turned, and a PNG."""
    rng = np.random.default_rng(0)
    for n in range(12):
        height, width = ((480, 640), (600, 500), (1000, 1200))[n % 3]
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        write(root / "ab"[n % 2] / f"{n:02}.jpg", cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes())
    write(root / "a" / "grey.jpg", cv2.imencode(".jpg", image[..., 0])[1].tobytes())
    write(root / "a" / "plain.png", cv2.imencode(".png", image)[1].tobytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(root / "b" / "turned.jpg", exif=exif)
    return root


@pytest.mark.parametrize("channels", [(), (to_channels(3),), (to_channels(1),)])
def test_a_crop_of_a_jpeg_is_decoded_no_larger_than_it_needs(tmp_path, channels, monkeypatch):
    source = survey(photographs(tmp_path / "d"), tmp_path, {"size": (), "fractions": (1.0, 0.0, 0.0)}).open("train")
    reduced, decode = [], reading.decode_reduced
    monkeypatch.setattr(reading, "decode_reduced", lambda *given: reduced.append(decode(*given)) or reduced[-1])

    names = source.info.meta["file_names"]
    one_kind = [n for n, name in enumerate(names) if "grey" not in name]  # in colour: they make a batch as they are
    upright = [names[n] for n in one_kind if names[n][2:4].isdigit()]
    ops = lambda **options: (*channels, random_resized_crop(size=(96, 128), area=(0.3, 1.0), flip=0.5, **options))  # noqa: E731
    order = lambda epoch: Order(np.array([one_kind]), np.ones((1, len(one_kind)), np.bool_))  # noqa: E731
    plain, less = (Pipeline(source, order, 5, ops(reduced=on), threads=0).batch(0)["image"] for on in (False, True))
    assert less.shape == plain.shape and plain.dtype == less.dtype
    if channels and less.shape[3] == 1:
        assert not reduced  # it takes their colours
    else:
        assert len(reduced) == len(upright) >= 8 and sum(image is not None for image in reduced) > 4
        assert all(min(image.shape[:2]) >= 96 for image in reduced if image is not None)
    assert np.abs(plain.astype(int) - less).mean() < 1.5
    odd = [n for n, i in enumerate(one_kind) if names[i] not in upright]
    np.testing.assert_array_equal(plain[odd], less[odd])


def two_tables(root, header="file,label", line="{name},{label}", images="images", stems=("train", "val")):
    """16 images and 4 of another split in one folder, and a table of each."""
    for split, numbers in zip(stems, (range(16), range(16, 20)), strict=True):
        lines = []
        for n in numbers:
            label = "cat" if n % 2 else "dog"
            write(root / images / f"{n:02}.png", encoded(pixels(label, n)))
            lines.append(line.format(name=f"{images}/{n:02}.png", label=label, cat=n % 2, dog=1 - n % 2))
        write(root / f"{split}.csv", "\n".join([header, *lines]).encode())
    return root


@pytest.mark.parametrize("stems", [("train", "val"), ("train_labels", "labels_valid"), ("Training", "validation")])
def test_a_table_a_split(tmp_path, stems):
    found = survey(two_tables(tmp_path / "d", stems=stems), tmp_path)
    assert found.class_names == ("cat", "dog")
    counts = {split: int((found.splits == split).sum()) for split in ("train", "validation")}
    assert counts["validation"] == 4 and counts["train"] >= 12  # a test split is cut from them


def test_tables_of_splits_with_several_labels(tmp_path):
    root = two_tables(tmp_path / "d", "file,cat,dog", "{name},{cat},{dog}")
    found = survey(root, tmp_path, multi_label=True)
    assert found.class_names == ("cat", "dog") and (found.splits == "validation").sum() == 4
    assert found.labels.sum(1).tolist() == [1] * 20


def test_a_table_of_a_competition_s_test_split_is_left_out(tmp_path):
    root = two_tables(tmp_path / "d")
    write(root / "test.csv", b"file\nimages/99.png")
    write(root / "sample_submission.csv", b"file,label\nimages/99.png,cat")
    found = survey(root, tmp_path)
    assert (found.splits == "validation").sum() == 4 and len(found.listing.names) == 20


def test_tables_that_cannot_be_taken_together_are_named(tmp_path):
    root = two_tables(tmp_path / "d", stems=("first", "second"))
    with pytest.raises(
        ValueError, match=r"has the tables first\.csv, second\.csv, each with labels of its own; expected one table"
    ):
        survey(root, tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_one_folder_around_a_table_and_its_images(tmp_path, packed):
    inner = tmp_path / "d" / "data"
    for n in range(12):
        write(inner / "images" / f"{n}.png", encoded(pixels("cat" if n % 2 else "dog", n)))
    lines = "".join(f"images/{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(12))
    write(inner / "labels.csv", f"file,label\n{lines}".encode())
    root = tmp_path / "d"
    if packed:
        root = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "d"))
    assert survey(root, tmp_path).class_names == ("cat", "dog")


def test_lists_of_names_are_names(tmp_path):
    rows = [{"file": f"{n}.png", "label": (["cat", "dog"], ["cat"], [])[n % 3]} for n in range(12)]
    for n in range(12):
        write(tmp_path / "d" / f"{n}.png", encoded(pixels("cat", n)))
    table = write(tmp_path / "d" / "t.jsonl", "\n".join(map(json.dumps, rows)).encode())
    found = survey(table, tmp_path, multi_label=True)
    assert found.class_names == ("cat", "dog")
    assert found.labels[np.argsort([int(n.split(".")[0]) for n in found.listing.names])][:3].tolist() == [
        [1, 1],
        [1, 0],
        [0, 0],
    ]
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1: label is a list of 2; expected one name, or use .*:multi_label"):
        survey(table, tmp_path)


@pytest.mark.parametrize(("empty", "known"), [("", False), ("none", True), ("0", True)])
def test_an_empty_cell_of_names_means_what_is_said(tmp_path, empty, known):
    folder(tmp_path, {"cat": 6})
    lines = [f"cat/{n:03}.png,{'a|b' if n else ''}" for n in range(6)]
    table = write(tmp_path / "t.csv", "\n".join(["file,label", *lines]).encode())
    found = survey(table, tmp_path, {"empty": empty}, multi_label=True)
    assert len(found.listing.names) == 5 + known
    assert not known or found.labels[found.listing.names.index("cat/000.png")].tolist() == [0, 0]


def test_a_typing_error_in_a_column_of_marks_stops(tmp_path):
    folder(tmp_path, {"cat": 30})
    lines = [f"cat/{n:03}.png,{n % 2},{'O' if n == 7 else n % 3 // 2},{20 + n}" for n in range(30)]
    table = write(tmp_path / "t.csv", "\n".join(["file,ill,dog,age", *lines]).encode())
    with pytest.raises(ValueError, match=r"of the labels 'dog': line 9 has 'O'; expected 0, 1, -1 or nothing; correct it"):
        survey(table, tmp_path, multi_label=True)
    found = survey(write(table, table.read_bytes().replace(b",O,", b",0,")), tmp_path, multi_label=True)
    assert found.class_names == ("ill", "dog") and any("'age' is no label" in line for line in found.lines)


def test_a_folder_may_be_called_minus_one(tmp_path):
    found = survey(folder(tmp_path / "d", {"-1": 6, "0": 6, "1": 6}), tmp_path)
    assert found.class_names == ("-1", "0", "1") and len(found.listing.names) == 18


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (np.array([0.0, 1.0, np.nan] * 4), None, ("0", "1")),
        (np.array([b"a", b"b", b"a"] * 4), None, ("a", "b")),
        (np.array([0, 1, 2] * 4), ("x", "y", "z"), ("x", "y", "z")),
        (np.array([1, 2, 3] * 4), ("x", "y", "z"), r"labels holds 3; expected 0 to 2, as class_names has 3 names"),
    ],
)
def test_labels_of_arrays(tmp_path, labels, classes, names):
    given = {"class_names": np.array(classes)} if classes else {}
    images = np.stack([pixels("cat", n) for n in range(12)])
    np.savez(tmp_path / "d.npz", images=images, labels=labels, **given)
    if isinstance(names, str):
        with pytest.raises(ValueError, match=names):
            survey(tmp_path / "d.npz", tmp_path)
    else:
        assert survey(tmp_path / "d.npz", tmp_path).class_names == names


# As competitions and archives distribute their sets


def images_in(root, *patterns, count=6):
    """PATTERN with {} for 0 to `count`."""
    for number, pattern in enumerate(patterns):
        for n in range(count):
            write(root / pattern.format(n), encoded(pixels("cat", 100 * number + n)))
    return root


def rows(header, line, count=6):
    return "\n".join([header, *(line.format(n, "ab"[n % 2]) for n in range(count))]).encode()


SUBMISSION = ("sample_submission.csv", b"id_code,diagnosis\n0b,a")


@pytest.mark.parametrize(
    ("patterns", "tables"),
    [
        (("train_images/{}a.png", "test_images/{}b.png"),
         [("train.csv", rows("id_code,diagnosis", "{}a,{}")), ("test.csv", b"id_code\n0b"), SUBMISSION]),
        (("train_images/{}a.jpg", "test_images/{}b.jpg"), [("train.csv", rows("image_id,label", "{}a.jpg,{}"))]),
        (("train_images/{}a.jpg", "extra_images/{}b.jpg"), [("train.csv", rows("image_id,label", "{}a.jpg,{}"))]),
        (("train/{}a.jpg", "test/{}b.jpg"), [("labels.csv", rows("id,breed", "{}a,{}")), SUBMISSION]),
        (("train/{}.jpg", "test/{}.jpg"), [("train.csv", rows("id,label", "{}.jpg,{}"))]),
        (("X_part_1/I_{}a.jpg", "X_part_2/I_{}b.jpg"), [("X_metadata.csv", rows("lesion,image_id,dx", "l,I_{}a,{}"))]),
        (("images_001/images/{}a.png", "images_002/images/{}b.png"),
         [("Data.csv", rows("Image Index,Finding Labels,Age", "{}a.png,{},3"))]),
        (("images/{}a.png", "images/{}b.png"), [("labels.csv", rows("file,label", "{}a.png,{}"))]),
        (("train/{}.jpg", "test/{}.jpg"), [("train/metadata.csv", rows("file_name,label", "{}.jpg,{}"))]),
    ],
    ids=["APTOS", "Cassava", "one table", "dog breeds", "names of both splits", "HAM10000", "NIH", "bare names", "metadata"],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_tables_beside_folders_of_parts(tmp_path, patterns, tables, packed):
    root = images_in(tmp_path / "d", *patterns)
    for name, data in tables:
        write(root / name, data)
    root = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root)) if packed else root
    found = read_listing(root)
    names = sorted(patterns[0].format(n) for n in range(6))
    assert sorted(found.names) == names and [found.labels[found.names.index(name)] for name in names] == [*"ababab"]
    assert any("6 images are in no row of" in note for note in found.notes)
    assert survey(root, tmp_path).class_names == ("a", "b")


def test_a_table_of_another_split_s_files_is_none_of_these(tmp_path):
    root = images_in(tmp_path / "d", "cat/{}.jpg", "dog/{}.jpg")
    write(root / "train.csv", rows("file,label", "cat/{}.jpg,{}"))
    write(root / "val.csv", rows("file,label", "val/cat/{}.jpg,{}"))
    with pytest.raises(ValueError, match="val.csv names files that are not there, e.g. val/cat/0.jpg"):
        read_listing(root)


def test_numbers_of_classes_are_no_files(tmp_path):
    root = images_in(tmp_path / "d", "cat/{}.png", "dog/1{}.png", count=20)
    write(root / "classes.csv", b"id,label\n0,dog\n1,cat")
    found = read_listing(root)
    assert [name.split("/")[0] for name in found.names] == found.labels and len(found.names) == 40


def test_a_small_split_by_ids(tmp_path):
    root = images_in(tmp_path / "d", "a_images/{}.png", count=40)
    write(root / "train.csv", rows("id,label", "{}.png,{}", 38))
    write(root / "val.csv", b"id,label\n38.png,a\n39.png,b")
    assert read_listing(root).splits == ["train"] * 38 + ["validation"] * 2


def test_metadata_of_each_split(tmp_path):
    root = images_in(tmp_path / "d", "train/{}.jpg", "validation/{}.jpg")
    for split in ("train", "validation"):
        write(root / split / "metadata.csv", rows("file_name,label", "{}.jpg,{}"))
    found = read_listing(root)
    assert sorted(zip(found.names, found.splits, strict=True))[5:7] == [
        ("train/5.jpg", "train"),
        ("validation/0.jpg", "validation"),
    ]


@pytest.mark.parametrize("name", ["CheXpert-v1.0-small", "renamed"])
@pytest.mark.parametrize("above", ["CheXpert-v1.0-small", "/home/me/CheXpert", "C:\\\\data", "{here}", "../{name}"])
def test_a_table_that_names_the_folder_it_lies_in(tmp_path, name, above):
    root = images_in(tmp_path / name, "train/p{}/study1/view1.jpg", "valid/p{}/study1/view1.jpg")
    for split in ("train", "valid"):
        place = above.format(here=tmp_path / name, name=name)
        text = rows("Path,Age,Edema", f"{place}/{split}/p{{0}}/study1/view1.jpg,5{{0}},{{1}}")
        write(root / f"{split}.csv", text.replace(b",a", b",0.0").replace(b",b", b",1.0"))
    found = read_listing(root, Reading(multi_label=True))
    assert {n.split("/")[-4]: s for n, s in zip(found.names, found.splits, strict=True)} == {
        "train": "train",
        "valid": "validation",
    }
    assert not any("in no row" in note for note in found.notes) and all(map(found.store.read, found.names))
    assert len(found.names) == 12 and found.mark_names == ("edema",)


def test_files_of_one_name_are_asked_for(tmp_path):
    root = images_in(tmp_path / "d", "x/{}.jpg", "y/{}.jpg")
    write(root / "labels.csv", rows("file,label", "{}.jpg,{}"))
    with pytest.raises(ValueError, match="labels.csv, line 2: names 0.jpg, which lies at x/0.jpg and y/0.jpg; give the path"):
        survey(root / "labels.csv", tmp_path)
    write(root / "0.jpg", encoded(pixels("cat", 50)))  # the table is of this place: others are not looked for elsewhere
    with pytest.raises(ValueError, match="5 of 6 files .*\n.*/1.jpg: is not there"):
        survey(root / "labels.csv", tmp_path)


@pytest.mark.parametrize(
    ("patterns", "tables", "message"),
    [
        (("train/cat.{}.jpg", "test1/{}.jpg"), {"sampleSubmission.csv": b"id,label\n0,0"}, "folders test1, train are parts"),
        (("cars_train/cars_train/{}.jpg", "cars_test/cars_test/{}.jpg"), {}, "cars_test, cars_train are parts of one set"),
        (("train/{}.jpg", "val/{}.jpg"), {}, "train, val are parts of one set, and no classes; expected DIR/CLASS"),
        (("images_1/{}.jpg", "images_2/{}.jpg"), {}, "images_1, images_2 are parts"),
        (("S_part_1/{}.jpg", "S_part_2/{}.jpg"), {"m.csv": rows("image_id,kind", "{},{}")}, r"m.csv has the columns .*'kind'"),
        (
            ("S_part_1/{}.jpg", "S_part_2/{}.jpg"),
            {"m.csv": rows("file,label", "x{},{}")},
            "m.csv names files that are not there",
        ),
        (
            ("images/a_{}.jpg", "annotations/trimaps/a_{}.png"),
            {},
            "folders annotations and images.*configs/own_segmentation.py",
        ),
        (
            ("images/train/{}.jpg", "images/val/{}.jpg"),
            {"annotations/a.json": b""},
            "annotations and images.*configs/own_detection",
        ),
        (("images/a_{}.jpg",), {"annotations/a.json": b"{}"}, "folders annotations and images.*configs/own_detection.py"),
    ],
)
def test_folders_of_parts_are_no_classes(tmp_path, patterns, tables, message):
    root = images_in(tmp_path / "d", *patterns)
    for name, data in tables.items():
        write(root / name, data)
    with pytest.raises(ValueError, match=message):
        read_listing(root)


@pytest.mark.parametrize(
    ("patterns", "labels", "splits"),
    [
        ([f"seg_{s}/seg_{s}/{c}/{{}}.jpg" for s in ("train", "test") for c in ("sea", "road")],
         {"sea", "road"}, {"train", "test"}),
        ([*(f"seg_{s}/{c}/{{}}.jpg" for s in ("train", "test") for c in ("sea", "road")), "seg_pred/{}.jpg"],
         {"sea", "road"}, {"train", "test"}),
        (["a/abbey/{}.jpg", "a/alley/{}.jpg", "b/barn/indoor/{}.jpg"], {"abbey", "alley", "barn_indoor"}, {""}),
        (["images/banded/{}.jpg", "images/dotted/{}.jpg"], {"banded", "dotted"}, {""}),
        (["images/cat/{}.jpg", "images/dog/{}.jpg"], {"cat", "dog"}, {""}),
        (["test_positive/{}.jpg", "test_negative/{}.jpg"], {"test_positive", "test_negative"}, {""}),
        (["part_1/{}.jpg", "part_2/{}.jpg"], {"part_1", "part_2"}, {""}),
    ],
    ids=["Intel", "to predict", "SUN397", "DTD", "dogs", "tests", "parts"],
)  # fmt: skip
def test_folders_around_classes(tmp_path, patterns, labels, splits):
    root = images_in(tmp_path / "d", *patterns)
    if "images/" in patterns[0]:
        write(root / "labels" / "train1.txt", b"banded/0.jpg")
        write(root / "annotations" / "cat" / "0.xml", b"")
    found = read_listing(root)
    assert set(found.labels) == labels and set(found.splits) == splits and not found.strays
    assert len(found.names) == 6 * len([pattern for pattern in patterns if "pred" not in pattern])


def test_every_row_of_a_table_is_compared_with_the_folders(tmp_path):
    names = [f"{label}/{n:03}.png" for label in "ab" for n in range(120)]
    for name in names:
        write(tmp_path / "d" / name, b"")
    lines = [f"{name},{name[0]}" for name in names]
    lines[-1] = lines[-1][:-1] + "a"  # was corrected
    write(tmp_path / "d" / "labels.csv", "\n".join(["file,label", *lines]).encode())
    found = read_listing(tmp_path / "d")
    assert found.labels[found.names.index("b/119.png")] == "a"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rows("file,label", "images/{}.png,{}").decode().encode("utf-16"), ""),
        (rows("file,labels", "images/{}.png,{}"), ""),
        (rows("file,label", "images/{}.png,{}").replace(b"a\n", b"\xe4\n"), "val.csv is no UTF-8 text"),
        (b"", "val.csv has no rows"),
        (rows("file,klass,age", "images/{}.png,{},3"), "val.csv has the columns .*'klass', 'age'.*; expected one of"),
        (rows("datei,label", "images/{}.png,{}"), "val.csv has the columns .*'datei'"),
        (rows("file,label", "imgs/{}.png,{}"), "val.csv names files that are not there, e.g. imgs/0.png"),
    ],
    ids=["UTF-16", "labels", "latin-1", "empty", "columns", "files", "paths"],
)
def test_a_table_of_a_split_is_used_or_named(tmp_path, data, message):
    root = images_in(tmp_path / "d", "images/{}.png", "more/{}.png")
    write(root / "train.csv", rows("file,label", "more/{}.png,{}"))
    write(root / "val.csv", data)
    if not message:
        found = read_listing(root)
        assert found.splits == ["train"] * 6 + ["validation"] * 6 and set(found.labels) == {"a", "b"}
        return
    with pytest.raises(ValueError, match=f"{message}.*by its name it is a split, as .*train.csv: correct it, or move it away"):
        read_listing(root)


def test_minus_one_that_can_only_mean_no_is_asked_for(tmp_path):
    root = images_in(tmp_path / "d", "{}.png", count=12)
    lines = [f"{n}.png,{-1 if n % 2 else 1},{1 if n % 3 else -1},{n % 3 - 1}" for n in range(12)]
    table = write(root / "t.csv", "\n".join(["image_id,smiling,male,old", *lines]).encode())
    with pytest.raises(ValueError, match="t.csv: smiling is 1 and -1, and never 0.*data.options.minus_one=0 if"):
        survey(root, tmp_path, multi_label=True)
    assert (survey(root, tmp_path, {"minus_one": "0"}, multi_label=True).labels[:, :2] >= 0).all()
    assert (survey(root, tmp_path, {"minus_one": "-1"}, multi_label=True).labels == -1).any()
    write(table, rows("file,label", "{}.png,{}", 12).replace(b",a", b",-1").replace(b",b", b",1"))
    for path in (root, npz(tmp_path / "a.npz", images=np.zeros((12, 8, 8), np.uint8), labels=np.arange(12) % 2 * 2 - 1)):
        with pytest.raises(ValueError, match="abel is 1 and -1, and -1 stands for unknown.*data.options.minus_one to the name"):
            survey(path, tmp_path)
        assert survey(path, tmp_path, {"minus_one": "no"}).class_names == ("1", "no")
    marks = npz(tmp_path / "b.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.array([[1, 0], [-1, 1], [1, 0], [-1, 1]]))
    with pytest.raises(ValueError, match="b.npz: 0 is 1 and -1, and never 0"):
        read_listing(marks, Reading(multi_label=True))
    assert (read_listing(marks, Reading(multi_label=True, minus_one="0")).marks[:, 0] == [1, 0, 1, 0]).all()


def test_findings_beside_a_column_of_noughts_are_the_labels(tmp_path):
    root = images_in(tmp_path / "d", "images_001/images/{}.png", "images_002/images/1{}.png")
    write(root / "Data_Entry.csv", rows("Image Index,Finding Labels,Follow-up #", "{}.png,{}|c,0"))
    assert read_listing(root, Reading(multi_label=True)).mark_names == ("a", "b", "c")


def test_several_labels_in_a_cell_of_one_are_told(tmp_path):
    root = images_in(tmp_path / "d", "{}.png")
    write(root / "t.csv", rows("file,label", "{}.png,{}").replace(b"0.png,a", b"0.png,a|b"))
    with pytest.raises(ValueError, match=r"label is 'a\|b', which are several labels an image: use .*:multi_label"):
        survey(root, tmp_path)


# Side files beside folders of classes


def classes_in(root, splits=("",), classes=("cat", "dog"), count=3):
    return images_in(
        root, *(f"{split}{label}/{split[:2]}{label}{{}}.png" for split in splits for label in classes), count=count
    )


def side_table(root, header, line, **more):
    """A row for each image there: its path and name, its folder as `label`, its split, a running number."""
    lines = [header]
    for n, path in enumerate(sorted(root.rglob("*.png"))):
        name, label = path.relative_to(root).as_posix(), path.parent.name
        given = {"name": name, "file": path.name, "label": label, "split": name.split("/")[0], "n": n}
        lines.append(line.format(**given, number=int(label == "dog"), upper=label.upper(), odd=f"{'ab'[n % 2]}"))
    return "\n".join(lines).encode()


@pytest.mark.parametrize("splits", [("",), ("train/", "test/")], ids=["classes", "splits"])
@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        ("filename,class_id", "{name},{number}", False),
        ("filename,label_id", "{file},{number}", False),
        ("image,label", "{name},{number}", False),
        ("class id,filepath,labels,data set", "{number},{name},{upper},{split}", False),
        ("filename,breed", "{file},{label}{odd}", True),
        ("id,filename,diagnosis", "{n},{name},{label}{odd}", True),
        ("filename,species,width", "{file},{label}{odd},3", True),
    ],
)
def test_a_side_table_does_not_stop_or_replace_folders_of_classes(tmp_path, header, line, said, splits):
    root = classes_in(tmp_path / "d", splits)
    data = side_table(root, header, line)
    for names in (["meta.csv"], ["meta.csv", "clinical.csv"]):
        for name in names:
            write(root / name, data)
        found = read_listing(root)
        assert [name.split("/")[-2] for name in found.names] == found.labels and len(found.names) == 6 * len(splits)
        assert set(found.splits) == {split.strip("/") for split in splits}
        told = [note for note in found.notes if "and the folders tell classes: passed over; give it as config.data" in note]
        assert len(told) == said * len(names)


def test_labels_that_lie_across_folders_of_sites_are_the_classes(tmp_path):
    root = classes_in(tmp_path / "d", classes=("north_clinic", "south_clinic"), count=4)
    write(root / "metadata.csv", side_table(root, "image_id,dx", "{file},{odd}"))
    found = read_listing(root)
    assert set(found.labels) == {"a", "b"} and any("the table counts" in note for note in found.notes)


def test_metadata_of_each_split_that_numbers_the_classes(tmp_path):
    root = classes_in(tmp_path / "d", ("train/", "test/"))
    for split in ("train", "test"):
        write(root / split / "metadata.csv", side_table(root / split, "file_name,label", "{name},{number}"))
    found = read_listing(root)
    assert set(zip(found.labels, found.splits, strict=True)) == {(c, s) for c in ("cat", "dog") for s in ("train", "test")}


@pytest.mark.parametrize(
    ("header", "line", "labels"),
    [
        ("file,label", "{name},{odd}", {"a", "b"}),
        ("file,breed,split", "{name},{odd},train", {"a", "b"}),
        ("file,label,group", "{name},{odd},{n}", {"a", "b"}),
    ],
)
def test_a_table_that_counts_more_than_folders_of_classes_says_so(tmp_path, header, line, labels):
    root = classes_in(tmp_path / "d")
    write(root / "t.csv", side_table(root, header, line))
    found = read_listing(root)
    assert set(found.labels) == labels
    assert any(
        "6 images are of another class in" in note and "move it away to go by the folders" in note for note in found.notes
    )


def test_of_two_tables_of_a_split_the_one_of_its_very_name_is_read(tmp_path):
    root = two_tables(tmp_path / "d")
    write(root / "train_extra.csv", b"file,label\nimages/16.png,emu")
    found = read_listing(root)
    assert set(found.labels) == {"cat", "dog"}
    assert f"{root / 'train_extra.csv'} is not read, beside {root / 'train.csv'}" in found.notes


def test_a_diagnosis_beside_numbered_folders_tells_the_classes(tmp_path):
    root = classes_in(tmp_path / "d", classes=("patient1", "patient2", "patient3"))
    write(root / "t.csv", side_table(root, "file,diagnosis", "{name},{odd}"))
    assert set(read_listing(root).labels) == {"a", "b"}


@pytest.mark.parametrize("header", ["image_id,img_path,label", "id,image_name,label", "img,filename,label"])
def test_the_column_whose_values_are_there_names_the_files(tmp_path, header):
    root = images_in(tmp_path / "d", "images/x{}.png")
    write(root / "t.csv", side_table(root, header, "{n},{name},{odd}"))
    found = read_listing(root)
    assert sorted(found.names) == [f"images/x{n}.png" for n in range(6)] and not found.notes


@pytest.mark.parametrize("column", ["labels", "diagnosis", "species"])
def test_a_column_that_lists_labels_comes_before_columns_of_marks(tmp_path, column):
    root = images_in(tmp_path / "d", "{}.png")
    write(root / "t.csv", rows(f"file,{column},male", "{}.png,{}|c,0").replace(b"0.png,a|c,0", b"0.png,c,1"))
    found = read_listing(root, Reading(multi_label=True))
    assert found.mark_names == ("a", "b", "c") and f"the columns ['male'] are no labels, beside '{column}'" in found.notes


# Names of classes that are words of something else


@pytest.mark.parametrize(
    ("patterns", "files", "labels"),
    [
        (["images/{split}/cat/{}.jpg", "images/{split}/dog/{}.jpg"], {"annotations/train.json": b"{}"}, {"cat", "dog"}),
        (["cat/images/{}.jpg", "dog/images/{}.jpg"], {"cat/annotations/1.xml": b""}, {"cat", "dog"}),
        (["A/A1/{}.jpg", "A/A2/{}.jpg", "B/B1/{}.jpg"], {}, {"A", "B"}),
        (["a/a_signer1/s1/{}.jpg", "a/a_signer2/s1/{}.jpg", "b/b_signer1/s1/{}.jpg"], {}, {"a", "b"}),
        (["{split}/A/A1/{}.jpg", "{split}/B/B1/{}.jpg"], {}, {"A", "B"}),
        (["{split}/a/abbey/{}.jpg", "{split}/a/airport/{}.jpg", "{split}/b/bar/indoor/{}.jpg"], {},
         {"abbey", "airport", "bar_indoor"}),
        (["photos/{}.jpg", "pictures/{}.jpg"], {}, {"photos", "pictures"}),
        (["part_1/{}.jpg", "part_2/{}.jpg"], {"prices.csv": b"id,price\n101,2\n102,3"}, {"part_1", "part_2"}),
        (["cat/{}.jpg", "dog/{}.jpg"],
         {"train.csv": b"file,label\ncat/0.jpg,cat\ndog/1.jpg,dog", "validation_log.csv": b"epoch,loss\n1,2"}, {"cat", "dog"}),
    ],
    ids=["json", "xml", "letters", "signers", "letters in splits", "Places", "photos", "prices", "log"],
)  # fmt: skip
def test_names_of_classes_that_may_be_something_else(tmp_path, patterns, files, labels):
    splits = ("train", "val") if "{split}" in patterns[0] else ("",)
    root = images_in(tmp_path / "d", *(p.replace("{split}", split) for p in patterns for split in splits))
    for name, data in files.items():
        write(root / name, data)
    found = read_listing(root)
    assert set(found.labels) == labels and len(found.names) == 6 * len(patterns) * len(splits) and not found.strays
    assert {split[:3] for split in found.splits} == {split[:3] for split in splits}
    spelled = [note for note in found.notes if "folders a, b are first letters of those in them, which are the classes" in note]
    assert len(spelled) == ("abbey" in labels)


@pytest.mark.parametrize("names", [("train_A", "train_B", "test_A", "test_B"), ("train", "test_final"), ("x_train", "x_test")])
def test_splits_without_classes_are_still_refused(tmp_path, names):
    root = images_in(tmp_path / "d", *(f"{name}/{{}}.jpg" for name in names))
    with pytest.raises(ValueError, match="are parts of one set, and no classes"):
        read_listing(root)


@pytest.mark.parametrize(
    "tops", [("train_photos", "test_images"), ("train_labelled", "test_unlabelled"), ("train-jpg", "test-jpg-additional")]
)
def test_images_of_splits_are_no_classes(tmp_path, tops):
    root = images_in(tmp_path / "d", *(f"{top}/{top}{{}}.jpg" for top in tops))
    with pytest.raises(ValueError, match=f"its folders .*{tops[1]}.* are parts of one set, and no classes"):
        read_listing(root)
    write(root / "train_v2.csv", rows("image_name,species", f"{tops[0]}{{}}.jpg,{{}}"))
    found = read_listing(root)
    assert set(found.labels) == {"a", "b"} and all(name.startswith(tops[0]) for name in found.names)


def listed(root, files, **reading):
    """What is read of files, whose contents nothing looks at but of tables and lists."""
    for name, data in files.items():
        write(root / name, data.encode())
    return read_listing(root, Reading(**reading))


def of(*folders, count=2):
    return {f"{name}/{name.replace('/', '_')}{n}.png": "" for name in folders for n in range(count)}


MANY = ("apple", "bean", "corn", "date", "elder")


@pytest.mark.parametrize(
    "folders",
    [
        [f"{look}/{plant}" for look in ("color", "grey") for plant in MANY],  # PlantVillage, PACS
        [f"{shop}/images/{what}" for shop in ("amazon", "webcam") for what in MANY],  # Office-31
        [f"{part}/{what}" for part in ("horse-or-human", "validation-horse-or-human") for what in ("horses", "humans")],
        [f"{part}/{part}/{what}" for part in ("rps", "rps-test-set") for what in ("rock", "paper")],
    ],
)
def test_folders_that_each_hold_the_same_folders_are_asked_about(tmp_path, folders):
    with pytest.raises(ValueError, match="holds folders of the same names.*either may be the classes"):
        listed(tmp_path, of(*folders))


def test_a_copy_of_the_set_among_its_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="its folder cells holds folders of the names of those beside it, bad, good: a copy"):
        listed(tmp_path, of("cells/good", "cells/bad", "cells/cells/good", "cells/cells/bad"))


@pytest.mark.parametrize("inner", [("front", "back"), ("40X", "100X", "200X", "400X", "800X"), ("a", "b", "c", "d")])
def test_folders_in_those_of_classes_may_have_the_same_names(tmp_path, inner):
    found = listed(tmp_path, of(*(f"{label}/{view}" for label in ("good", "bad") for view in inner)))
    assert set(found.labels) == {"good", "bad"}


def test_splits_in_the_folders_of_classes(tmp_path):
    found = listed(tmp_path, of(*(f"data/{c}/{s}" for c in ("cat", "dog") for s in ("Training", "Testing"))))
    assert set(zip(found.labels, found.splits, strict=True)) == {(c, s) for c in ("cat", "dog") for s in ("train", "test")}


def test_tables_of_splits_beside_folders_of_the_same_classes_tell_the_splits(tmp_path):
    pictures = of("s/Crop", "s/Wood", count=3)
    rows = {"train": [], "validation": [], "test": []}
    for n, name in enumerate(pictures):
        rows[list(rows)[n % 3]].append(f"{n},{name[2:]},{int('Wood' in name)}")
    tables = {f"s/{split}.csv": "\n".join([",Filename,Label", *lines]) for split, lines in rows.items()}
    found = listed(tmp_path, pictures | tables)
    told = dict(zip(found.names, zip(found.labels, found.splits, strict=True), strict=True))
    assert told == {name: (name.split("/")[1], list(rows)[n % 3]) for n, name in enumerate(pictures)}


@pytest.mark.parametrize(
    "lists, line",
    [
        (("meta/train.txt", "meta/test.txt"), "{label}/{stem}"),  # Food-101
        (("TrainImages.txt", "TestImages.txt"), "{label}/{stem}.png"),  # MIT Indoor 67
        (("labels/train1.txt", "labels/test1.txt"), "{stem}.png 7 1"),  # DTD, one of its ten divisions
    ],
)
def test_lists_of_images_tell_the_splits(tmp_path, lists, line):
    pictures = of("images/cat", "images/dog", count=4)
    names = [line.format(label=name.split("/")[1], stem=Path(name).stem) for name in pictures]
    texts = {lists[0]: names[0:2] + names[4:6], lists[1]: names[2:3] + names[6:7]}
    files = {name: "\n".join(lines) for name, lines in texts.items()}
    files |= {str(Path(lists[0]).with_name("joint_anno.txt")): names[0], "meta/labels.txt": "cat"}
    found = listed(tmp_path, pictures | files)
    assert found.splits == ["train", "train", "test"] * 2 and found.labels == ["cat"] * 3 + ["dog"] * 3
    assert any("2 images are in none of these lists: left out" in line for line in found.notes)


@pytest.mark.parametrize(
    "lists, why",
    [
        ({"train1.txt": (0, 2), "train2.txt": (1, 3), "test1.txt": (3, 4)}, "train1.txt and train2.txt are of one split"),
        ({"train.txt": (0, 3), "test.txt": (2, 4)}, "an image is in two of them"),
        ({"train.txt": (0, 3)}, "there is none of another split"),
        ({"train.txt": (0, 2), "test.txt": (2, 4)}, "class dog is in none for training"),
        ({"test.txt": (0, 2)}, "class cat is in none for training"),
    ],
)
def test_lists_that_do_not_tell_the_splits_are_said(tmp_path, lists, why):
    names = list(pictures := of("cat", "dog"))
    found = listed(tmp_path, pictures | {name: "\n".join(names[slice(*part)]) for name, part in lists.items()})
    assert not any(found.splits) and any(why in line for line in found.notes)


def test_lists_that_part_groups_are_passed_over(tmp_path):
    names = list(pictures := of("cat", "dog", count=4))
    files = {"train.txt": "\n".join(names[::2]), "test.txt": "\n".join(names[1::2])}
    found = listed(tmp_path, pictures | files, group="^([a-z]+)")
    assert not any(found.splits) and any("group cat is in two of them" in line for line in found.notes)


@pytest.mark.parametrize("parts, why", [((0, 8, 1, 8), "is in two"), ((0, 4, 4, 8), "class dog is in none for training")])
def test_tables_that_can_be_no_splits_leave_the_folders_as_they_are(tmp_path, parts, why):
    names = list(pictures := of("cat", "dog", count=4))
    rows = [f"{name},{name.partition('/')[0]}" for name in names]
    cut = {"train.csv": rows[slice(*parts[:2])], "test.csv": rows[slice(*parts[2:])]}
    found = listed(tmp_path, pictures | {name: "\n".join(["file,label", *part]) for name, part in cut.items()})
    assert found.names == names and not any(found.splits) and any(why in line for line in found.notes)


def test_folders_that_each_hold_the_same_folders_are_settled_by_a_table_or_the_names_of_the_classes(tmp_path):
    pictures = of(*(f"{outer}/{inner}" for outer in ("open", "shut") for inner in MANY))
    assert set(listed(tmp_path, pictures, class_names=("open", "shut")).labels) == {"open", "shut"}
    for level in (0, 1):
        rows = [f"{name},{name.split('/')[level]}" for name in pictures]
        found = listed(tmp_path, {"labels.csv": "\n".join(["file,label", *rows])})
        assert dict(zip(found.names, found.labels, strict=True)) == {name: name.split("/")[level] for name in pictures}


def test_names_of_classes_tell_that_cells_are_no_lists(tmp_path):
    names = list(pictures := of("images", count=4))
    labels = ("Smith, John", "Smith, Ann", "Ray, Ann", "Ray, John")
    table = "\n".join(["file;labels", *(f"{name};{label}" for name, label in zip(names, labels, strict=True))])
    found = listed(tmp_path, pictures | {"labels.csv": table}, multi_label=True, class_names=labels)
    assert set(found.mark_names) == set(labels)


def test_a_column_of_splits_is_known_by_its_values(tmp_path):
    pictures = of("im", count=4)
    rows = [f"{name},{'ab'[n % 2]},{'TRAIN' if n < 2 else 'TEST'},{n % 2}" for n, name in enumerate(pictures)]
    found = listed(tmp_path, pictures | {"t.csv": "\n".join(["file,label,dataset_type,odd", *rows])})
    assert found.splits == ["train", "train", "test", "test"]


@pytest.mark.parametrize("cells", [("cat", "cat,dog"), ("cat;dog", "cat;emu"), ("a b c", "a b", "b c", "c", "a c", "a", "b")])
def test_a_separator_that_no_cell_has_is_asked_about(tmp_path, cells):
    pictures = of("im", count=len(cells))
    rows = [f'{name},"{cell}"' for name, cell in zip(pictures, cells, strict=True)]
    files = pictures | {"t.csv": "\n".join(["file,labels", *rows])}
    with pytest.raises(ValueError, match=r"no labels has the separator '\|'.*set config.data.options.separator="):
        listed(tmp_path, files, multi_label=True)
    found = listed(tmp_path, files, multi_label=True, separator="#")
    assert found.mark_names == tuple(sorted(cells))


def test_names_with_spaces_are_no_lists_of_names(tmp_path):
    pictures = of("im", count=3)
    rows = [f"{name},{cell}" for name, cell in zip(pictures, ("No Finding", "Pleural Effusion", "Pleural Mass"), strict=True)]
    found = listed(tmp_path, pictures | {"t.csv": "\n".join(["file,labels", *rows])}, multi_label=True)
    assert found.mark_names == ("No Finding", "Pleural Effusion", "Pleural Mass")


def test_a_table_called_after_its_split_in_one_word(tmp_path):
    """As of Kaggle's CIFAR-10: train/1.png and test/1.png, and trainLabels.csv names 1."""
    pictures = {f"{part}/{n}.png": "" for part in ("train", "test") for n in range(1, 5)}
    rows = [f"{n},{'frog' if n % 2 else 'cat'}" for n in range(1, 5)]
    found = listed(tmp_path, pictures | {"trainLabels.csv": "\n".join(["id,label", *rows])})
    assert found.names == [f"train/{n}.png" for n in range(1, 5)]


def test_tables_in_the_folders_of_splits_as_roboflow_writes_them(tmp_path):
    files = {}
    for split in ("train", "valid", "test"):
        files |= {f"{split}/{n}.png": "" for n in range(2)}
        files[f"{split}/_classes.csv"] = "filename, cat, dog\n0.png, 1, 0\n1.png, 1, 1\n"
    found = listed(tmp_path, files, multi_label=True)
    assert found.mark_names == ("cat", "dog") and found.marks.tolist() == [[1, 0], [1, 1]] * 3
    assert sorted(set(found.splits)) == ["test", "train", "validation"]


def test_tables_without_a_known_column_of_labels_are_said(tmp_path):
    rows = ["image,level", "cat/cat0,0", "cat/cat1,1"]
    found = listed(tmp_path / "a", of("cat", "dog") | {"trainLabels.csv": "\n".join(rows)})
    assert any("names images, and none of its columns ['image', 'level'] is known" in line for line in found.notes)
    rows = ["image,level", "resized_train0,0", "resized_train1,1"]
    with pytest.raises(ValueError, match="are parts of one set, and no classes"):
        listed(tmp_path / "b", of("resized_train", "resized_train_cropped") | {"trainLabels.csv": "\n".join(rows)})


def test_a_table_of_pixels_is_refused_in_few_words(tmp_path):
    header = ",".join(["label", *(f"pixel{n}" for n in range(784))])
    with pytest.raises(ValueError, match=r"'\.\.\.'\]; expected one of") as error:
        listed(tmp_path, {"train.csv": f"{header}\n{','.join('0' * 785)}\n"})
    assert len(str(error.value)) < 1200
