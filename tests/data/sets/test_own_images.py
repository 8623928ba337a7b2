"""Own images: what is found in folders, tables, npz and archives; splits, groups, labels by name, and every oddity by file."""

import json
import os
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax.data.own.listing import Reading
from imgrec_jax.data.own.listing import read as read_listing
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
        np.testing.assert_array_equal(found._prepared(one), pixels("emu", 3))
    broken = write(tmp_path / "b.zip", (tmp_path / "a.zip").read_bytes()[:-100])
    with pytest.raises(ValueError, match="b.zip is neither a folder nor a zip or tar"):
        survey(broken, tmp_path)


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
    next((tmp_path / "cache" / "own").glob("*.npz")).write_bytes(b"damage")
    looked.clear()
    survey(root, tmp_path)
    assert len(looked) == 62


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
    shards = {path.name: path.stat().st_mtime_ns for path in where.iterdir()}
    assert len(shards) == 2 * 8 and not any("partial" in name for name in shards)
    lost = sorted(where.glob("*.json"))[3]
    lost.unlink()  # killed between a shard and its list
    folder(root, {"cat": 5}, start=40)
    capfd.readouterr()
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    assert "preparing 13 of 65 images" in capfd.readouterr().err
    assert all((where / name).stat().st_mtime_ns == time for name, time in shards.items() if name.split(".")[0] != lost.stem)
    survey(root, tmp_path, {"size": (16, 16)}, prepare=True)
    assert "preparing" not in capfd.readouterr().err
