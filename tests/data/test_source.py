import numpy as np
import pytest

from imgrec_jax.data import source
from imgrec_jax.data.sets import tfds
from imgrec_jax.data.source import Request


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", (0, 200)), ("train[:50]", (0, 50)), ("train[150:]", (150, 200)), ("train[-20:]", (180, 200)),
     ("train[:25%]", (0, 50)), ("train[25%:75%]", (50, 150)), ("train[:999]", (0, 200))],
)  # fmt: skip
def test_split_ranges(split, expected):
    assert source.split_range(split, 200) == expected


@pytest.mark.parametrize("split", ["train[", "train[5]", "train[a:b]", "", "train[:5][:3]"])
def test_malformed_splits_are_named(split):
    with pytest.raises(ValueError, match="is not of the form"):
        source.split_range(split, 200)


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match=r"'train\[200:\]' is empty: the base split has 200"):
        source.split_range("train[200:]", 200)


def test_parts_are_disjoint_and_keep_the_order(digits_dir):
    splits = ("train", "train[:500]", "train[500:]")
    whole, first, rest = (tfds.open_prepared_labels(Request("mnist:3.0.1", split, digits_dir)) for split in splits)
    assert (len(first), len(rest)) == (500, 100)
    np.testing.assert_array_equal(whole[500]["image"], rest[0]["image"])
    subset = source.part(source.Subset(whole, 10, 20, whole.info), "train[5:]")
    np.testing.assert_array_equal(subset[0]["image"], whole[15]["image"])
    with pytest.raises(IndexError):
        subset[5]


def test_a_torn_decoded_copy_is_not_read(digits_dir, tmp_path):
    arrays = {"image": np.zeros((3, 2, 2, 1), np.uint8), "label": np.zeros(3)}
    tfds.save_decoded(arrays, ["a"], "mnist:3.0.1", "train", tmp_path)
    folder = tfds.decoded_dir("mnist:3.0.1", "train", tmp_path)
    assert len(tfds.open_prepared_labels(Request("mnist:3.0.1", "train", tmp_path))) == 3
    (folder / "image.npy").write_bytes((folder / "image.npy").read_bytes()[:-4])
    with pytest.raises(FileNotFoundError, match="is not prepared"):
        tfds.open_prepared_labels(Request("mnist:3.0.1", "train", tmp_path))


def test_a_decoded_copy_is_of_the_records_that_lie_there(tmp_path, capsys):
    def look():
        return tfds._open_decoded("toy", "train", tmp_path, ("label",))

    file = tmp_path / "toy" / "1.0.0" / "toy-train.array_record-00000-of-00001"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * 20)
    tfds.save_decoded({"label": np.zeros(3)}, ["a"], "toy", "train", tmp_path)
    assert len(look()) == 3
    file.rename(tmp_path / "elsewhere")  # a copy without the records stands for them
    assert len(look()) == 3
    for corrected in (file, file.parents[1] / "1.1.0" / file.name):
        corrected.parent.mkdir(exist_ok=True)
        corrected.write_bytes(b"x" * 21)
        assert look() is None and "is of other records than those in" in capsys.readouterr().err
        corrected.unlink()


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        source.ArraySource({"a": np.zeros(3), "b": np.zeros(4)}, source.SourceInfo("x"))


def test_few_examples_a_class_are_nested_and_named_when_there_are_too_few():
    label = np.array([0, 1] * 10 + [1] * 5)
    info = source.SourceInfo("some", ("a", "b"), meta={"targets": {"label": label}})
    whole = source.ArraySource({"image": np.arange(25), "label": label}, info)
    three, five = source.few(whole, 3, seed=1), source.few(whole, 5, seed=1)
    assert np.bincount(source.labels_of(three)).tolist() == [3, 3] and len(five) == 10
    assert set(three.arrays["image"]) < set(five.arrays["image"]) and (three.info.base_size, whole.info.base_size) == (25, None)
    assert set(source.few(whole, 5, seed=2).arrays["image"]) != set(five.arrays["image"])
    assert np.array_equal(three.info.meta["targets"]["label"], three.arrays["label"])
    chosen = source.few(source.Subset(whole, 0, 25, info), 3, seed=1)
    assert [chosen[i]["image"] for i in range(6)] == three.arrays["image"].tolist()
    with pytest.raises(ValueError, match="class 'a' of some has 10 examples, not 11"):
        source.few(whole, 11, seed=0)
