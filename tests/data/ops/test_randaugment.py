"""RandAugment keeps what an image is, follows its generator, and does nothing at strength 0, but for contrast and white."""

import numpy as np
import pytest

from imgrec_jax.data.ops.randaugment import OPERATIONS, rand_augment


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_type_stay_and_the_generator_decides(image, channels):
    op, example = rand_augment(count=3, strength=20), {"image": image[..., :channels], "label": 1}
    first, again, other = (op(example, np.random.default_rng(seed))["image"] for seed in (1, 1, 2))
    assert first.shape == example["image"].shape and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize", "solarize"}))
def test_strength_zero_changes_nothing(image, name):
    from PIL import Image

    assert np.array_equal(np.asarray(OPERATIONS[name](Image.fromarray(image), 0.0)), image)


def test_translation_is_by_the_share_of_the_side(image):
    from PIL import Image

    moved = np.asarray(OPERATIONS["translate_x"](Image.fromarray(image), 331 / 150 * 4 / 32))
    np.testing.assert_array_equal(moved[:, :28], image[:, 4:])


def test_what_it_cannot_take_is_an_error(image):
    with pytest.raises(ValueError, match="takes uint8 images"):
        rand_augment()({"image": image.astype(np.float32) / 255}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="strength=31"):
        rand_augment(strength=31)
