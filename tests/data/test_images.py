"""Encoded images: what is refused before it is decoded, and that every error names the file."""

import io
import os
import re
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax.data import images
from imgrec_jax.data.files import list_files

PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (80, 60))


def encoded(suffix: str) -> bytes:
    return cv2.imencode(suffix, PICTURE)[1].tobytes()


def empty_png(height: int, width: int) -> bytes:
    """A black PNG of 1 bit a pixel, written without its pixels ever being in memory."""
    deflate, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    packed = b"".join(deflate.compress(row * 100) for _ in range(height // 100)) + deflate.flush()
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    chunks = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif", ".webp"])
def test_whole_images_are_read(suffix):
    header = images.check_image(encoded(suffix), "a file")
    assert header[:2] == (60, 80)
    image = images.decode_image(encoded(suffix), "a file")
    assert image.shape == (60, 80, 3) and image.dtype == np.uint8
    if suffix in (".png", ".bmp", ".tif"):
        np.testing.assert_array_equal(image, PICTURE[..., ::-1])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif", ".webp"])
def test_cut_images_are_named(suffix):
    data = encoded(suffix)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(images.ImageFileError, match="^some/file: .*replace the file$"):
            images.decode_image(data[: int(len(data) * share)], "some/file")


def test_a_progressive_jpeg_with_restarts_and_a_thumbnail_is_whole():
    """Markers within scans, several scans, and bytes after the end."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    data = cv2.imencode(".jpg", PICTURE, options)[1].tobytes()
    assert images.check_image(data + bytes(40), "a").format == "JPEG"
    with pytest.raises(images.ImageFileError, match=r"a damaged JPEG \(cut off after \d+ bytes"):
        images.check_image(data[:-2], "a")
    exif = Image.Exif()
    exif[0x0112], exif[0x9286] = 6, "\xff\xd9" * 20  # what looks like an end within a segment
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, format="JPEG", exif=exif)
    images.check_image(buffer.getvalue(), "a")
    with pytest.raises(images.ImageFileError, match="cut off"):
        images.check_image(buffer.getvalue()[:-300], "a")


def test_a_flipped_bit_of_a_png_is_seen():
    data = bytearray(encoded(".png"))
    data[len(data) // 2] ^= 4
    with pytest.raises(
        images.ImageFileError, match=r"x.png: a damaged PNG \(the checksum of its part IDAT at byte 33 is wrong"
    ):
        images.decode_image(bytes(data), "x.png")


@pytest.mark.parametrize("data", [b"", b"\0" * 9, b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM"])
def test_what_is_no_image_is_named(data):
    with pytest.raises(images.ImageFileError, match=r"^x.png: .*(no image|damaged|empty file).*; replace the file$"):
        images.decode_image(data, "x.png")


def test_huge_images_are_refused_before_they_are_decoded(tmp_path):
    """30,000 x 30,000 in 109 kB would be 2.7 GB; a process may have 300 MB beside its libraries."""
    (tmp_path / "huge.png").write_bytes(empty_png(30_000, 30_000))
    assert (tmp_path / "huge.png").stat().st_size < 120_000
    program = (
        "import sys, resource, cv2, numpy\n"
        "from pathlib import Path\n"
        "from imgrec_jax.data import images\n"
        "images.decode_image(cv2.imencode('.png', numpy.zeros((9, 9, 3), numpy.uint8))[1].tobytes(), 'small')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "path = Path(sys.argv[1])\n"
        "for read in (images.file_header, lambda p: images.decode_image(images.read_image_file(p), str(p))):\n"
        "    try: read(path)\n"
        "    except images.ImageFileError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "huge.png"], capture_output=True, text=True, check=True)
    *said, grown = done.stdout.splitlines()
    assert len(said) == 2 and all(
        "huge.png: an image of 30000 x 30000 pixels, more than config.data.max_pixels" in s for s in said
    )
    assert int(grown) < 20_000  # kB


def test_the_limit_is_ours_alone():
    """PIL warns from 89 million pixels on and refuses 179 million; neither happens below our limit, nor is PIL's changed."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.check_image(empty_png(10_000, 19_000), "a")[:2] == (10_000, 19_000)
    assert before == Image.MAX_IMAGE_PIXELS is not None
    with pytest.raises(images.ImageFileError, match="60 x 80 pixels, more than config.data.max_pixels=100"):
        images.check_image(encoded(".png"), "a", 100)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    start = time.monotonic()
    for name in ("pipe.png", "folder.png", "endless.png"):
        with pytest.raises(ValueError, match=f"{name} is no regular file; expected an image file"):
            images.read_image_file(tmp_path / name)
    with pytest.raises(ValueError, match="loop.png cannot be read"):
        images.read_image_file(tmp_path / "loop.png")
    with pytest.raises(FileNotFoundError, match="gone.png is not there"):
        images.read_image_file(tmp_path / "gone.png")
    assert time.monotonic() - start < 5
    (tmp_path / "real.png").write_bytes(encoded(".png"))
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")  # a link is as good as what it points to
    assert images.read_image_file(tmp_path / "link.png") == encoded(".png")


def test_a_file_of_far_more_bytes_than_pixels_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    for head in (encoded(".png"), b""):
        path.write_bytes(head)
        os.truncate(path, 40 * 2**30)
        with pytest.raises(images.ImageFileError, match=r"sparse.png: (42,949,672,960 bytes for an image of 60 x 80|no image)"):
            images.read_image_file(path)


def test_a_zip_beside_what_systems_leave_behind_is_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", encoded(".png"))
    for name in (".DS_Store", "._a.zip", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    assert list(map(str, list_files(tmp_path).names)) == ["good.png"]


def test_members_of_a_zip_declare_their_size(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("bomb.png", "w") as file:
            file.write(encoded(".png"))
            for _ in range(200):
                file.write(bytes(2**20))
        archive.writestr("good.png", encoded(".png"))
        archive.writestr("broken.png", encoded(".png"))
    data = path.read_bytes()
    at = data.index(b"broken.png") + len("broken.png") + 20
    path.write_bytes(data[:at] + b"\xff\x00\xff" + data[at + 3 :])
    files = list_files(path)
    bomb, broken, good = files.names
    assert files.read(good) == encoded(".png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(images.ImageFileError, match=r"a.zip: bomb.png: 209,\d+,\d+ bytes for an image of 60 x 80"):
        files.read(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    with pytest.raises(images.ImageFileError, match=r"a.zip: broken.png cannot be unpacked"):
        files.read(broken)


def test_orientation_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(PICTURE).save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    assert [images.orientation(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")] == [6, None, None, None]


def test_lossy_formats():
    assert images.is_lossy(encoded(".jpg"), "JPEG") and not images.is_lossy(encoded(".png"), "PNG")
    for quality, lossy in ((80, True), (101, False)):  # OpenCV writes WebP without loss above 100
        data = cv2.imencode(".webp", PICTURE, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        assert images.is_lossy(data, images.check_image(data, "a").format) is lossy


def test_what_a_decoder_says_is_caught():
    data = bytearray(cv2.imencode(".jpg", cv2.resize(PICTURE, (640, 480)), [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    with images.decoder_warnings() as said:
        images.decode_image(bytes(data), "a.jpg")
    assert "Corrupt JPEG data" in said[0].damage and said[0].rest == ""
    with images.decoder_warnings() as said:
        os.write(2, b"something else\n")
    assert said[0] == ("", "something else")


def jpegs() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (9, 11, 3), np.uint8), (83, 61), interpolation=cv2.INTER_CUBIC)
    colour, grey = Image.fromarray(picture), Image.fromarray(picture[..., 0])
    kinds = {
        "colour": (colour, {"quality": 90}),
        "4:4:4": (colour, {"quality": 95, "subsampling": 0}),
        "4:2:2": (colour, {"quality": 60, "subsampling": 1}),
        "progressive": (colour, {"progressive": True}),
        "restarts": (colour, {"restart_marker_blocks": 3}),
        "grey": (grey, {}),
        "cmyk": (colour.convert("CMYK"), {}),
        "one pixel": (colour.resize((1, 1)), {}),
    }
    files = {}
    for name, (image, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        files[name] = file.getvalue()
    return files


@pytest.mark.parametrize("kind", sorted(jpegs()))
def test_a_jpeg_has_the_pixels_that_opencv_gives(kind):
    data = jpegs()[kind]
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[..., ::-1]
    np.testing.assert_array_equal(images.decode_image(data, kind), expected)


def test_damage_of_a_jpeg_is_said_once_and_by_name(capfd):
    data = bytearray(jpegs()["colour"])
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    expected = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    capfd.readouterr()
    for _ in range(2):
        np.testing.assert_array_equal(images.decode_image(bytes(data), "folder/damaged.jpg"), expected)
    said = capfd.readouterr().err
    assert re.fullmatch(r"warning: folder/damaged.jpg is damaged \(Corrupt JPEG data: .*\); its pixels .*\n", said), said
