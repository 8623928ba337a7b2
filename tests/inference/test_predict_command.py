"""`imgrec predict` as a user gives it: every output, what is wrong with an image, and the score against labels."""

import json
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import imgrec_jax
from imgrec_jax import assemble, predict
from imgrec_jax.inference import drawing
from imgrec_jax.pages import split_files
from tests import small_runs

TASKS = small_runs.TASKS


def call(*words):
    """(exit status or message) of the command, in this process; paths and flags may be anything that becomes text."""
    with pytest.raises(SystemExit) as ended:
        predict.main([str(word) for word in words])
    return ended.value.code


@pytest.fixture(scope="session")
def written(finished, small_data, tmp_path_factory):
    """{task: folder with the test split of its data as files}."""
    folders = {}
    for task in TASKS:
        source = assemble.build(small_runs.config_of(task, small_data[task])).data.evals["test"].source
        folders[task] = tmp_path_factory.mktemp(task)
        split_files.write(source, folders[task], "test")
    return folders


PLACES = {
    "classification": ("test", "test", "accuracy_correct"),
    "detection": ("test", "test.json", "AP"),
    "segmentation": ("test/images", "test/masks", "mean_iou"),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_score_against_labels_is_the_evaluation(finished, written, tmp_path, task):
    images, labels, metric = PLACES[task]
    out, folder = tmp_path / "out.jsonl", written[task]
    status = call(
        "--workdir", finished[task], "--checkpoint=last", folder / images, "--labels", folder / labels, "--out", out
    )  # fmt: skip
    assert status == 0
    score = json.loads((tmp_path / "out.score.json").read_text())
    lines = [json.loads(line) for line in (finished[task] / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "test"][-1]
    for name, value in last.items():
        if name in score and isinstance(value, int | float):
            assert score[name] == pytest.approx(value, abs=1e-6), name
    assert score[metric] == pytest.approx(last[metric], abs=1e-9) and score["images"] == last["examples"]
    assert len(out.read_text().splitlines()) == last["examples"]


def test_a_csv_names_classes_too(finished, written, tmp_path, capsys):
    folder = written["classification"]
    assert call("--workdir", finished["classification"], folder / "test", "--labels", folder / "test.csv") == 0
    assert "accuracy_count            60" in capsys.readouterr().err
    (tmp_path / "short.csv").write_text("file,label\ntest/0/none.png,0\n")
    assert call("--workdir", finished["classification"], folder / "test", "--labels", tmp_path / "short.csv") == 1
    assert "short.csv has no line for it" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_answers_pictures_and_coco_results(finished, written, tmp_path, task, capsys):
    images = sorted((written[task] / PLACES[task][0]).rglob("*.png"))[:3]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images[-1]).save(turned := tmp_path / "77.png", exif=exif)
    images[-1], workdir = turned, finished[task]
    capsys.readouterr()  # what training printed
    more = [] if task == "classification" else ["--coco", tmp_path / "coco.json"]
    more += ["--save_masks", tmp_path / "masks"] if task == "segmentation" else []
    assert call("--workdir", workdir, *images, "--save_images", tmp_path / "drawn", *more) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["file"] for line in lines] == list(map(str, images))
    assert (f"1 images have an EXIF orientation, e.g. {turned}: with --coco" in printed.err) == (task != "classification")
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert len(drawn) == len(images) and max(Image.open(drawn[0]).size) >= drawing.READABLE
    if task == "classification":
        assert lines[0]["top"][0] == {"label": lines[0]["label"], "probability": lines[0]["probability"]}
        return
    entries = json.loads((tmp_path / "coco.json").read_text())
    if task == "detection":
        assert len(entries) == sum(len(line["boxes"]) for line in lines) and {"bbox", "score"} <= entries[0].keys()
        assert {box["label"] for line in lines for box in line["boxes"]} <= {"red", "blue"}
    else:
        from pycocotools import mask as coco_mask

        mask = np.asarray(Image.open(lines[0]["mask"]))
        assert mask.shape == (32, 32) and sum(a["pixels"] for a in lines[0]["areas"]) == 32 * 32
        coded = [e["segmentation"] for e in entries if e["image_id"] == int(images[0].stem)]
        assert not coded or (coco_mask.decode(coded[0]) == (mask == 1)).all()


def test_pictures_of_equal_names_lie_beside_one_another(finished, tmp_path, capsys):
    for folder, value in (("a", 0), ("b", 255)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((28, 28), value, np.uint8)).save(tmp_path / folder / "x.png")
    workdir = finished["classification"]
    capsys.readouterr()  # what training printed
    assert call("--workdir", workdir, tmp_path / "a", tmp_path / "b", "--save_images", tmp_path / "drawn") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({line["picture"] for line in lines}) == 2
    for line, value in zip(lines, (0, 255), strict=True):
        drawn = np.asarray(Image.open(line["picture"]).convert("L"))
        assert abs(int(drawn[len(drawn) // 4, drawn.shape[1] // 2]) - value) < 9, line


def test_bad_images_are_named_and_the_others_go_on(finished, tmp_path, capsys, monkeypatch):
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "good ü.png")
    (tmp_path / "text.jpg").write_text("no image")
    monkeypatch.setattr(sys, "stdin", [f"{tmp_path / 'good ü.png'}\n"])
    words = [tmp_path / "absent.png", tmp_path, "-", tmp_path / "*.gif"]
    workdir = finished["classification"]
    capsys.readouterr()
    assert call("--workdir", workdir, *words) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["file"] for line in said.out.splitlines()] == [str(tmp_path / "good ü.png")] * 2
    for message in (
        "absent.png is not there",
        "text.jpg: 8 bytes that are no image",
        "*.gif matches no file",
        "3 could not be read",
    ):
        assert message in said.err


def test_what_cannot_be_asked_is_one_line(finished, tmp_path):
    workdir = finished["classification"]
    for words, message in (
        (["--workdir", workdir], "no images: give paths"),
        (["--workdir", workdir, "x.png", "--coco", "c.json"], "--coco is for detection and segmentation"),
        (["--workdir", workdir, "x.png", "--window=64"], "windows at prediction are for detection"),
        (["--workdir", workdir, "x.png", "--labels", tmp_path / "none"], "expected a folder with a folder of images a class"),
        (["--workdir", tmp_path, "x.png"], "there is no run in"),
        (["--workdir", workdir, "x.png", "--features=embedding"], "--out=FILE.npz"),
        (["--workdir", workdir, "x.png", "--nonsense"], "--help lists the flags"),
    ):
        assert message in str(call(*words)), words


def test_windows_find_small_objects_of_large_pictures(finished):
    run = imgrec_jax.load(finished["detection"])
    image = np.random.default_rng(0).integers(60, 120, (150, 200, 3), np.uint8)
    image[20:40, 30:50] = (220, 40, 40)
    alone, windowed = run.predict(image)[0], run.predict(image, window=(64, 64))[0]
    assert windowed.boxes[:, [0, 2]].max(initial=0) <= 200 and windowed.boxes[:, [1, 3]].max(initial=0) <= 150
    assert len(windowed.boxes) >= len(alone.boxes) and (np.diff(windowed.scores) <= 0).all()


def test_a_video_comes_back_with_its_answers(finished, tmp_path, capsys):
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 64))
    for n in range(6):
        writer.write(np.full((64, 64, 3), 40 * n, np.uint8))
    writer.release()
    workdir = finished["segmentation"]
    capsys.readouterr()
    assert call("--workdir", workdir, path, "--every=2", "--save_images", tmp_path / "out") == 0
    files = [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    assert files == [f"{path}#{n}" for n in (0, 2, 4)]
    (made,) = (tmp_path / "out").iterdir()
    assert made.name == "v.avi.mp4" and int(cv2.VideoCapture(str(made)).get(cv2.CAP_PROP_FRAME_COUNT)) == 3


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--threshold=50", "--threshold=50.0; expected 0 to 1"),
        ("--threshold=nan", "--threshold=nan; expected 0 to 1"),
        ("--threads=0", "--threads=0; expected 1 or more"),
    ],
)
def test_values_that_cannot_be_are_named(finished, flag, said):
    assert call("--workdir", finished["detection"], "x.png", flag) == f"error: {said}"
