"""--mode=check names every error of a set and fails; training refuses a bad box before its first step."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgrec_jax import assemble
from imgrec_jax.overrides import configure
from tests.data import coco_folder
from tests.data.own.make import folder, write

ROOT = Path(__file__).parents[1]


def bad_folder(root):
    """The hand-written COCO folder as train and val; train has one error of every kind."""
    for split in ("train", "val"):
        images, file = coco_folder.write(root / split)
        images.rename(root / f"{split}2017")
        (root / "annotations").mkdir(exist_ok=True)
        file.rename(root / "annotations" / f"instances_{split}2017.json")
    file = root / "annotations" / "instances_train2017.json"
    data = json.loads(file.read_text())
    boxes = {40: [20, 10, 0, 5], 91: [25, 3, 8, 6]}
    for entry in data["annotations"]:
        entry["bbox"] = boxes.get(entry["id"], entry["bbox"])
    data["annotations"].append({**data["annotations"][3], "id": 77})
    file.write_text(json.dumps(data))
    (root / "train2017" / "3.jpg").unlink()
    return root


def folder_config(root):
    spec = importlib.util.spec_from_file_location("coco_faster_rcnn", ROOT / "configs" / "coco_faster_rcnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("folder,tiny")
    config.model.num_classes = 3
    config.data.manual_dir = str(root)
    return config


def check(root, *flags):
    command = [sys.executable, "-m", "imgrec_jax.main", "--config=configs/coco_faster_rcnn.py:folder", "--mode=check"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [*command, f"--config.data.manual_dir={root}", *flags], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_every_error_is_named_with_file_and_annotation(tmp_path):
    result = check(bad_folder(tmp_path))
    assert result.returncode == 1 and "error: 3 errors in the data" in result.stderr
    for line in (
        "7.jpg: annotation 40: degenerate, xyxy [20.0, 10.0, 20.0, 15.0]",
        "7.jpg: annotation 91: outside, xyxy [25.0, 3.0, 33.0, 9.0]",
        "5.png: annotation 77: duplicate, same box and class as annotation 2",
        f"3.jpg: missing file, expected {tmp_path}/train2017/3.jpg",
        "coco_folder val: 4 images (1 without objects), 4 boxes (1 crowd)",
    ):
        assert line in result.stdout


def test_a_good_set_passes(tmp_path):
    result = check(bad_folder(tmp_path), "--config.data.train_split=val[:2]")
    assert result.returncode == 0, result.stderr
    assert "coco_folder val[0:2]: 2 images" in result.stdout and "degenerate: 0, outside: 0" in result.stdout


def test_training_stops_on_a_bad_box_unless_it_may_be_dropped(tmp_path):
    config = folder_config(bad_folder(tmp_path))
    config.data.drop_degenerate_boxes = False
    with pytest.raises(
        ValueError, match=r"instances_train2017.json\) has 2 errors.*7.jpg: annotation 40: degenerate.*annotation 91"
    ):
        assemble.build(config)
    config.data.train_split, config.data.drop_degenerate_boxes = "train[2:3]", True  # 7.jpg, which holds both
    boxes = assemble.build(config).data.train.batch(0)
    assert boxes["box_valid"].sum() == 1  # 91 is cut at the border, 40 has no area to keep


def test_what_a_training_says_at_its_start_is_said(tmp_path, capfd):
    folder(tmp_path / "d", {"cat": 6, "dog": 6}, "train")
    folder(tmp_path / "d", {"cat": 5, "dog": 4}, "val", 4)
    write(tmp_path / "d" / "train" / "cat" / "broken.png", b"no image")
    overrides = {"data.manual_dir": str(tmp_path / "d"), "data.bad_files": "skip", "data.data_dir": str(tmp_path / "cache")}
    config, _ = configure("image_folder", overrides)
    assert [len(report.bad()) for report in assemble.reports(config, tell=True)] == [0, 0]
    found = lambda: [line for line in capfd.readouterr().err.splitlines() if line.startswith("found: ")]  # noqa: E731
    said = found()
    assemble.build(config)
    assert said == found()
    for line in ("1 of 22 files are left out", "leakage: 4 files are equal to one of another split", "splits: train 12"):
        assert any(line in found for found in said)
