"""Predicting takes care: of the user's own files, of what pixels mean, of what is wrong with one image alone."""

import json
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgrec_jax
from imgrec_jax import predict
from imgrec_jax.data import images
from imgrec_jax.data.files import is_replaceable, without_links, write_whole
from imgrec_jax.inference import inputs
from imgrec_jax.inference.labels import MapLabels
from imgrec_jax.tasks import segment
from tests import small_runs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("care")
    data = small_runs.MAKERS["classification"](root / "data")
    imgrec_jax.train(imgrec_jax.build(small_runs.config_of("classification", data)), root / "run", lambda line: None)
    return root / "run"


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def command(*words: object) -> int:
    return predict.run(predict.parser().parse([str(word) for word in words]))


def test_pictures_are_not_written_over_the_images(workdir, photos, monkeypatch):
    before = small_runs.contents(photos)
    monkeypatch.chdir(photos)
    for folder in (photos, "."):
        with pytest.raises(ValueError, match="is the folder of the images"):
            command(f"--workdir={workdir}", photos, f"--save_images={folder}")
    assert small_runs.contents(photos) == before


def test_an_answer_that_was_broken_off_leaves_the_old_file(workdir, photos, tmp_path):
    out = tmp_path / "answers.jsonl"
    out.write_text("old\n")
    with pytest.raises(ValueError, match="is the folder of the images"):
        command(f"--workdir={workdir}", photos, f"--out={out}", f"--save_images={photos}")
    assert out.read_text() == "old\n" and os.listdir(tmp_path).count("answers.jsonl") == 1
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def through(fifo: Path, write) -> str:
    """What comes out of a FIFO while `write` is called."""
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    write()
    reader.join(10)
    return "".join(read)


def test_pipes_devices_and_links_are_written_into_and_stay(workdir, photos, tmp_path):
    fifo, real, link = tmp_path / "out.fifo", tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    to_fifo = tmp_path / "stdout"  # as /dev/stdout is a link, to a pipe that may have no name
    to_fifo.symlink_to(fifo.name)
    os.mkfifo(fifo)
    real.write_text("old")
    link.symlink_to(real.name)
    answers = through(fifo, lambda: command(f"--workdir={workdir}", photos, f"--out={fifo}"))
    assert command(f"--workdir={workdir}", photos, f"--out={link}") == 0
    assert len(answers.splitlines()) == 2 and real.read_text() == answers
    assert through(fifo, lambda: write_whole(to_fifo, lambda path: path.write_text("whole"))) == "whole"
    assert without_links(to_fifo) == to_fifo
    write_whole(link, lambda path: path.write_text("whole"))
    assert real.read_text() == "whole" and link.is_symlink()
    assert stat.S_ISFIFO(fifo.stat().st_mode) and not is_replaceable(Path(os.devnull))
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_names_that_are_odd_or_no_utf8_are_answered(workdir, photos, tmp_path):
    picture = (photos / "a.png").read_bytes()
    (photos / "~c.png").write_bytes(picture)
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png")).write_bytes(picture)
    (photos / "li*nk.png").symlink_to(photos / "nowhere.png")
    assert command(f"--workdir={workdir}", photos, f"--out={tmp_path / 'out.jsonl'}") == 1  # the link alone is no image
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and any("udcff" in line["file"] or "\udcff" in line["file"] for line in lines)


def test_bytes_and_floats_of_one_size_do_not_share_a_batch(workdir):
    run = imgrec_jax.load(workdir)
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), np.uint8)
    as_float = image.astype(np.float32) / 255
    alone = [run.predict([one])[0].probs for one in (image, as_float)]
    together = [result.probs for result in run.predict([image, as_float, image])]
    np.testing.assert_allclose(together, [*alone, alone[0]], atol=1e-6)
    np.testing.assert_allclose(alone[0], alone[1], atol=1e-5)


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_tiff_is_decoded_as_stored_and_turned_once(tmp_path, tag):
    stored = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = tag
    image.save(tmp_path / "a.tif", exif=exif)
    Image.fromarray(stored).save(tmp_path / "a.png")
    data = (tmp_path / "a.tif").read_bytes()
    np.testing.assert_array_equal(images.decode_image(data, "a"), stored)
    upright = inputs.read_file(tmp_path / "a.tif")
    np.testing.assert_array_equal(upright, images.turned(stored, tag))
    np.testing.assert_array_equal(inputs.read_file(tmp_path / "a.tif", upright=False), stored)


def test_masks_of_one_name_in_two_folders_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / folder / "001.png")
    with pytest.raises(ValueError, match=r"001\.png are masks of one name"):
        MapLabels(tmp_path, 2)


def test_void_at_the_border_does_not_cut_the_answer():
    predictions = {"segmentation": np.ones((2, 8, 10), np.int32)}
    valid = np.ones((2, 8, 10), bool)
    valid[0, 6:] = False
    valid[1] = False
    batch = {"pixel_valid": valid, "image_size": np.array([[8, 9], [7, 10]])}
    assert [record["segmentation"].shape for record in segment.records(predictions, batch)] == [(8, 9), (7, 10)]
