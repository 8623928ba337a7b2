"""Pictures of every kind become pixels, and damage is told."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from imgrec_jax.data import images
from imgrec_jax.data.images import ImageFileError
from imgrec_jax.data.own.pictures import NOTES, decode, describe
from tests.data.own.make import encoded, pixels

COLOUR = pixels("cat", 0)


def notes(data: bytes, name: str = "x.png") -> set[str]:
    found = describe(data, name)
    assert not found.problem
    return {note for n, note in enumerate(NOTES) if found.notes >> n & 1}


def test_plain_colour_and_grey():
    data = encoded(COLOUR)
    assert describe(data, "x.png")[:5] == (20, 24, 3, 8, 0)
    np.testing.assert_array_equal(decode(data, "x.png"), COLOUR)
    grey = encoded(COLOUR[..., 0])
    assert describe(grey, "x.png")[:4] == (20, 24, 1, 8)
    np.testing.assert_array_equal(decode(grey, "x.png"), COLOUR[..., :1])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
def test_formats(format):
    data = encoded(np.full((16, 16, 3), 90, np.uint8), format)
    assert np.abs(decode(data, f"x.{format.lower()}").astype(int) - 90).max() <= 3
    assert notes(data, f"x.{format.lower()}") <= {"palette"}


def test_cmyk_becomes_rgb():
    data = encoded(Image.fromarray(np.full((16, 16, 3), (200, 40, 40), np.uint8)).convert("CMYK"), "JPEG", quality=95)
    assert notes(data, "x.jpg") == {"CMYK"}
    assert np.abs(decode(data, "x.jpg").astype(int) - (200, 40, 40)).max() <= 8


def test_what_is_transparent_lies_on_white():
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2] = (10, 20, 30, 255)
    data = encoded(Image.fromarray(image, "RGBA"))
    assert notes(data) == {"transparent"}
    out = decode(data, "x.png")
    assert out.shape == (4, 4, 3) and out[0, 0].tolist() == [10, 20, 30] and out[3, 3].tolist() == [255, 255, 255]


def test_palettes_are_looked_up():
    image = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (4, 1)), "P")
    image.putpalette([9, 8, 7, 1, 2, 3, 50, 60, 70, 200, 100, 0])
    data = encoded(image)
    assert notes(data) == {"palette"} and decode(data, "x.png")[0].tolist() == [
        [9, 8, 7],
        [1, 2, 3],
        [50, 60, 70],
        [200, 100, 0],
    ]
    image.putpalette([0, 0, 0, 80, 80, 80, 160, 160, 160, 255, 255, 255])
    assert describe(encoded(image), "x.png").channels == 1


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("colours", [3, 16, 200])
def test_palettes_are_looked_up_in_every_format(format, colours, grey):
    values = np.random.default_rng(colours).integers(0, colours, (9, 11)).astype(np.uint8)
    palette = (
        np.random.default_rng(1).integers(0, 256, (colours, 1 if grey else 3)).astype(np.uint8).repeat(3 if grey else 1, 1)
    )
    image = Image.fromarray(values, "P")
    image.putpalette(palette.ravel().tolist())
    data = encoded(image, format)
    found = describe(data, "x")
    assert (found.problem, found.channels) == ("", 1 if grey else 3)
    assert describe(data, "x", to_the_end=False)._replace(digest=found.digest) == found
    np.testing.assert_array_equal(decode(data, "x"), palette[values][..., : found.channels])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_their_depth(channels):
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, channels)).astype(np.uint16)
    data = cv2.imencode(".png", values[..., ::-1])[1].tobytes()
    assert describe(data, "x.png")[:4] == (6, 5, channels, 16)
    np.testing.assert_array_equal(decode(data, "x.png", depth=16), values.astype(np.float32) / np.float32(65535))
    np.testing.assert_array_equal(decode(data, "x.png", depth=8), np.round(values / 257).astype(np.uint8))
    tiff = cv2.imencode(".tiff", values[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode(tiff, "x.tiff", depth=16), values.astype(np.float32) / np.float32(65535))


def test_8_bits_among_16_have_the_same_white():
    assert decode(encoded(np.full((4, 4), 255, np.uint8)), "x.png", depth=16).max() == 1.0


@pytest.mark.parametrize("tag", range(1, 9))
def test_the_orientation_tag_is_obeyed(tag):
    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = tag
    data = encoded(image, "PNG", exif=exif)
    upright = decode(data, "x.png")
    found = describe(data, "x.png")
    assert (found.height, found.width) == upright.shape[:2] == ((24, 20) if tag >= 5 else (20, 24))
    # OpenCV obeys it, too
    np.testing.assert_array_equal(upright, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
    deep = Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 257)
    turned = decode(encoded(deep, "PNG", exif=exif), "x.png", depth=8)
    np.testing.assert_array_equal(turned[..., 0], upright[..., 0])


def test_of_an_animation_the_first_picture_counts():
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 240)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert "animated" in notes(file.getvalue(), "x.gif") and decode(file.getvalue(), "x.gif").max() == 10


def test_a_wrong_suffix_is_noted():
    assert notes(encoded(COLOUR), "x.jpg") == {"wrong suffix"}
    assert notes(encoded(COLOUR), "X.PNG") == set()


PNG, JPEG = encoded(COLOUR), encoded(COLOUR, "JPEG")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "an empty file"),
        (b"hello, I am a text", "18 bytes that are no image"),
        (PNG[:-20], "a damaged PNG"),
        (JPEG[:-60], "a damaged JPEG"),
        (PNG[:20], "damaged"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "whose white nobody knows"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "header", "float"],
)
def test_damage_is_told_and_named(data, problem):
    assert problem in describe(data, "odd.png").problem
    with pytest.raises(ImageFileError, match=r"^odd.png: "):
        decode(data, "odd.png")


def test_large_images_are_not_decoded():
    assert "more than config.data.max_pixels=100" in describe(PNG, "x.png", max_pixels=100).problem


def test_random_damage_never_ends_otherwise():
    rng = np.random.default_rng(0)
    for data in (PNG, JPEG, encoded(COLOUR, "GIF"), encoded(COLOUR, "TIFF"), encoded(COLOUR, "WEBP")):
        for _ in range(40):
            damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
            for at in rng.integers(0, len(damaged), 3):
                damaged[at] = rng.integers(0, 256)
            describe(bytes(damaged), "x")
            try:
                decode(bytes(damaged), "x")
            except ImageFileError as error:
                assert str(error).startswith("x: ")


@pytest.mark.parametrize("format", ["BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG", "PNG"])
def test_a_file_that_was_cut_off_is_told_before_it_is_needed(format):
    data = encoded(Image.fromarray(pixels("cat", 0, (40, 40))), format)
    name = f"x.{format.lower()}"
    assert not describe(data, name).problem
    assert describe(data[: len(data) * 2 // 3], name).problem


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_deep_images_are_turned_once(orientation, format):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7), np.uint16)
    exif = {"tiffinfo": {0x0112: orientation}} if format == "TIFF" else {"exif": Image.Exif()}
    if format == "PNG":
        exif["exif"][0x0112] = orientation
    data = encoded(Image.fromarray(values), format, **exif)
    upright = images.turned(values[..., None], orientation)
    found = describe(data, f"x.{format.lower()}")
    assert (found.height, found.width, found.depth) == (*upright.shape[:2], 16)
    assert bool(found.notes & 1 << NOTES.index("turned by its EXIF tag")) == (orientation != 1)
    np.testing.assert_allclose(decode(data, f"x.{format.lower()}", depth=16), upright / 65535, atol=1e-6)


def test_deep_tiffs_that_cannot_be_decoded_are_told_at_once():
    whole = encoded(Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80)), "TIFF")
    assert not describe(whole, "x.tif").problem
    assert (
        "cut off" in describe(whole[: len(whole) // 2], "x.tif").problem or "damaged" in describe(whole[:2000], "x.tif").problem
    )
    signed = cv2.imencode(".tiff", np.full((8, 8), -5, np.int16))[1].tobytes()
    assert "expected 16 bits without a sign" in describe(signed, "x.tif").problem
