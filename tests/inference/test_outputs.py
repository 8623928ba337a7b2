"""What is written of the answers: ids of COCO's images, and files that cannot be written said before anything is predicted."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from imgrec_jax.inference import similarity
from imgrec_jax.inference.outputs import Writer
from imgrec_jax.inference.results import BoxesResult

RUN = SimpleNamespace(config=ConfigDict({"task": "detection"}), workdir="w", category_ids=(1, 2), reading=dict)


def boxes(file):
    return BoxesResult(
        file=file, size=(9, 9), class_names=("a",), read=lambda: None, video=None, boxes=np.array([[0, 0, 5, 5.0]]),
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
