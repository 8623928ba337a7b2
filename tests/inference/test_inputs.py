"""Every place that images come from, and every way in which a file can be odd."""

import functools
import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from imgrec_jax.data.own import pictures as own_pictures
from imgrec_jax.data.own.listing import PICTURES
from imgrec_jax.data.walking import walk
from imgrec_jax.inference import inputs

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def read(path, **options):
    """[(name, pixels or message)] of a path."""
    found = []
    for picture in inputs.of_path(str(path), **options):
        try:
            found.append((picture.name, picture.read()))
        except ValueError as error:
            found.append((picture.name, str(error)))
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_pils(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(inputs.read_file(path), want)
    np.testing.assert_array_equal(inputs.read_file(path, upright=False), PIXELS)
    np.testing.assert_array_equal(next(inputs.pictures(Image.open(path))).read(), want)


def test_a_damaged_exif_block_is_no_warning(tmp_path):
    """Each of its bytes at its extremes, in a process with the filters a user has."""
    exif, path = Image.Exif(), tmp_path / "a.jpg"
    exif[0x0112], exif[0x010E] = 6, "a description"
    Image.fromarray(PIXELS).save(path, exif=exif)
    program = f"""
from imgrec_jax.data.images import orientation_of
data = open({str(path)!r}, "rb").read()
start = data.index(b"Exif")
found = {{orientation_of(data[:k] + bytes([v]) + data[k + 1 :]) for k in range(start, start + 64) for v in (0, 255)}}
print(6 in found and 1 in found)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


MODES = {
    "RGB.png": lambda: Image.fromarray(PIXELS),
    "RGBA.png": lambda: Image.fromarray(np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)])),
    "L.png": lambda: Image.fromarray(PIXELS[..., 0]),
    "LA.png": lambda: Image.fromarray(PIXELS[..., 0]).convert("LA"),
    "1.png": lambda: Image.fromarray(PIXELS[..., 0]).convert("1"),
    "palette.png": lambda: Image.fromarray(PIXELS).convert("P"),
    "grey16.png": lambda: Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257),
    "CMYK.jpg": lambda: Image.fromarray(PIXELS).convert("CMYK"),
    "CMYK.tif": lambda: Image.fromarray(PIXELS).convert("CMYK"),
    "a.gif": lambda: Image.fromarray(PIXELS).convert("P"),
    "a.webp": lambda: Image.fromarray(PIXELS),
    "a.bmp": lambda: Image.fromarray(PIXELS),
    "ü ñ 日本.png": lambda: Image.fromarray(PIXELS),
    "with space.jpg": lambda: Image.fromarray(PIXELS),
}


@pytest.mark.parametrize("name", MODES)
def test_images_of_every_mode(tmp_path, name):
    MODES[name]().save(tmp_path / name)
    ((found, pixels),) = read(tmp_path / name)
    assert found == str(tmp_path / name) and pixels.dtype == np.uint8 and pixels.shape == (6, 9, 3)
    want = np.asarray(Image.open(tmp_path / name).convert("RGB") if "16" not in name else MODES["L.png"]().convert("RGB"))
    lossy = name.endswith(("jpg", "webp", "tif"))  # JPEG decoders differ by a few units, and so do conversions of inks
    assert np.abs(pixels.astype(int) - want).mean() <= (12 if lossy else 1)


ODD = {
    **{name: MODES[name] for name in ("LA.png", "1.png", "palette.png", "CMYK.tif", "a.gif", "a.bmp")},
    "RGBA.png": lambda: Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])),
    "transparent palette.png": lambda: with_info(MODES["palette.png"](), transparency=3),
    "transparent colour.png": lambda: with_info(Image.fromarray(PIXELS), transparency=tuple(PIXELS[0, 0].tolist())),
    "grey16.png": lambda: Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 251),
    "dark grey16.png": lambda: Image.fromarray(PIXELS[..., 0].astype(np.uint16)),
    "grey16.tif": lambda: Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 251),
}


def with_info(image, **info):
    image.info.update(info)
    return image


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("depth", [None, 8, 16])
def test_a_pil_image_is_read_as_its_file(tmp_path, name, depth):
    exif = Image.Exif()
    exif[0x0112] = 6
    path, tagged = tmp_path / name, {"exif": exif} if name.endswith("png") else {}
    ODD[name]().save(path, **tagged)
    decode = None if depth is None else functools.partial(own_pictures.decode, depth=depth)
    (_, pixels), picture = *read(path, decode=decode), next(inputs.pictures(Image.open(path), decode=decode))
    assert picture.name == str(path)
    np.testing.assert_array_equal(picture.read(), pixels)


def test_what_is_no_image_is_named_with_the_reason(tmp_path):
    good = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(good, "PNG")
    (tmp_path / "cut.png").write_bytes(good.getvalue()[:-200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    found = dict(read(tmp_path))
    assert len(found) == 4 and all(isinstance(message, str) and message.startswith(name) for name, message in found.items())
    reasons = {name.rsplit("/", 1)[1]: message for name, message in found.items()}
    assert "cut off" in reasons["cut.png"] and "0 bytes" in reasons["empty.jpg"] and "no image" in reasons["text.jpg"]
    assert "20000 x 20000 pixels, more than" in reasons["huge.png"]
    for path, message in {"nothing.png": "is not there", "no*.png": "matches no file", "\0.png": "cannot be read"}.items():
        ((_, said),) = read(tmp_path / path)
        assert message in said
    (tmp_path / "bare").mkdir()
    assert "holds no image" in read(tmp_path / "bare")[0][1]


def test_folders_globs_lists_and_arrays(tmp_path):
    for name in ("b.png", "a.jpg", "below/c.png", ".hidden/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("") if name == "notes.txt" else Image.fromarray(PIXELS).save(tmp_path / name)
    names = [name.removeprefix(f"{tmp_path}/") for name, _ in read(tmp_path)]
    assert names == ["a.jpg", "b.png", "below/c.png"]
    assert [name for name, _ in read(tmp_path / "*.png")] == [str(tmp_path / "b.png")]
    listed = inputs.of_words(["-"], [f"{tmp_path}/b.png\n", "\n", f"{tmp_path}/below\n"])
    assert [p.name for p in listed] == [str(tmp_path / "b.png"), str(tmp_path / "below/c.png")]
    np.savez(tmp_path / "x.npz", images=np.stack([PIXELS] * 2), label=np.arange(2), one=PIXELS[..., 0])
    found = read(tmp_path / "x.npz")
    assert [name.removeprefix(f"{tmp_path}/") for name, _ in found] == ["x.npz[images][0]", "x.npz[images][1]", "x.npz[one]"]
    np.testing.assert_array_equal(found[1][1], PIXELS)
    (tmp_path / "y.npz").write_bytes(b"PK nothing")
    np.save(tmp_path / "z.npy", np.arange(4))
    assert "cannot be read as arrays" in read(tmp_path / "y.npz")[0][1] and "holds no image" in read(tmp_path / "z.npy")[0][1]


def test_arrays_and_pil_images_as_python_has_them():
    def shapes(images):
        return [p.read().shape for p in inputs.pictures(images)]

    assert shapes(PIXELS) == [(6, 9, 3)] and shapes(PIXELS[..., 0]) == [(6, 9)]
    assert shapes(np.stack([PIXELS] * 3)) == [(6, 9, 3)] * 3 and shapes(np.zeros((4, 28, 28), np.uint8)) == [(28, 28)] * 4
    assert shapes(image for image in [PIXELS, Image.fromarray(PIXELS[..., 0])]) == [(6, 9, 3)] * 2
    sixteen = Image.fromarray(np.full((2, 2), 65535, np.uint16))
    assert next(inputs.pictures(sixteen)).read().tolist() == [[[255] * 3] * 2] * 2


def test_frames_of_a_video(tmp_path):
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for n in range(7):
        writer.write(np.full((48, 64, 3), 30 * n, np.uint8))
    writer.release()
    frames = list(inputs.of_path(str(path), every=3))
    assert [f.name for f in frames] == [f"{path}#{n}" for n in (0, 3, 6)] and frames[1].video == (str(path), 3, 10.0 / 3)
    assert abs(int(frames[2].read().mean()) - 180) <= 2
    path.write_bytes(b"no video")
    assert "no video" in read(path)[0][1]


def test_a_folder_is_looked_through_as_one_to_train_on(tmp_path):
    """Every ending that training takes, links to folders, and nothing that systems leave behind."""
    for name in ("a.jpg", "b.JFIF", "c.ppm", "d.jp2", "e.avif", "@eaDir/thumb.jpg", ".hidden.jpg"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.jpg").touch()
    (tmp_path / "d" / "linked").symlink_to(tmp_path / "elsewhere")
    want = [name for name in walk(tmp_path / "d") if name.lower().endswith(PICTURES)]
    found = [Path(picture.name).relative_to(tmp_path / "d").as_posix() for picture in inputs.of_path(str(tmp_path / "d"))]
    assert found == want == ["a.jpg", "b.JFIF", "c.ppm", "d.jp2", "e.avif", "linked/z.jpg"]
