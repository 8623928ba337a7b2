"""What is written of the answers: ids of COCO's images, and files that cannot be written said before anything is predicted."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from imgrec_jax import predict
from imgrec_jax.inference import similarity
from imgrec_jax.inference.outputs import Writer
from imgrec_jax.inference.results import BoxesResult

RUN = SimpleNamespace(config=ConfigDict({"task": "detection"}), workdir="w", category_ids=(1, 2), reading=dict)


def boxes(file, read=lambda: None, video=None):
    return BoxesResult(
        file=file, size=(9, 9), class_names=("a",), read=read, video=video, boxes=np.array([[0, 0, 5, 5.0]]),
        scores=np.array([0.5], np.float32), labels=np.array([1], np.int32), names=("a",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (["d/000012.jpg", "d/7.jpg"], [12, 7]),
        (["d/7.jpg", "d/7.jpg"], [7, 7]),  # one image twice
        (["d/2.jpg", "d/cat.jpg"], [1, 2]),
        (["cat.jpg", "1.jpg"], [1, 2]),
        (["0001.mp4#0", "0001.mp4#1"], [1, 2]),
        (["12.npz[0]", "12.npz[1]", "5.png"], [1, 2, 3]),
        (["a/7.png", "b/7.png", "\udcff.png"], [1, 2, 3]),
        ([f"{10**40}.png", "2.png"], [1, 2]),
    ],
)
def test_every_image_has_an_id_of_its_own(tmp_path, files, ids):
    with Writer(RUN, out=tmp_path / "o.jsonl", coco=tmp_path / "o.json") as writer:
        for file in files:
            writer.write(boxes(file))
    assert writer.numbered == (ids == list(range(1, len(ids) + 1)))
    assert [entry["image_id"] for entry in json.loads((tmp_path / "o.json").read_text())] == ids
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(line["image_id"], line["file"]) for line in lines] == list(zip(ids, files, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.json", "o.jsonl"]


def test_a_picture_longer_than_jpeg_takes_is_written_as_png(tmp_path):
    with Writer(RUN, out=tmp_path / "o.jsonl", images=tmp_path / "drawn") as writer:
        writer.write(boxes("long.png", lambda: np.full((6, 65_501, 3), 9, np.uint8)))
    picture = json.loads((tmp_path / "o.jsonl").read_text())["picture"]
    assert picture.endswith("long.png") and Image.open(picture).size == (65_501, 6)


def test_an_answer_that_cannot_be_drawn_is_named_and_the_others_go_on(tmp_path):
    def gone():
        raise FileNotFoundError("b.png: no such file")

    def huge():
        raise MemoryError

    def fine():
        return np.zeros((9, 9, 3), np.uint8)

    told = []
    with Writer(
        RUN, out=tmp_path / "o.jsonl", images=tmp_path / "drawn", on_fault=lambda result, error: told.append(str(error))
    ) as writer:
        for name, read in {"a.png": fine, "b.png": gone, "c.png": huge, "d.png": fine}.items():
            writer.write(boxes(name, read))
        (tmp_path / "drawn" / "v.mp4.mp4").mkdir()  # a video that cannot be opened is said once
        for n in range(3):
            writer.write(boxes(f"v.mp4#{n}", fine, ("v.mp4", n, 5.0)))
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a.png", "b.png", "c.png", "d.png", "v.mp4#0", "v.mp4#1", "v.mp4#2"]
    assert ["picture" in line for line in lines] == [True, False, False, True, False, False, False]
    said = [f"{tmp_path / 'drawn'} (b.png: no such file); its answer is kept", "(MemoryError)", "v.mp4"]
    assert len(told) == 3 and all(text in line for text, line in zip(said, told, strict=True))


def test_lines_are_kept_where_something_ends_the_rest(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), Writer(RUN, out=tmp_path / "o.jsonl", coco=tmp_path / "o.json") as writer:
        writer.write(boxes("1.png"))
        writer.write(boxes("2.png"))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl.partial"]
    assert [json.loads(line)["file"] for line in (tmp_path / "o.jsonl.partial").open()] == ["1.png", "2.png"]
    assert f"the 2 answers before it ended are in {tmp_path / 'o.jsonl.partial'}" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), Writer(RUN, out=tmp_path / "p.jsonl"):
        raise KeyboardInterrupt
    assert not list(tmp_path.glob("*p.jsonl*"))


def test_outputs_that_cannot_be_written_are_refused_at_once(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "o.json")
    for options, said in (
        ({"out": tmp_path}, "--out=.* is a folder"),
        ({"coco": tmp_path}, "--coco=.* is a folder"),
        ({"out": tmp_path / "o.json", "coco": tmp_path / "o.json"}, "--out and --coco are both written to"),
        ({"out": tmp_path / "o.json", "coco": tmp_path / "link.json"}, "--out and --coco are both written to"),
        ({"out": tmp_path / "o.jsonl", "coco": tmp_path / "o.score.json", "labels": object()}, "--coco and the score of"),
    ):
        with pytest.raises(ValueError, match=said):
            Writer(RUN, **options)
    segmenting = SimpleNamespace(config=ConfigDict({"task": "segmentation"}), workdir="w")
    with pytest.raises(ValueError, match="--save_images and --save_masks are both .*drawn/"):
        Writer(segmenting, images=f"{tmp_path}/drawn/", masks=f"{tmp_path}/drawn")
    assert not (tmp_path / "drawn").exists()
    with pytest.raises(SystemExit, match="--save_masks=.* is --labels, whose files would be written over"):
        predict.main([f"--workdir={tmp_path}", "a.png", f"--labels={tmp_path}", f"--save_masks={tmp_path}/../{tmp_path.name}"])
    with pytest.raises(ValueError, match="is a folder"):
        similarity.compare(RUN, "none.csv", None, far=0.01, out=tmp_path, say=print)
    with Writer(RUN, out="/dev/null", coco="/dev/null"):
        pass


def test_pairs_are_written_as_they_are_read(tmp_path, monkeypatch):
    names = [str(tmp_path / name) for name in ("a,b.png", 'c"d.png')]
    for name in names:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(name)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerow(names)
    monkeypatch.setattr(similarity, "features", lambda run, pictures, *_, **__: {p.name: np.ones(3) for p in pictures})
    assert similarity.compare(RUN, tmp_path / "pairs.csv", None, far=0.01, out=tmp_path / "out.csv", say=print) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [[*names, "1.000000"]]


@pytest.mark.parametrize(("threshold", "shown"), [(None, False), (0.2, True), (0.35, False)])
def test_a_picture_shows_the_boxes_of_its_line(tmp_path, threshold, shown):
    image = np.full((60, 80, 3), 90, np.uint8)
    boxes, scores = np.array([[10.0, 10, 50, 40]]), np.array([0.3], np.float32)
    result = BoxesResult("a.png", (60, 80), ("a",), lambda: image, None, boxes, scores, np.array([1]), ("a",))
    with Writer(RUN, out=tmp_path / "o.jsonl", images=tmp_path / "drawn", threshold=threshold) as writer:
        writer.write(result)
    picture = np.asarray(Image.open(tmp_path / "drawn" / "a.png").convert("RGB"))
    assert (np.ptp(picture.reshape(-1, 3), axis=0).max() > 20) == shown
