"""Prepared sets where there is no ArrayRecord (Windows): written as Parquet, they are the same data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imgrec_jax.data import annotated, records
from imgrec_jax.data.sets import coco
from tests.data import coco_folder

ALL = ("boxes", "masks", "segmentation")
TESTS = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return coco.read_folder(*coco_folder.write(tmp_path))


def test_a_set_without_array_record(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    assert records.record_format() == "parquet"
    name = coco.prepare("bees", {"train": folder}, tmp_path)
    assert [path.suffix for path in (tmp_path / name / "1.0.0").glob("*-train.*")] == [".parquet-00000-of-00001"]
    prepared, there = annotated.open_prepared(name, "train", tmp_path, targets=ALL), annotated.open_folder("bees", folder, ALL)
    assert len(prepared) == len(there) == 4
    for index in (3, 0, 2, 1):
        assert prepared[index].keys() == there[index].keys()
        for key, value in there[index].items():
            np.testing.assert_allclose(prepared[index][key], value, atol=1e-5) if key == "boxes" else (
                np.testing.assert_array_equal(prepared[index][key], value)
            )
    monkeypatch.undo()  # and such a set can be read by a machine that has the package
    assert annotated.open_prepared(name, "train", tmp_path)[2]["file_name"] == "7.jpg"


def test_a_set_that_cannot_be_read_here(folder, tmp_path, monkeypatch):
    pytest.importorskip("array_record")
    name = coco.prepare("bees", {"train": folder}, tmp_path)
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(ValueError, match=r"bees.1\.0\.0 is written as array_record, .* with file_format='parquet'"):
        annotated.open_prepared(name, "train", tmp_path)


@pytest.mark.parametrize("package", [True, False])
def test_records_of_bytes(package, tmp_path, monkeypatch):
    """By position, of any length; what a failed writer leaves has no name."""
    if package:
        pytest.importorskip("array_record")
    else:
        monkeypatch.setitem(sys.modules, "array_record", None)
    written = [b"one", b"", b"three" * 1000, bytes(range(256))]
    records.write_bytes(tmp_path / "some.thing", iter(written))
    assert [path.name for path in tmp_path.iterdir()] == [f"some.thing.{'array_record' if package else 'records'}"]
    reader = records.open_bytes(tmp_path / "some.thing")
    assert [bytes(record) for n in (3, 0, 2, 1) for record in reader.read([n])] == [written[n] for n in (3, 0, 2, 1)]
    with pytest.raises(ValueError, match="no image"):
        records.write_bytes(tmp_path / "other", (_ for _ in [0] if fail()))
    assert len(list(tmp_path.iterdir())) == 1


def fail():
    raise ValueError("no image")


def test_nothing_imports_array_record():
    """The loop's own reader threads and TFDS, in a process where importing it fails as on Windows."""
    program = """
import array_record
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS / "without_array_record"), str(TESTS.parent)])}
    refused = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "ModuleNotFoundError" in refused.stderr
    program = """
import numpy as np
from imgrec_jax.data.pipeline import Pipeline, sequential_order
from imgrec_jax.data.source import ArraySource, SourceInfo
from imgrec_jax.data import annotated
import tensorflow_datasets
source = ArraySource({"image": np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)}, SourceInfo("eight"))
made = Pipeline(source, sequential_order(8, 4), 0, ops=[lambda example, rng: example], threads=2).batches(0, 2)
print([batch["image"].ravel().tolist() for batch in made])
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[[0, 1, 2, 3], [4, 5, 6, 7]]", done.stderr
