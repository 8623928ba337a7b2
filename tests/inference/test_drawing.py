"""Words on pictures: letters beyond ASCII, and names that are no words."""

import numpy as np
import pytest

from imgrec_jax.inference import drawing

BLACK = np.zeros((40, 320, 3), np.uint8)


def written(text):
    return drawing.caption(BLACK, [(text, None)])[40:]


@pytest.mark.parametrize("pair", ["éü", "ЖЩ", "αβ", "şğ", "اب", "øå", "łż"])
def test_letters_of_other_alphabets_are_not_boxes(pair):
    one, other = map(written, pair)
    assert one.any() and not np.array_equal(one, other)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\r\nb", "a\x00b\x1b", "a\udc80b", "\n", ""])
def test_a_name_of_several_lines_or_of_controls_is_drawn(name):
    found = [
        written(name),
        drawing.bars(BLACK, [(name, 0.5, (255, 0, 0))]),
        drawing.boxes(BLACK, np.array([[0, 0, 9, 9]]), [(255, 0, 0)], [name]),
        drawing.areas(BLACK, np.ones(BLACK.shape[:2], int), ["", name]),
    ]
    assert all(picture.dtype == np.uint8 for picture in found)
    assert np.array_equal(written("a\nb"), written("a b"))


def test_letters_that_no_font_has_are_told_once(capsys, monkeypatch):
    monkeypatch.setattr(drawing, "_SAID", set())
    drawing.one_line.cache_clear()
    for name in ("猫", "犬", "猫 cat", "cat"):
        written(name)
    assert (
        capsys.readouterr().err == "note: pictures show boxes for letters that their font lacks (猫); the answers have them\n"
    )


def test_an_image_of_few_bits_in_sixteen_is_shown_brighter_and_no_other():
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1)
    np.testing.assert_array_equal(drawing.as_rgb(values)[..., 0], np.rint(values[..., 0] * 255))
    shown = drawing.as_rgb(values * 4095 / 65535)
    assert shown.max() == 255 and np.unique(shown).size == 12
    hot = np.pad((values * 4095 / 65535)[..., 0], 40)
    hot[0, 0] = 1.0
    assert (drawing.as_rgb(hot)[41:43, 40:44].max()) > 100  # one hot pixel is not what it is scaled by
    assert not drawing.as_rgb(np.zeros((2, 2), np.float32)).any()


def test_of_many_channels_the_first_three_are_shown():
    image = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    np.testing.assert_array_equal(drawing.as_rgb(image), image[..., :3])
    two = drawing.as_rgb(image[..., :2])
    np.testing.assert_array_equal(two[..., :2], image[..., :2])
    assert two.shape == (2, 3, 3) and not two[..., 2].any()


def test_objects_that_touch_are_outlined_each():
    image, classes = np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400), np.uint8)
    classes[100:300, 100:300] = 1
    objects = classes.astype(np.int32)
    objects[100:300, 200:300] = 2
    one, two = drawing.areas(image, classes, ("", "cell")), drawing.areas(image, classes, ("", "cell"), objects=objects)
    changed = (one[:400] != two[:400]).any(-1)
    assert changed[110:290, 199:201].all() and not changed[:, :190].any() and not changed[:, 210:].any()
