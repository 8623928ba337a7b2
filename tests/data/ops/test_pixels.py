"""Images as uint8 0..255 and as float 0..1: every op does the same to both, and takes nothing else."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrec_jax.data.ops import canvases, elastic, geometry, mixing, photometric
from imgrec_jax.data.ops.pixels import as_image, checked, white
from imgrec_jax.tasks.task import normalise


def alone(mix):
    """A mix as an op: with the image upside down."""
    return lambda example, rng: {**example, "image": mix(example["image"], example["image"][::-1], rng)[0]}


# name: (op, by how many of 255 the whole numbers of uint8 may be off)
OPS = {
    "mixup": (alone(mixing.mixup(alpha=1.0)), 0.501),
    "cutmix": (alone(mixing.cutmix(alpha=1.0)), 0.001),
    "erase": (photometric.erase(probability=1.0, fill=77), 0.001),
    "gaussian_noise": (photometric.gaussian_noise(sigma=20.0), 0.501),
    "colour_jitter": (photometric.colour_jitter(brightness=0.4, contrast=0.4, saturation=0.4), 0.501),
    "to_grey": (photometric.to_channels(1), 0.501),
    "to_colour": (photometric.to_channels(3), 0.001),
    "random_affine": (geometry.random_affine(flip=0.5, translate=0.3, fill=200), 8.0),  # OpenCV's positions are of 1/32 pixel
    "elastic": (elastic.elastic(sigma=2.0, fill=200), 8.0),
}


@st.composite
def images(draw):
    """(uint8 [H, W, 1 or 3] without sharp edges, seed)."""
    height, width, seed = draw(st.integers(4, 24)), draw(st.integers(4, 24)), draw(st.integers(0, 2**32 - 1))
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, draw(st.sampled_from([1, 3]))), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1), seed


@pytest.mark.parametrize("name", OPS)
@given(drawn=images(), dtype=st.sampled_from([np.float32, np.float64]))
@settings(max_examples=30, deadline=None)
def test_an_op_does_to_a_float_image_what_it_does_to_bytes(name, drawn, dtype):
    (image, seed), (op, levels) = drawn, OPS[name]
    whole = op({"image": image}, np.random.default_rng(seed))["image"]
    real = op({"image": (image / 255).astype(dtype)}, np.random.default_rng(seed))["image"]
    assert whole.dtype == np.uint8 and real.dtype == dtype and real.min() >= 0 and real.max() <= 1
    np.testing.assert_allclose(real, whole / 255, atol=levels / 255 + 1e-6)


@given(drawn=images(), turn=st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_hue_of_a_float_image_is_that_of_bytes_within_their_256_hues(drawn, turn):
    """A step of 1/256 of the circle is 6/256 of the way from one primary to the next, and saturation has 256 steps too."""
    image = np.repeat(drawn[0][..., :1], 3, axis=2) if drawn[0].shape[2] == 1 else drawn[0]
    whole = photometric._turn_hue(image, turn / 256)
    real = photometric._turn_hue((image / 255).astype(np.float32), turn / 256)
    np.testing.assert_allclose(real, whole / 255, atol=8 / 255)


def test_noise_and_brightness_of_floats_are_not_cut_to_whole_numbers():
    image = np.full((8, 8, 3), 0.5, np.float32)
    noisy = photometric.gaussian_noise(sigma=25.5)({"image": image}, np.random.default_rng(0))["image"]
    assert noisy.std() == pytest.approx(0.1, rel=0.15) and len(np.unique(noisy)) > 100
    bright = photometric.colour_jitter(brightness=0.5)({"image": image}, np.random.default_rng(0))["image"]
    assert 0.25 <= bright[0, 0, 0] <= 0.75 and bright[0, 0, 0] != 0.5


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.bool_])
def test_other_types_are_refused_by_name(name, dtype):
    with pytest.raises(ValueError, match=f"an image is {np.dtype(dtype)}; expected uint8 0..255 or float 0..1"):
        OPS[name][0]({"image": np.zeros((6, 6, 3), dtype)}, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["mixup", "cutmix", "erase", "gaussian_noise", "colour_jitter", "to_grey"])
def test_floats_in_0_to_255_are_refused_instead_of_cut(name):
    image = np.linspace(0, 200, 108, dtype=np.float32).reshape(6, 6, 3)
    with pytest.raises(ValueError, match=r"values from 0 to 200; expected 0..1: divide by 255"):
        OPS[name][0]({"image": image}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="values from nan"):
        checked(np.full((2, 2, 1), np.nan, np.float32))


def test_batches_are_normalised_alike_and_uint16_is_refused():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    for given_as in (image, (image / 255).astype(np.float32)):
        np.testing.assert_allclose(normalise(jnp.asarray(given_as), (0.3,), (0.2,)), (image / 255 - 0.3) / 0.2, atol=1e-6)
    with pytest.raises(ValueError, match="images of a batch are uint16; expected uint8"):
        normalise(jnp.zeros((1, 2, 2, 1), jnp.uint16), (0.3,), (0.2,))


def test_resizing_as_float_divides_bytes_and_leaves_floats():
    op = canvases.resize((8,), 8, ((32, 32),), as_float=True)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    of_bytes = op({"image": image}, None)["image"]
    np.testing.assert_allclose(op({"image": (image / 255).astype(np.float32)}, None)["image"], of_bytes, atol=1e-6)


def test_as_image_rounds_and_clips_only_what_it_must():
    np.testing.assert_array_equal(as_image(np.array([-3.0, 1.6, 300.0]), np.uint8), [0, 2, 255])
    np.testing.assert_array_equal(as_image(np.array([-3.0, 0.6, 3.0]), np.float64), [0, 0.6, 1])
    assert white(np.uint8) == 255 and white(np.float16) == 1
